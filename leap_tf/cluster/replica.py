"""A study as a worker has it, and how a worker comes to have it."""

import dataclasses
from typing import Protocol

from leap_tf.tasks import TaskSplits
from leap_tf.training import MetaLoop


@dataclasses.dataclass(frozen=True)
class Replica:
    """The driver's study once more: the same trainer, and the same tasks.

    Attributes:
        trainer: built as the driver's; its pool is never used.
        tasks: the distribution that is trained on, and the lists that are judged.
    """

    trainer: MetaLoop
    tasks: TaskSplits


class Recipe(Protocol):
    """Makes a replica. It is pickled, so it is a function of a module, or an object of a class
    of one, with no more inside than numbers and text.

    If it has an attribute `environment`, these variables are set in a worker before Python starts.
    """

    def __call__(self) -> Replica:
        """Builds the study, the same one wherever it is called."""
