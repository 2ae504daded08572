"""Sampling of the tasks of a run, and their identification by number in every process.

Tasks and their seeds follow from the run's seed and the meta-step alone, so every process that has
built the same study finds the same task under the same `TaskSpec`.
"""

import contextlib
import dataclasses
import itertools
import math
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from leap_tf.array_tasks import describe_arrays
from leap_tf.learners.base import TrainingPlan
from leap_tf.tasks import (
    FiniteTasks,
    Task,
    TaskDistribution,
    TaskSplits,
    checked_task,
    listed_tasks,
)

# Streams of random numbers, kept apart by the second word of their seed.
TRAINING, VALIDATION, EVALUATION = range(3)


@dataclasses.dataclass(frozen=True)
class TaskSpec:
    """Which task is run, and how.

    Attributes:
        split: "train", or the name of a list of evaluation tasks.
        meta_step: the index of the meta-step, from 0; 0 for evaluation tasks.
        index: the index of the task in the meta-batch or in the list.
        seed: seed of everything random in this run of the task.
        steps: gradient steps.
    """

    split: str
    meta_step: int
    index: int
    seed: int
    steps: int


class TaskSampler:
    """Samples training tasks, numbers evaluation tasks, and returns the task of a `TaskSpec`.

    The learner's `plan` says how. `seed` is that of the run.
    """

    def __init__(self, plan: TrainingPlan, meta_batch_size: int, seed: int):
        self.seed = seed
        self._plan = plan
        self._meta_batch_size = meta_batch_size
        self._study: TaskSplits | None = None
        self._distribution: TaskDistribution | None = None
        self._lists: dict[str, Sequence[Task]] = {}
        self._temporary = itertools.count()
        self._latest: tuple[int, Sequence[Task], list[TaskSpec]] | None = None

    def use_study(self, tasks: TaskSplits) -> None:
        """Sets the tasks of the study, which exist in every process that builds the study."""
        self._study = tasks
        self.use_distribution(tasks.train)
        self.use_list("validation", tasks.validation)
        self.use_list("test", tasks.test)

    def own_split(self, tasks: Sequence[Task]) -> str | None:
        """Returns the split of the study that begins with these tasks, None if there is none."""
        for split in ("validation", "test"):
            own = getattr(self._study, split, ())
            if tasks and len(own) >= len(tasks) and all(a is b for a, b in zip(tasks, own)):
                return split
        return None

    def use_distribution(self, distribution: TaskDistribution) -> None:
        """Sets where training tasks come from."""
        if distribution is not self._distribution:
            self._distribution, self._latest = distribution, None

    def train_on(self, tasks: Any, must_be_own: bool) -> dict[str, Any]:
        """Sets the distribution of training tasks and returns its `describe_tasks`.

        Raises:
            TypeError: `tasks` is no distribution, list of tasks or task.
            ValueError: it is not the training distribution of the study, and `must_be_own`.
        """
        distribution = as_distribution(tasks)
        if must_be_own and (self._study is None or distribution is not self._study.train):
            raise ValueError(
                "This pool trains in other processes, which sample from the task distribution of "
                "their own study. Give fit() the study's tasks.train, or train on threads."
            )
        self.use_distribution(distribution)
        return describe_tasks(distribution, self._meta_batch_size)

    def use_list(self, split: str, tasks: Sequence[Task]) -> None:
        """Sets the evaluation tasks of a split."""
        self._lists[split] = tasks

    @contextlib.contextmanager
    def temporary_list(self, tasks: Sequence[Task]) -> Iterator[str]:
        """Keeps evaluation tasks during the block, under a unique name."""
        split = f"temporary {next(self._temporary)}"
        self._lists[split] = tasks
        try:
            yield split
        finally:
            del self._lists[split]

    def training_specs(self, meta_step: int) -> list[TaskSpec]:
        """Samples the meta-batch of a meta-step, counted from 0.

        Raises:
            ValueError: the distribution returned no tasks.
        """
        return self._meta_batch(meta_step)[1]

    def evaluation_specs(
        self, split: str, count: int, steps: int, stream: int = EVALUATION
    ) -> list[TaskSpec]:
        """Numbers the first `count` evaluation tasks of a split; raises ValueError if it is 0.

        `stream` is that of random numbers, VALIDATION or EVALUATION.
        """
        if not count:
            raise ValueError("There are no tasks to evaluate. Pass at least one task.")
        return [
            TaskSpec(split, 0, index, self.evaluation_seed(index, stream), steps)
            for index in range(count)
        ]

    def evaluation_tasks(self, distribution: TaskDistribution, count: int) -> Sequence[Task]:
        """Samples evaluation tasks from a distribution, by the seed alone.

        Raises:
            TypeError: it is no distribution.
            ValueError: it has fewer tasks, of which some would count twice.
        """
        if not hasattr(distribution, "sample"):
            raise TypeError(
                f"count is for a distribution over tasks, and this is a "
                f"{type(distribution).__name__}. Pass the tasks themselves, without count."
            )
        if len(listed_tasks(distribution) or range(count)) < count:
            raise ValueError(f"There are fewer than {count=} tasks. Pass them without count.")
        return distribution.sample(count, np.random.default_rng([self.seed, EVALUATION]))

    def evaluation_seed(self, index: int, stream: int = EVALUATION) -> int:
        """Returns the seed of the evaluation task at an index of its list."""
        return int(np.random.default_rng([self.seed, stream, index]).integers(2**31))

    def resolve(self, spec: TaskSpec) -> Task:
        """Returns the task of a spec.

        Raises:
            ValueError: this process has other tasks than the one that made the spec.
        """
        if spec.split == "train":
            tasks, specs = self._meta_batch(spec.meta_step)
            if spec not in specs:
                raise ValueError(
                    f"{spec} is not among the training tasks of this process. A worker must build "
                    "the study of the driver, its seed included."
                )
            return tasks[spec.index]
        tasks = self._lists.get(spec.split, ())
        if spec.index >= len(tasks):
            raise ValueError(
                f"{spec} is not among the {len(tasks)} tasks of its split in this process. A "
                "worker evaluates only tasks of its own study."
            )
        return self._plan.evaluation_task(tasks[spec.index])

    def _meta_batch(self, meta_step: int) -> tuple[Sequence[Task], list[TaskSpec]]:
        if self._latest is None or self._latest[0] != meta_step:
            if self._distribution is None:
                raise ValueError("There is no task distribution to sample from. Call fit() first.")
            count = self._meta_batch_size
            rng = np.random.default_rng([self.seed, TRAINING, meta_step])
            tasks = self._plan.sample_tasks(self._distribution, count, meta_step, rng)
            _check_sample(self._distribution, tasks)
            specs = [
                TaskSpec("train", meta_step, index, int(rng.integers(2**31)), self._plan.steps)
                for index in range(len(tasks))
            ]
            self._latest = meta_step, tasks, specs
        _, tasks, specs = self._latest
        return tasks, specs


def as_distribution(tasks: Any) -> TaskDistribution:
    """Returns a distribution as it is, and a list of tasks or a single task as `FiniteTasks`.

    Raises:
        TypeError: it is none of these. The message says what to pass.
    """
    if hasattr(tasks, "sample"):
        return tasks
    if isinstance(tasks, TaskSplits):
        raise TypeError("fit() takes one distribution of the TaskSplits: splits.train.")
    return FiniteTasks(as_tasks(tasks))


def as_tasks(tasks: Any) -> list[Task]:
    """Returns an iterable of tasks, the fixed tasks of a distribution, or a single task, as a list.

    Raises:
        TypeError: it is none of these. The message says what to pass.
    """
    if isinstance(tasks, TaskSplits):
        raise TypeError("Pass one list of the TaskSplits: splits.validation or splits.test.")
    if hasattr(tasks, "sample"):
        listed = listed_tasks(tasks)
        if listed is None:
            raise TypeError(
                f"{type(tasks).__name__} samples tasks without end. Say evaluate(tasks, count=20), "
                "or pass some of them, such as tasks.sample(20, numpy.random.default_rng([0, 1]))."
            )
        return list(listed)
    if hasattr(tasks, "name"):
        return [tasks]
    data = isinstance(tasks, (str, np.ndarray, tf.data.Dataset)) or tf.is_tensor(tasks)
    found = list(tasks) if isinstance(tasks, Iterable) and not data else [tasks]
    return [checked_task(each) for each in found]


def _check_sample(distribution, tasks):
    """Raises ValueError if what a distribution returned is not a list of tasks."""
    if not isinstance(tasks, (list, tuple)) or not tasks:
        what = f"{distribution!r} returned {tasks!r}."
        raise ValueError(f"{what} Its sample() must return a list of at least one task.")


def describe_tasks(distribution: TaskDistribution, most: int = 3) -> dict[str, Any]:
    """Returns a JSON description of a task distribution, to compare it with that of a checkpoint.

    It has class and settings of the distribution (from `get_config()` or dataclass fields), the
    number of tasks, and a line for each of the first 20. Further tasks enter by one CRC-32. The
    tasks are its attribute `tasks`, or else three, `most` at most, that are sampled. Arrays enter
    by a CRC-32, except if a dataclass samples them: their last bits depend on the processor.
    """
    fixed = listed_tasks(distribution)
    tasks = distribution.sample(min(3, most), np.random.default_rng(0)) if fixed is None else fixed
    _check_sample(distribution, tasks)
    lines = [_line(task) for task in tasks]
    if fixed is None and dataclasses.is_dataclass(distribution):
        lines = [re.sub(r" CRC \w+", "", line) for line in lines]
    described = plain(distribution)
    described = dict(described) if isinstance(described, dict) else {"class": described}
    described["number"] = "endless" if fixed is None else len(lines)
    described |= {str(index): line for index, line in enumerate(lines[:20])}
    if lines[20:]:
        described["others"] = f"CRC {zlib.crc32(repr(lines[20:]).encode()):08x}"
    return described


def _line(task):
    found = plain(task)
    found = found if isinstance(found, dict) else {"class": found}
    settings = (f"{name} {value}" for name, value in found.items() if name not in ("class", "name"))
    return ", ".join([f"{found['class']} {getattr(task, 'name', '')!r}", *settings])


def plain(value: Any) -> Any:
    """Converts a value to JSON values that are the same in every process."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, np.ndarray) or tf.is_tensor(value):
        return describe_arrays(value)
    if isinstance(value, Mapping):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if isinstance(value, type) or not hasattr(value, "get_config"):
        name = getattr(value, "__qualname__", type(value).__name__)
        if isinstance(value, type) or not dataclasses.is_dataclass(value):
            return name
        fields = [each.name for each in dataclasses.fields(value) if each.name != "tasks"]
        return {"class": name} | {each: plain(getattr(value, each)) for each in fields}
    return {"class": type(value).__name__} | plain(value.get_config())
