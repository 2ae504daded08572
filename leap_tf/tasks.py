"""Tasks and distributions over tasks: two protocols, fixed lists of tasks, and sinusoids."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, Protocol

import keras
import numpy as np
import tensorflow as tf

from leap_tf.array_tasks import (
    ArrayTask,
    OrderedBatches,
    as_arrays,
    one_thread_options,
    spec_of,
)


class Task(Protocol):
    """One learning problem. Any object with these members is a task.

    A task must give the same batches for the same seed on any thread. All tasks of a distribution
    must give batches of the same structure and dtypes; the number of examples may differ. A task
    may also have `classes`, the number of classes of its labels; `validation_batches()` for stop
    rules; `query_batches(seed)`, see `leap_tf.Learner`; and `get_config()`, which returns plain
    values by name. Training continues from a checkpoint only if these values are unchanged.
    """

    @property
    def name(self) -> str:
        """The name of the task in messages and tables."""

    def train_batches(self, seed: int) -> tf.data.Dataset:
        """Returns training batches, (inputs, targets) or (inputs, targets, sample_weight).

        Args:
            seed: decides order and augmentation. A task is trained on many times, each time with
                another seed.

        Returns:
            A data set that may be endless; the trainer takes as many batches as it needs. A
            generator, a list of batches or a `keras.utils.PyDataset` will do too: its first batch
            gives the shapes and dtypes of all.
        """

    def test_batches(self) -> tf.data.Dataset:
        """Returns batches of all held-out examples once. None may be a training example.

        Sample weights apply to loss and error. Examples of weight 0 count in neither, except in the
        divisor of a loss whose reduction is not "mean_with_sample_weight".
        """


class TaskDistribution(Protocol):
    """A distribution over tasks; any object with this method is one."""

    def sample(self, count: int, rng: np.random.Generator) -> Sequence[Task]:
        """Returns a list of the `count` tasks of a meta-batch; `rng` is the only randomness.

        Trainers pass `default_rng([seed, 0, meta_step])`. At meta-step 0 it gives the numbers of
        `default_rng(seed)`, so draw held-out tasks with another seed. If the distribution has an
        attribute `tasks`, it is the list of all tasks.
        """


@dataclasses.dataclass(frozen=True)
class TaskSplits:
    """The tasks of a study: a distribution to meta-train on, and lists to evaluate.

    A list of training tasks is wrapped in `FiniteTasks`. The held-out examples of validation and
    test tasks must not be training examples of any task.

    Raises:
        TypeError: an element of `train` is not a task.
    """

    train: TaskDistribution
    validation: Sequence[Task]
    test: Sequence[Task]

    def __post_init__(self):
        if not hasattr(self.train, "sample"):
            object.__setattr__(self, "train", FiniteTasks(self.train))
        for part in ("validation", "test"):
            if not isinstance(getattr(self, part), Sequence):  # a sequence may draw tasks by index
                object.__setattr__(self, part, list(getattr(self, part)))


def listed_tasks(distribution: TaskDistribution) -> Sequence[Task] | None:
    """Returns the list of all tasks of a distribution, None if it has none."""
    tasks = getattr(distribution, "tasks", None)
    return tasks if isinstance(tasks, Sequence) else None


class FiniteTasks:
    """A distribution over a fixed list of tasks, sampled without replacement.

    A meta-batch larger than the list takes every task before it repeats one, as in the original
    code.

    Raises:
        TypeError: an element of the list is not a task.
        ValueError: `tasks` is empty.

    Example:

        >>> import leap_tf, numpy as np
        >>> tasks = leap_tf.FiniteTasks(leap_tf.sinusoid_splits(test_tasks=3).test)
        >>> len({task.name for task in tasks.sample(3, np.random.default_rng(0))})
        3
    """

    def __init__(self, tasks: Sequence[Task]):
        if not tasks:
            raise ValueError("FiniteTasks needs at least one task to sample from.")
        self.tasks = [checked_task(task) for task in tasks]

    def __repr__(self) -> str:
        names = [getattr(task, "name", "unnamed") for task in self.tasks[:3]]
        more = ", ..." if len(self.tasks) > 3 else ""
        return f"<FiniteTasks: {len(self.tasks)} tasks, {', '.join(map(repr, names))}{more}>"

    def sample(self, count: int, rng: np.random.Generator) -> list[Task]:
        order: list[int] = []
        while len(order) < count:
            order.extend(rng.permutation(len(self.tasks)).tolist())
        return [self.tasks[index] for index in order[:count]]


@dataclasses.dataclass(frozen=True)
class Sinusoids:
    """Sinusoid regression: y = A sin(x + φ), with another amplitude and phase for every task.

    A is uniform in [0.1, 5], φ in [0, π], x in [−5, 5].

    Source: Finn et al., "Model-Agnostic Meta-Learning", ICML 2017, section 5.1.

    Args:
        examples: number of training examples of a task, and of held-out examples.
        batch_size: examples in a training batch.
        queries: number of query examples, see `ArrayTask`; with 0, tasks have no query batches.

    Example:

        >>> import leap_tf, numpy as np
        >>> [task] = leap_tf.Sinusoids(examples=30).sample(1, np.random.default_rng(0))
        >>> task.train[0].shape
        (30, 1)
    """

    examples: int = 100
    batch_size: int = 10
    queries: int = 0

    def sample(self, count: int, rng: np.random.Generator) -> list[ArrayTask]:
        return [self._sample_one(rng) for _ in range(count)]

    def _sample_one(self, rng):
        amplitude, phase = rng.uniform(0.1, 5.0), rng.uniform(0.0, np.pi)
        inputs = rng.uniform(-5.0, 5.0, size=(2, self.examples, 1)).astype(np.float32)
        targets = (amplitude * np.sin(inputs + phase)).astype(np.float32)
        query = None
        if self.queries:
            asked = rng.uniform(-5.0, 5.0, size=(self.queries, 1)).astype(np.float32)
            query = asked, (amplitude * np.sin(asked + phase)).astype(np.float32)
        return ArrayTask(
            name=f"{amplitude:.2f} sin(x + {phase:.2f})",
            train=(inputs[0], targets[0]),
            test=(inputs[1], targets[1]),
            batch_size=self.batch_size,
            query=query,
        )


def sinusoid_splits(
    seed: int = 0,
    data_dir: str | None = None,
    examples: int = 100,
    batch_size: int = 10,
    *,
    queries: int = 0,
    validation_tasks: int = 20,
    test_tasks: int = 50,
) -> TaskSplits:
    """Returns a distribution of sinusoids, and fixed tasks for validation and test.

    Args:
        seed: decides the fixed tasks.
        data_dir: unused; all functions that return `TaskSplits` have it.
        examples, batch_size, queries: see `Sinusoids`.
        validation_tasks, test_tasks: number of fixed tasks.
    """
    sinusoids = Sinusoids(examples, batch_size, queries)
    rng = np.random.default_rng([seed, 0, 0, 1])  # training samples by [seed, 0, meta-step]
    return TaskSplits(
        train=sinusoids,
        validation=sinusoids.sample(validation_tasks, rng),
        test=sinusoids.sample(test_tasks, rng),
    )


def checked_task(task: Any) -> Task:
    """Returns a task unchanged; raises TypeError for anything else."""
    if not hasattr(task, "name"):
        raise TypeError(
            f"A {type(task).__name__} is no task. Make a task of each data set, for example by "
            "leap_tf.ArrayTask(name, (inputs, targets), (inputs, targets)), and pass a list."
        )
    return task


def batches_of(task: Task, method: str, *arguments: Any) -> tf.data.Dataset:
    """Calls a method of a task, such as "train_batches", and returns its batches as a data set.

    Raises:
        TypeError: the task has no such method, or it does not return batches.
        ValueError: the method returned a list or generator without a batch.
    """
    name = getattr(task, "name", None)
    if not hasattr(task, method):
        raise TypeError(
            f"{task!r} has no method {method}(). Make a task of arrays by leap_tf.ArrayTask(name, "
            "(inputs, targets), (inputs, targets)), or see leap_tf.Task."
        )
    made = getattr(task, method)(*arguments)
    if isinstance(made, tf.data.Dataset):
        return made
    if isinstance(made, tuple) or not (hasattr(made, "__iter__") or hasattr(made, "__getitem__")):
        raise TypeError(
            f"{method}() of task {name!r} returned a {type(made).__name__}. It must return "
            "batches (inputs, targets): a tf.data.Dataset, a keras.utils.PyDataset, a generator or "
            "a list."
        )
    stream = _elements(made)
    first = next(stream, None)
    if first is None:
        raise ValueError(f"{method}() of task {name!r} gave no batch.")
    begun = [itertools.chain([first], stream)]

    def elements():  # the first call continues the generator that gave `first`
        return begun.pop() if begun else _elements(getattr(task, method)(*arguments))

    batches = tf.data.Dataset.from_generator(elements, output_signature=spec_of(first).element_spec)
    if isinstance(made, keras.utils.PyDataset) and made.num_batches is None:
        batches = batches.apply(
            tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)
        )
    return batches.prefetch(2).with_options(one_thread_options())


def batches_of_few_steps(task: Any, seed: int, batches: int) -> OrderedBatches | None:
    """Returns the first training batches of a task, or None if its pipeline must make them.

    Starting a pipeline takes longer than many a small task. Tasks of this library do without one,
    unless the user has replaced their `train_batches`.
    """
    members = [getattr(each, "__dict__", {}) for each in (task, *type(task).__mro__)]
    owner: Any = next((each for each in members if "train_batches" in each), {})
    return task.few_batches(seed, batches) if "few_batches" in owner else None


def _elements(batches):
    """Yields each batch as a tuple of arrays, or of dictionaries and tuples of arrays."""
    if isinstance(batches, keras.utils.PyDataset):
        count = batches.num_batches
        indices = itertools.count() if count is None else range(count)
        batches = map(batches.__getitem__, indices)
    for batch in batches:
        parts = isinstance(batch, (list, tuple))
        yield tuple(as_arrays(each) for each in batch) if parts else as_arrays(batch)
