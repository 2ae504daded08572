"""A comparison of methods on a user's own tasks, at equal numbers of gradient steps."""

import dataclasses
import functools
import json
import pathlib
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from os import PathLike
from typing import Any
from urllib.parse import quote

import keras
import numpy as np
from tqdm.auto import tqdm

from leap_tf.errors import whole_number
from leap_tf.functional import copy_optimizer
from leap_tf.learners import JointTraining, Leap, Learner, NoMetaLearning, Reptile
from leap_tf.serialization import decode, encode, write_atomically
from leap_tf.tasks import TaskSplits, listed_tasks
from leap_tf.training import (
    CheckpointMismatchError,
    Evaluation,
    MetaTrainer,
    MetaTrainingDivergedError,
    available_cores,
)
from leap_tf.training.checkpoint import describe
from leap_tf.training.problem import describe_study
from leap_tf.training.sampling import plain

_Method = Learner | tuple[Learner, Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class ComparedRun:
    """A meta-training and its evaluation.

    Attributes:
        method, seed: its name, and the seed of initial weights, batches and task sampling.
        inner_rate: the learning rate on tasks; None if the optimizer has a schedule.
        meta_rate: the learning rate of the meta-optimizer; None for joint training and none.
        budget, gradient_steps: numbers of gradient steps that were allowed and made.
        evaluation: on the test tasks; on validation tasks in trials. None if training diverged.
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
        runs, trials: the meta-trainings with the chosen rates, for every method and seed, and
            those from which the rates were chosen, evaluated on validation tasks.
    """

    runs: tuple[ComparedRun, ...]
    trials: tuple[ComparedRun, ...]

    @property
    def methods(self) -> list[str]:
        """Names of the methods, the lowest held-out error first; for divergence, see `compare`."""
        errors = {run.method: self._errors(run.method) for run in self.runs}
        finite = [error for of in errors.values() for error in np.concatenate(of) if error >= 0]
        filled = functools.partial(np.nan_to_num, nan=max(finite, default=0.0))
        return sorted(errors, key=lambda name: np.mean([filled(e).mean() for e in errors[name]]))

    def to_dataframe(self):
        """Returns the table as a `pandas.DataFrame` with a row for every method, best first.

        Columns: `inner_rate`, `meta_rate`, `seeds`, `gradient_steps` (of one run), `error` (mean
        held-out error of what did not diverge), `interval` (1.96 standard errors over the tasks),
        `training_error` (of the last 50 batches), `area` (under it, in percent) and `diverged`.

        Raises:
            ImportError: pandas is not installed.
        """
        import pandas as pd

        return pd.DataFrame(self._rows()).set_index("method")

    def plot(self, axes=None):
        """Draws the mean training error by gradient step on test tasks, a curve for every method.

        Args:
            axes: the `matplotlib.axes.Axes` to draw on and to return; new ones by default.

        Raises:
            ImportError: Matplotlib is not installed.
        """
        import matplotlib.pyplot as plt

        axes = axes or plt.subplots(figsize=(6, 4), layout="constrained")[1]
        for method in self.methods:
            found = [run.evaluation.tasks for run in self._of(method) if run.evaluation]
            curves = [task.training_errors for task in sum(found, ()) if not task.diverged]
            steps = max(map(len, curves), default=0)
            padded = [np.pad(curve, (0, steps - len(curve)), mode="edge") for curve in curves]
            if padded:
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
            for kind in ("inner_rate", "meta_rate"):
                row[kind] = "–" if row[kind] is None else f"{row[kind]:.4g}"
            row["error"] = f"{row['error']:.4f} ± {row['interval']:.4f}"
            form = "{method:16}{inner_rate:>11}{meta_rate:>11}{gradient_steps:>10} {error:>18}"
            form += " {training_error:>9.4f} {area:>7.2f}{diverged:>10}"
            lines.append(form.format(**row))
        lines += ["± is 1.96 standard errors over the tasks.", self._conclusion()]
        if at_end := ", ".join(self._rates_at_an_end()):
            lines.append(f"The best rate is the lowest or highest tried: {at_end}.")
        return "\n".join(lines)

    def _of(self, method):
        return [run for run in self.runs if run.method == method]

    def _errors(self, method):
        """For each run the held-out errors of its tasks, NaN for what diverged."""
        found = [run.evaluation.tasks if run.evaluation else () for run in self._of(method)]
        errors = [[np.nan if task.diverged else task.error for task in tasks] for tasks in found]
        return [np.array(each or [np.nan], float) for each in errors]

    def _by_task(self, method):
        """[tasks] mean over the seeds of the held-out error, NaN where it always diverged."""
        errors = self._errors(method) or [np.array([np.nan])]
        tasks = max(map(len, errors))
        errors = [np.pad(e, (0, tasks - len(e)), constant_values=np.nan) for e in errors]
        return np.ma.masked_invalid(errors).mean(axis=0).filled(np.nan)

    def _rows(self):
        for method in self.methods:
            runs = self._of(method)
            found = [run.evaluation for run in runs if run.evaluation]
            yield {
                "method": method,
                "inner_rate": runs[0].inner_rate,
                "meta_rate": runs[0].meta_rate,
                "seeds": len(runs),
                "gradient_steps": runs[0].gradient_steps,
                "error": _mean(run.error for run in runs if np.isfinite(run.error)),
                "interval": _mean_over_tasks(self._by_task(method))[1],
                "training_error": _mean(each.mean("final_training_error") for each in found),
                "area": _mean(each.area_under_error for each in found),
                "diverged": int(sum(np.isnan(errors).sum() for errors in self._errors(method))),
            }

    def _conclusion(self):
        best = self.methods[0]
        if np.isnan(self._by_task(best)).all():
            return "Every method diverged."
        if best in (_JOINT, _NONE):
            return f"No meta-learner has a lower held-out error than {best!r} on these tasks."
        mean, half = _mean_over_tasks(self._by_task(_JOINT) - self._by_task(best))
        found = f"{best!r} has the lowest held-out error"
        if not np.isfinite(mean):
            return f"{found}. {_JOINT!r} diverged."
        found += f", {mean:.4f} ± {half:.4f} below {_JOINT!r} on the same tasks"
        return f"{found}." if mean > half else f"{found}: not settled by these tasks."

    def _rates_at_an_end(self):
        for method in self.methods:
            for kind in ("inner_rate", "meta_rate"):
                tried = {getattr(run, kind) for run in self.trials if run.method == method}
                chosen = getattr(self._of(method)[0], kind)
                if len(tried) > 1 and chosen in (min(tried), max(tried)):
                    yield f"{kind.replace('_', ' ')} of {method!r}"


_JOINT, _NONE = "joint training", "no pretraining"


def compare(
    tasks: TaskSplits | Callable[..., TaskSplits],
    model: Callable[[], keras.Model],
    *,
    budget: int,
    learners: Mapping[str, _Method] | Sequence[Learner] = (Leap(scaled=True), Reptile()),
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

    Every method makes as many whole meta-steps as the budget of gradient steps has, at least one.
    Its rates are chosen in short trials: those with the fewest diverged validation tasks and, among
    them, the lowest held-out error; first the meta rate, then the inner rate. The test tasks are
    used once, by the runs with the chosen rates. Where methods are ranked, what diverged counts as
    the largest error of any task. Joint training and no pretraining are always among the methods,
    so `stopping` cannot be used. If `task_layers` names a head and the training tasks are a list,
    joint training has a head for every task, else one model for all.

    Args:
        tasks: the splits, or a function that returns them, called as tasks(seed=…).
        model: returns a new built model. It is called after the seed is set.
        budget, trial_share: gradient steps of one meta-training, and the share that a trial gets.
        learners: the methods, by name. A method may come with `MetaTrainer` arguments of its own,
            for example `{"MAML": (leap_tf.MAML(), {"steps_per_task": 5})}`, except optimizers.
        inner_factors: the inner rates, as factors of the optimizer's. A schedule stays as it is.
        meta_rates: those of SGD to try. The default suits Reptile and `Leap(scaled=True)`.
        seeds: of the runs; the trials use the first.
        steps: gradient steps on evaluation tasks; `steps_per_task` by default.
        directory: for finished runs and checkpoints, from which the same call continues.
        workers: runs at the same time, each on one thread; one per core by default.
        verbose: whether to show progress.
        trainer, **settings: builds a trainer from the arguments of `MetaTrainer`, and those of them
            that are the same for all methods, such as `loss`.

    Raises:
        TypeError, ValueError: an argument is wrong, or a method cannot be used on these tasks.
        CheckpointMismatchError: the directory belongs to another comparison.

    Example:

        >>> import keras, leap_tf
        >>> splits = leap_tf.sinusoid_splits(validation_tasks=2, test_tasks=3)
        >>> comparison = leap_tf.compare(
        ...     splits, leap_tf.mlp, budget=40, learners=[leap_tf.Leap()], meta_rates=[0.1],
        ...     inner_factors=[1], loss="mse", inner_optimizer=keras.optimizers.SGD(0.01),
        ...     steps_per_task=5, meta_batch_size=2, verbose=False
        ... )
        >>> sorted(comparison.methods)
        ['Leap', 'joint training', 'no pretraining']
    """
    whole_number("budget", budget, 1)
    if not (seeds and inner_factors and meta_rates):
        raise ValueError("seeds, inner_factors and meta_rates must not be empty.")
    if not 0.0 < trial_share <= 1.0:
        raise ValueError(f"trial_share must be above 0 and at most 1. Received: {trial_share}.")
    if not (callable(tasks) or isinstance(tasks, TaskSplits)):
        kind = type(tasks).__name__
        raise TypeError(f"tasks must be TaskSplits or a function for them. Received a {kind}.")
    if isinstance(model, keras.Model):
        raise TypeError("model must be a function that returns a new model, not a model.")
    splits = tasks if callable(tasks) else lambda seed: tasks
    methods = _all_methods(learners, splits(seed=seeds[0]).train, settings)
    runner = _Runner(splits, model, methods, trainer, settings, steps)
    rates = runner.inner_rates(inner_factors)
    if directory is not None:
        search = {"inner_rates": rates, "meta_rates": list(meta_rates), "trial_share": trial_share}
        runner.use_directory(pathlib.Path(directory), {"budget": budget} | search, seeds[0])
    workers = available_cores() if workers is None else whole_number("workers", workers, 1)
    has_meta_rate = {method: method not in (_JOINT, _NONE) for method in methods}
    runs_of_method = len(rates) + len(seeds)
    total = sum(runs_of_method + (len(meta_rates) - 1) * has for has in has_meta_rate.values())
    with (
        ThreadPoolExecutor(workers) as pool,
        tqdm(total=total, unit="run", disable=not verbose) as bar,
    ):

        def run_all(runs, split):
            futures = [pool.submit(runner.run, run, split) for run in runs]
            try:
                for future in futures:
                    yield future.result()
                    bar.update()
            except BaseException:  # KeyboardInterrupt, too
                pool.shutdown(wait=False, cancel_futures=True)
                runner.stop()
                raise

        middle, share = rates[len(rates) // 2], max(1, round(trial_share * budget))
        first = [
            ComparedRun(method, inner_rate=middle, meta_rate=rate, seed=seeds[0], budget=share)
            for method, has in has_meta_rate.items()
            for rate in (meta_rates if has else [None])
        ]
        trials = list(run_all(first, "validation"))
        second = [
            dataclasses.replace(found, inner_rate=rate, gradient_steps=0, evaluation=None)
            for found in _best_by_method(trials)
            for rate in rates
            if rate != middle
        ]
        trials += run_all(second, "validation")
        final = [
            dataclasses.replace(found, seed=seed, budget=budget, gradient_steps=0, evaluation=None)
            for found in _best_by_method(trials)
            for seed in seeds
        ]
        return Comparison(tuple(run_all(final, "test")), tuple(trials))


class _Runner:
    """Makes the runs of a comparison, each at most once if there is a directory."""

    def __init__(self, tasks, model, methods, trainer, settings, steps):
        self.methods = methods
        self._tasks, self._model, self._trainer, self._settings = tasks, model, trainer, settings
        self._directory: pathlib.Path | None = None
        self._building = threading.Lock()  # Keras's random numbers are global
        self._running: dict[ComparedRun, MetaTrainer] = {}
        self._stopped = False
        self._probe = probe = trainer(model=model(), **{**settings, "learner": NoMetaLearning()})
        self._inner_optimizer = probe.problem.setup.inner_optimizer
        self._steps = probe.problem.setup.steps_per_task if steps is None else steps

    def inner_rates(self, factors: Sequence[float]) -> list[float | None]:
        rate = self._inner_optimizer.get_config()["learning_rate"]
        if not isinstance(rate, float):
            return [None]
        return [float(f"{factor * rate:.5g}") for factor in factors]  # Keras has it in float32

    def use_directory(self, directory: pathlib.Path, options: dict, seed: int) -> None:
        """Keeps runs in a directory, after a check that it is of the same comparison."""
        methods = {name: [describe(each), plain(own)] for name, (each, own) in self.methods.items()}
        known = {"options": options, "steps": self._steps, "methods": methods}
        known |= describe_study(self._probe.problem, self._tasks(seed=seed))
        text = json.dumps(known, indent=1, sort_keys=True, default=repr) + "\n"
        file = directory / "comparison.json"
        if file.exists() and file.read_text() != text:
            what = f"{directory} has the runs of another comparison, see {file}. Pass its arguments"
            raise CheckpointMismatchError(f"{what}, or another directory.")
        directory.mkdir(parents=True, exist_ok=True)
        write_atomically(file, text)
        self._directory = directory

    def run(self, run: ComparedRun, split: str) -> ComparedRun:
        """Meta-trains and evaluates, or returns what the directory has."""
        file = checkpoints = None
        if self._directory:
            parts = run.method, split, run.inner_rate, run.meta_rate, run.seed, run.budget
            name = quote("_".join(map(str, parts)), safe=" ")
            file, checkpoints = self._directory / f"{name}.run", self._directory / name
            if file.exists():
                return decode(file.read_bytes(), ComparedRun)
        done = self._run(run, split, checkpoints)
        if file and checkpoints:
            write_atomically(file, encode(done))
            shutil.rmtree(checkpoints, ignore_errors=True)
        return done

    def stop(self) -> None:
        """Ends the runs of other threads after the tasks they are at, with a checkpoint."""
        self._stopped = True
        for trainer in list(self._running.values()):
            trainer.request_stop()

    def _run(self, run, split, checkpoints):
        splits = self._tasks(seed=run.seed)
        trainer = self._running[run] = self._build(run)
        if self._stopped:
            trainer.request_stop()
        setup = trainer.problem.setup
        meta_steps = max(1, run.budget // (setup.steps_per_task * setup.meta_batch_size))
        history: dict[str, list] = {"gradient_steps": [0]}
        try:
            if run.method != _NONE:
                history = trainer.fit(
                    splits.train, meta_steps, checkpoint_dir=checkpoints, verbose=False
                ).history
        except MetaTrainingDivergedError:
            return run
        finally:
            del self._running[run]
        if trainer.was_stopped:
            raise KeyboardInterrupt
        evaluation = trainer.evaluate(getattr(splits, split), self._steps)
        steps = int(sum(history["gradient_steps"]))
        return dataclasses.replace(run, gradient_steps=steps, evaluation=evaluation)

    def _build(self, run):
        learner, own = self.methods[run.method]
        rate = 1.0 if run.meta_rate is None else run.meta_rate
        changes = {} if run.inner_rate is None else {"learning_rate": run.inner_rate}
        of_run = {
            "learner": learner,
            "inner_optimizer": copy_optimizer(self._inner_optimizer, **changes),
            "meta_optimizer": keras.optimizers.SGD(rate),
        } | {"seed": run.seed, "pool": 1}
        with self._building:
            keras.utils.set_random_seed(run.seed)
            return self._trainer(model=self._model(), **{**self._settings, **own, **of_run})


def _all_methods(learners, distribution, settings) -> dict[str, tuple[Learner, Mapping[str, Any]]]:
    """Adds joint training and no pretraining to the methods."""
    if not isinstance(learners, Mapping):
        names = [type(learner).__name__ for learner in learners]
        if len({*names}) < len(names):
            raise ValueError(f"Learners of one class, {names}, need names: pass a dictionary.")
        learners = dict(zip(names, learners))
    if taken := {_JOINT, _NONE} & {*learners}:
        raise ValueError(f"compare() adds {sorted(taken)} itself. Give your methods other names.")
    listed = listed_tasks(distribution)
    joint = (JointTraining(), {"task_layers": ()}) if listed is None else JointTraining(len(listed))
    given = {**learners, _JOINT: joint, _NONE: NoMetaLearning()}.items()
    found = {name: each if isinstance(each, tuple) else (each, {}) for name, each in given}
    own = {name for _, options in found.values() for name in options}
    reserved = {*own, *settings} & {"learner", "meta_optimizer", "seed", "pool"}
    if taken := reserved | (own & {"inner_optimizer"}):
        raise ValueError(
            f"compare() sets {sorted(taken)} itself: from `learners`, `seeds`, `workers`, "
            "`meta_rates` of SGD and `inner_factors` of one inner_optimizer for all methods."
        )
    return found


def _best_by_method(trials):
    def rank(trial):
        diverged = len(trial.evaluation.diverged) if trial.evaluation else float("inf")
        return diverged, trial.error

    best: dict[str, ComparedRun] = {}
    for trial in sorted(trials, key=rank):
        best.setdefault(trial.method, trial)
    return [best[method] for method in dict.fromkeys(trial.method for trial in trials)]


def _mean_over_tasks(values):
    """Returns the mean and 1.96 standard errors of values by task."""
    values = values[np.isfinite(values)]
    deviation = values.std(ddof=1) if len(values) > 1 else np.nan
    return _mean(values), float(1.96 * deviation / np.sqrt(len(values) or 1))


def _mean(values):
    values = list(values)
    return float(np.mean(values)) if values else float("inf")
