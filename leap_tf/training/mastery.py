"""When a task counts as learned before its steps are used up."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class StopWhenMastered:
    """Ends a task's training once its held-out error has been low for long enough.

    After each step one held-out batch is judged, in turns, with the running statistics. The
    paper's rule (appendix F): an error below 2 % on 30 batches in a row.

    Args:
        error: the mean error of a held-out batch must be below this.
        batches: how many batches in a row.
        batch_size: examples in such a batch.

    Raises:
        ValueError: a number makes no sense.
    """

    error: float = 0.02
    batches: int = 30
    batch_size: int = 20

    def __post_init__(self):
        if self.error <= 0 or self.batches < 1 or self.batch_size < 1:
            raise ValueError(
                f"{self} makes no sense: error must be above 0, batches and batch_size at least 1."
            )
