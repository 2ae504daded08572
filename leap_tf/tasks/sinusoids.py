"""Sinusoid regression: y = A sin(x + φ), one amplitude and phase a task.

Finn et al., "Model-Agnostic Meta-Learning", ICML 2017, section 5.1: A in [0.1, 5], φ in
[0, π], x in [−5, 5]. Small enough for tests and documentation.
"""

import dataclasses

import numpy as np

from leap_tf.tasks.arrays import ArrayTask
from leap_tf.tasks.task import TaskSplits


@dataclasses.dataclass(frozen=True)
class Sinusoids:
    """An endless family of regression tasks from R to R.

    Args:
        examples: training examples of a task, and as many held-out ones.
        batch_size: examples in a training batch.
    """

    examples: int = 100
    batch_size: int = 10

    def sample(self, count: int, rng: np.random.Generator) -> list[ArrayTask]:
        return [self._draw(rng) for _ in range(count)]

    def _draw(self, rng):
        amplitude, phase = rng.uniform(0.1, 5.0), rng.uniform(0.0, np.pi)
        inputs = rng.uniform(-5.0, 5.0, size=(2, self.examples, 1)).astype(np.float32)
        targets = (amplitude * np.sin(inputs + phase)).astype(np.float32)
        return ArrayTask(
            name=f"{amplitude:.2f} sin(x + {phase:.2f})",
            train=(inputs[0], targets[0]),
            test=(inputs[1], targets[1]),
            batch_size=self.batch_size,
        )


def sinusoid_splits(
    seed: int = 0,
    data_dir: str | None = None,
    examples: int = 100,
    batch_size: int = 10,
    validation_tasks: int = 20,
    test_tasks: int = 50,
) -> TaskSplits:
    """Makes a distribution of sinusoids and fixed tasks to validate and judge by.

    Args:
        seed: decides the fixed tasks.
        data_dir: unused, since nothing is read; every `splits` function takes it.
        examples, batch_size: as for `Sinusoids`.
        validation_tasks, test_tasks: how many fixed tasks of each kind.
    """
    family = Sinusoids(examples, batch_size)
    rng = np.random.default_rng([seed, 0])
    return TaskSplits(
        train=family,
        validation=family.sample(validation_tasks, rng),
        test=family.sample(test_tasks, rng),
    )
