"""A comparison of methods on a user's own tasks, at equal numbers of gradient steps."""

import contextlib
import dataclasses
import hashlib
import json
import pathlib
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from os import PathLike
from typing import Any

import keras
import numpy as np
from tqdm.auto import tqdm

from leap_tf.errors import whole_number
from leap_tf.learners import JointTraining, Leap, Learner, NoMetaLearning, Reptile
from leap_tf.serialization import decode, encode
from leap_tf.tasks import TaskSplits
from leap_tf.training import (
    CheckpointMismatchError,
    Evaluation,
    MetaTrainer,
    MetaTrainingDivergedError,
    available_cores,
)
from leap_tf.training.checkpoint import describe
from leap_tf.training.sampling import describe_tasks

_Method = Learner | tuple[Learner, Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class ComparedRun:
    """A meta-training and its evaluation.

    Attributes:
        method: the name of the method.
        inner_rate: the learning rate on tasks; None if the optimizer has a schedule.
        meta_rate: the learning rate of the meta-optimizer; None for joint training and none.
        seed: of initial weights, batches and task sampling.
        budget: the gradient steps of meta-training that were asked for.
        gradient_steps: those that were made.
        evaluation: of the test tasks, of the validation tasks for a trial of rates, or None if
            meta-training diverged.
    """

    method: str
    _: dataclasses.KW_ONLY
    inner_rate: float | None
    meta_rate: float | None
    seed: int
    budget: int
    gradient_steps: int = 0
    evaluation: Evaluation | None = None

    @property
    def error(self) -> float:
        """Mean held-out error; infinite if meta-training or all tasks diverged."""
        return self.evaluation.error if self.evaluation else float("inf")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The results of `compare`. Print it for the table.

    Attributes:
        runs: the meta-trainings with the chosen rates, for every method and seed.
        trials: those from which the rates were chosen, evaluated on validation tasks.
    """

    runs: tuple[ComparedRun, ...]
    trials: tuple[ComparedRun, ...]

    @property
    def methods(self) -> list[str]:
        """Names of the methods, the one with the lowest held-out error first."""
        names = dict.fromkeys(run.method for run in self.runs)
        return sorted(names, key=lambda name: float(np.mean([r.error for r in self._of(name)])))

    def to_dataframe(self):
        """Returns the table as a `pandas.DataFrame` with a row for every method, best first.

        Columns: `inner_rate`, `meta_rate`, `seeds`, `gradient_steps` (of one run), `error` (mean
        held-out error over tasks and seeds), `interval` (1.96 standard errors of it over
        the tasks), `training_error` (of the last 50 batches), `area` (under the training error, in
        percent) and `diverged` (the number of diverged adaptations).

        Raises:
            ImportError: pandas is not installed.
        """
        import pandas as pd

        return pd.DataFrame(self._rows()).set_index("method")

    def plot(self, axes=None):
        """Draws the mean training error by gradient step on test tasks, a curve for every method.

        Args:
            axes: the `matplotlib.axes.Axes` to draw on; new ones by default.

        Returns:
            The axes.

        Raises:
            ImportError: matplotlib is not installed.
        """
        import matplotlib.pyplot as plt

        axes = axes or plt.subplots(figsize=(6, 4), layout="constrained")[1]
        for method in self.methods:
            curves = [
                task.training_errors
                for run in self._of(method)
                if run.evaluation
                for task in run.evaluation.tasks
                if not task.diverged
            ]
            if not curves:
                continue
            steps = max(map(len, curves))
            padded = [np.pad(curve, (0, steps - len(curve)), mode="edge") for curve in curves]
            axes.plot(np.arange(1, steps + 1), np.mean(padded, axis=0), label=method)
        axes.set(xlabel="gradient step on a new task", ylabel="training error", ylim=(0, None))
        axes.legend()
        return axes

    def __str__(self) -> str:
        lines = [
            f"{'method':16}{'inner rate':>11}{'meta rate':>11}{'steps':>10}"
            f"{'held-out error':>19}{'training':>10}{'area':>8}{'diverged':>10}"
        ]
        for row in self._rows():
            inner, meta = (
                "–" if row[kind] is None else f"{row[kind]:.4g}"
                for kind in ("inner_rate", "meta_rate")
            )
            error = f"{row['error']:.4f} ± {row['interval']:.4f}"
            lines.append(
                f"{row['method']:16}{inner:>11}{meta:>11}{row['gradient_steps']:>10}"
                f"{error:>19}{row['training_error']:>10.4f}{row['area']:>8.2f}"
                f"{row['diverged']:>10}"
            )
        lines.append(self._conclusion())
        if at_end := self._rates_at_an_end():
            lines.append(f"The best rate is the lowest or highest tried: {', '.join(at_end)}.")
        return "\n".join(lines)

    def _of(self, method):
        return [run for run in self.runs if run.method == method]

    def _rows(self):
        for method in self.methods:
            runs = self._of(method)
            found = [run.evaluation for run in runs if run.evaluation]
            by_task = [
                np.mean([task.error for task in same if not task.diverged])
                for same in zip(*(evaluation.tasks for evaluation in found))
                if not all(task.diverged for task in same)
            ]
            spread = np.std(by_task, ddof=1) if len(by_task) > 1 else float("nan")
            yield {
                "method": method,
                "inner_rate": runs[0].inner_rate,
                "meta_rate": runs[0].meta_rate,
                "seeds": len(runs),
                "gradient_steps": runs[0].gradient_steps,
                "error": float(np.mean([run.error for run in runs])),
                "interval": float(1.96 * spread / np.sqrt(max(len(by_task), 1))),
                "training_error": _mean(each.mean("final_training_error") for each in found),
                "area": _mean(each.area_under_error for each in found),
                "diverged": sum(len(evaluation.diverged) for evaluation in found),
            }

    def _conclusion(self):
        best, *_ = self.methods
        if best in (_JOINT, _NONE):
            return f"No meta-learner has a lower held-out error than {best!r} on these tasks."
        differences = self._differences(best, _JOINT)
        if len(differences) < 2:
            return f"{best!r} has the lowest held-out error."
        mean = float(np.mean(differences))
        half = 1.96 * float(np.std(differences, ddof=1)) / np.sqrt(len(differences))
        return (
            f"{best!r} has the lowest held-out error, {mean:.4f} ± {half:.4f} below {_JOINT!r} "
            f"(± 1.96 standard errors over {len(differences)} tasks)."
        )

    def _rates_at_an_end(self):
        found = []
        for method in self.methods:
            for kind in ("inner_rate", "meta_rate"):
                tried = {getattr(run, kind) for run in self.trials if run.method == method}
                chosen = getattr(self._of(method)[0], kind)
                if len(tried) > 1 and chosen in (min(tried), max(tried)):
                    found.append(f"{kind.replace('_', ' ')} of {method!r}")
        return found

    def _differences(self, method, other):
        """Error of `other` minus that of `method`, by task, over the seeds that both finished."""
        pairs = [
            (a.evaluation, b.evaluation)
            for a, b in zip(self._of(method), self._of(other))
            if a.evaluation and b.evaluation
        ]
        differences: dict[int, list[float]] = {}
        for ours, theirs in pairs:
            for index, (mine, yours) in enumerate(zip(ours.tasks, theirs.tasks)):
                if not (mine.diverged or yours.diverged):
                    differences.setdefault(index, []).append(yours.error - mine.error)
        return [float(np.mean(each)) for each in differences.values()]


_JOINT, _NONE = "joint training", "no pretraining"


def compare(
    tasks: TaskSplits | Callable[[int], TaskSplits],
    model: Callable[[], keras.Model],
    *,
    budget: int,
    learners: Mapping[str, _Method] | Sequence[Learner] = (Leap(), Reptile()),
    inner_factors: Sequence[float] = (1 / 3, 1.0, 3.0),
    meta_rates: Sequence[float] = (0.1, 0.3, 1.0),
    trial_share: float = 0.25,
    seeds: Sequence[int] = (0,),
    steps: int | None = None,
    directory: str | PathLike | None = None,
    workers: int | None = None,
    verbose: bool = True,
    trainer: Callable[..., MetaTrainer] = MetaTrainer,
    **settings: Any,
) -> Comparison:
    """Finds out which method pays on some tasks.

    Every method makes the same number of gradient steps. Its rates are chosen in short trials by
    the held-out error on validation tasks: first the meta rate, then the inner rate. The test
    tasks are used once, by the runs with the chosen rates. Joint training and no pretraining are
    always among the methods. If `task_layers` names a head and the training tasks are a list, joint
    training has a head for every task, else one model for all.

    Args:
        tasks: the splits, or a function of the seed that returns them.
        model: returns a new built model. It is called after the seed is set.
        budget: gradient steps of one meta-training.
        learners: the methods, by name. A method may come with `MetaTrainer` arguments of its own,
            for example `{"MAML": (leap_tf.MAML(), {"steps_per_task": 5})}`.
        inner_factors: the inner rates that are tried, as factors of the given optimizer's rate. An
            optimizer with a schedule is taken as it is.
        meta_rates: the rates of the meta-optimizer, SGD, that are tried.
        trial_share: the share of the budget that a trial gets.
        seeds: of the runs; the trials use the first.
        steps: gradient steps on evaluation tasks; `steps_per_task` by default.
        directory: where finished runs and checkpoints are kept. The same call continues from them.
        workers: runs at the same time, each on one thread; one per core by default.
        verbose: whether to show progress.
        trainer: builds a trainer from the arguments of `MetaTrainer`.
        **settings: arguments of `MetaTrainer` for all methods: `loss`, `inner_optimizer`,
            `steps_per_task`, `meta_batch_size`, `task_layers` and others.

    Raises:
        ValueError: an argument is out of its range, or a method cannot be used on these tasks.
        CheckpointMismatchError: the directory belongs to another comparison.

    Example:

        >>> import keras, leap_tf
        >>> comparison = leap_tf.compare(
        ...     leap_tf.sinusoid_splits(validation_tasks=2, test_tasks=3),
        ...     lambda: leap_tf.mlp(hidden=[8]),
        ...     learners={"Leap": leap_tf.Leap()},
        ...     budget=40,
        ...     inner_factors=[1.0],
        ...     meta_rates=[0.1],
        ...     loss="mse",
        ...     inner_optimizer=keras.optimizers.SGD(0.01),
        ...     steps_per_task=5,
        ...     meta_batch_size=2,
        ...     verbose=False,
        ... )
        >>> sorted(comparison.methods)
        ['Leap', 'joint training', 'no pretraining']
    """
    whole_number("budget", budget, 1)
    if not (seeds and inner_factors and meta_rates):
        raise ValueError("seeds, inner_factors and meta_rates must not be empty.")
    if not 0.0 < trial_share <= 1.0:
        raise ValueError(f"trial_share must be above 0 and at most 1. Received: {trial_share}.")
    splits = tasks if callable(tasks) else lambda seed: tasks
    methods = _all_methods(learners, splits(seeds[0]).train)
    runner = _Runner(splits, model, methods, trainer, settings, steps)
    rates = runner.inner_rates(inner_factors)
    if directory is not None:
        runner.use_directory(
            pathlib.Path(directory),
            {
                "budget": budget,
                "inner_rates": rates,
                "meta_rates": list(meta_rates),
                "trial_share": trial_share,
                "steps": steps,
            },
            seeds[0],
        )
    workers = available_cores() if workers is None else whole_number("workers", workers, 1)
    total = sum(
        len(rates) + (len(meta_rates) - 1) * runner.has_meta_rate(each) + len(seeds)
        for each in methods
    )
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(workers))
        bar = stack.enter_context(tqdm(total=total, unit="run", disable=not verbose))

        def run_all(runs, split):
            def run_one(run):
                done = runner.run(run, split)
                bar.update()
                return done

            return list(pool.map(run_one, runs))

        trial_budget = max(1, round(trial_share * budget))
        middle = rates[len(rates) // 2]
        trials = run_all(
            [
                ComparedRun(
                    method,
                    inner_rate=middle,
                    meta_rate=meta_rate,
                    seed=seeds[0],
                    budget=trial_budget,
                )
                for method in methods
                for meta_rate in (meta_rates if runner.has_meta_rate(method) else [None])
            ],
            "validation",
        )
        best = _best_by_method(trials)
        trials += run_all(
            [
                dataclasses.replace(found, inner_rate=rate, gradient_steps=0, evaluation=None)
                for found in best.values()
                for rate in rates
                if rate != middle
            ],
            "validation",
        )
        best = _best_by_method(trials)
        runs = run_all(
            [
                dataclasses.replace(
                    found, seed=seed, budget=budget, gradient_steps=0, evaluation=None
                )
                for found in best.values()
                for seed in seeds
            ],
            "test",
        )
    return Comparison(tuple(runs), tuple(trials))


class _Runner:
    """Makes the runs of a comparison, each at most once if there is a directory."""

    def __init__(self, tasks, model, methods, trainer, settings, steps):
        self.methods = methods
        self._tasks = tasks
        self._model = model
        self._trainer = trainer
        self._settings = settings
        self._steps = steps
        self._directory: pathlib.Path | None = None
        self._building = threading.Lock()  # Keras's random numbers are global
        probe = trainer(
            model=model(),
            **{"meta_optimizer": keras.optimizers.SGD(), **settings, "learner": NoMetaLearning()},
        )
        self._inner_optimizer = probe.problem.setup.inner_optimizer
        if self._steps is None:
            self._steps = probe.problem.setup.steps_per_task

    def has_meta_rate(self, method: str) -> bool:
        return method not in (_JOINT, _NONE)

    def inner_rates(self, factors: Sequence[float]) -> list[float | None]:
        rate = self._inner_optimizer.get_config()["learning_rate"]
        if not isinstance(rate, float):
            return [None]
        return [float(f"{factor * rate:.5g}") for factor in factors]  # Keras has it in float32

    def use_directory(self, directory: pathlib.Path, options: dict, seed: int) -> None:
        """Keeps runs in a directory, after a check that it is of the same comparison."""
        known = {
            "options": options,
            "methods": {name: describe(method) for name, (method, _) in self.methods.items()},
            "own_settings": {name: repr(own) for name, (_, own) in self.methods.items()},
            "inner_optimizer": describe(self._inner_optimizer),
            "tasks": describe_tasks(self._tasks(seed).train),
        }
        text = json.dumps(known, indent=1, sort_keys=True, default=repr) + "\n"
        file = directory / "comparison.json"
        if file.exists() and file.read_text() != text:
            raise CheckpointMismatchError(
                f"{directory} has the runs of another comparison, see {file}. Pass another "
                "directory, or the arguments of that one."
            )
        directory.mkdir(parents=True, exist_ok=True)
        _replace(file, text.encode())
        self._directory = directory

    def run(self, run: ComparedRun, split: str) -> ComparedRun:
        """Meta-trains and evaluates, or returns what the directory has."""
        file = checkpoints = None
        if self._directory:
            key = hashlib.sha256(repr((run, split)).encode()).hexdigest()[:12]
            name = f"{run.method} {split} {key}".replace(" ", "-")
            file, checkpoints = self._directory / f"{name}.run", self._directory / name
            if file.exists():
                return decode(file.read_bytes(), ComparedRun)
        done = self._run(run, split, checkpoints)
        if file and checkpoints:
            _replace(file, encode(done))
            shutil.rmtree(checkpoints, ignore_errors=True)
        return done

    def _run(self, run, split, checkpoints):
        splits = self._tasks(run.seed)
        trainer = self._build(run)
        setup = trainer.problem.setup
        meta_steps = max(1, run.budget // (setup.steps_per_task * setup.meta_batch_size))
        history: dict[str, list] = {}
        try:
            if run.method != _NONE:
                history = trainer.fit(
                    splits.train, meta_steps, checkpoint_dir=checkpoints, verbose=False
                ).history
        except MetaTrainingDivergedError:
            return run
        return dataclasses.replace(
            run,
            gradient_steps=int(sum(history.get("gradient_steps", [0]))),
            evaluation=trainer.evaluate(getattr(splits, split), self._steps),
        )

    def _build(self, run):
        learner, own = self.methods[run.method]
        rate = 1.0 if run.meta_rate is None else run.meta_rate
        inner_optimizer = type(self._inner_optimizer).from_config(
            self._inner_optimizer.get_config()
            | ({} if run.inner_rate is None else {"learning_rate": run.inner_rate})
        )
        with self._building:
            keras.utils.set_random_seed(run.seed)
            return self._trainer(
                model=self._model(),
                seed=run.seed,
                pool=1,
                **{
                    **self._settings,
                    **own,
                    "learner": learner,
                    "inner_optimizer": inner_optimizer,
                    "meta_optimizer": keras.optimizers.SGD(rate),
                },
            )


def _all_methods(learners, distribution) -> dict[str, tuple[Learner, Mapping[str, Any]]]:
    """Adds joint training and no pretraining to the methods."""
    if not isinstance(learners, Mapping):
        learners = {type(learner).__name__: learner for learner in learners}
    listed = getattr(distribution, "tasks", None)
    joint = (JointTraining(), {"task_layers": ()}) if listed is None else JointTraining(len(listed))
    methods = {**learners, _JOINT: joint, _NONE: NoMetaLearning()}
    return {
        name: method if isinstance(method, tuple) else (method, {})
        for name, method in methods.items()
    }


def _best_by_method(trials):
    best: dict[str, ComparedRun] = {}
    for trial in trials:
        if trial.method not in best or trial.error < best[trial.method].error:
            best[trial.method] = trial
    return best


def _replace(file, content):
    """Writes a file so that a crash leaves it whole or absent."""
    temporary = file.with_name(f"{file.name}.tmp")
    temporary.write_bytes(content)
    temporary.replace(file)


def _mean(values):
    values = list(values)
    return float(np.mean(values)) if values else float("inf")
