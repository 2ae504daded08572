"""`leap_tf.compare`: which method pays on my tasks?"""

import dataclasses

import keras
import matplotlib
import numpy as np
import pytest
import tensorflow as tf

import leap_tf
from leap_tf.comparison import ComparedRun, Comparison, _best_by_method, _Runner
from leap_tf.functional import copy_optimizer

matplotlib.use("Agg")
CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def sinusoids(**options):
    arguments = {
        "tasks": leap_tf.sinusoid_splits(examples=20, validation_tasks=2, test_tasks=3),
        "model": lambda: leap_tf.mlp(hidden=[6]),
        "learners": {"Leap": leap_tf.Leap()},
        "budget": 24,
        "inner_factors": [0.5, 1.0],
        "meta_rates": [0.01, 0.02],
        "trial_share": 0.5,
        "loss": "mse",
        "inner_optimizer": keras.optimizers.SGD(0.02),
        "steps_per_task": 3,
        "meta_batch_size": 2,
        "verbose": False,
    }
    return leap_tf.compare(**{**arguments, **options})


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    directory = tmp_path_factory.mktemp("comparison")
    return directory, sinusoids(directory=directory, workers=2, seeds=[0, 1])


def test_every_method_makes_the_same_steps_and_is_evaluated_on_all_test_tasks(kept):
    _, comparison = kept
    assert sorted(comparison.methods) == ["Leap", "joint training", "no pretraining"]
    for run in comparison.runs:
        assert run.gradient_steps == (0 if run.method == "no pretraining" else 24)
        assert len(run.evaluation.tasks) == 3
    assert {(run.method, run.seed) for run in comparison.runs} == {
        (method, seed) for method in comparison.methods for seed in (0, 1)
    }


def test_rates_are_those_of_the_best_trial_on_validation_tasks(kept):
    _, comparison = kept
    assert [run.gradient_steps for run in comparison.trials if run.method == "Leap"] == [12] * 3
    for run in comparison.runs:
        trials = [trial for trial in comparison.trials if trial.method == run.method]
        best = min(trials, key=lambda trial: trial.error)
        assert (run.inner_rate, run.meta_rate) == (best.inner_rate, best.meta_rate)
        assert len(best.evaluation.tasks) == 2


def test_a_run_is_what_a_trainer_of_its_rates_does(kept):
    _, comparison = kept
    run = next(run for run in comparison.runs if run.method == "Leap" and run.seed == 1)
    splits = leap_tf.sinusoid_splits(examples=20, validation_tasks=2, test_tasks=3)
    keras.utils.set_random_seed(1)
    trainer = leap_tf.MetaTrainer(
        leap_tf.mlp(hidden=[6]),
        "mse",
        keras.optimizers.SGD(run.inner_rate),
        keras.optimizers.SGD(run.meta_rate),
        steps_per_task=3,
        meta_batch_size=2,
        seed=1,
    )
    trainer.fit(splits.train, 4, verbose=False)
    assert trainer.evaluate(splits.test).error == run.error


def test_the_same_call_continues_and_another_is_refused(kept, monkeypatch):
    directory, comparison = kept
    with monkeypatch.context() as patch:
        patch.setattr(leap_tf.MetaTrainer, "fit", None)  # nothing is trained again
        again = sinusoids(directory=directory, workers=1, seeds=[0, 1])
    assert str(again) == str(comparison)
    lost = next(file for file in directory.glob("Leap_test_*.run"))
    content = lost.read_bytes()
    lost.unlink()
    sinusoids(directory=directory, workers=1, seeds=[0, 1])
    assert lost.read_bytes() == content
    splits = leap_tf.sinusoid_splits(examples=20, validation_tasks=2, test_tasks=4)
    for other in (
        {"budget": 30},
        {"learners": {"Leap": leap_tf.Leap(distance="energy")}},
        {"tasks": leap_tf.TaskSplits(splits.train, splits.validation, splits.test[1:])},
        {"model": lambda: leap_tf.mlp(hidden=[6], activation="tanh")},
        {"evaluation": leap_tf.EvaluationConfig(transductive=True)},
        {"running_statistics": "fresh"},
    ):
        with pytest.raises(leap_tf.CheckpointMismatchError, match=r"comparison\.json"):
            sinusoids(directory=directory, seeds=[0, 1], **other)


def test_table_and_curves(kept):
    _, comparison = kept
    table = comparison.to_dataframe()
    assert list(table.index) == comparison.methods
    assert table["error"].is_monotonic_increasing
    for method in comparison.methods:
        errors = [run.error for run in comparison.runs if run.method == method]
        assert table.loc[method, "error"] == pytest.approx(np.mean(errors))
        assert f"{np.mean(errors):.4f}" in str(comparison)
    lines = comparison.plot().lines
    assert [line.get_label() for line in lines] == comparison.methods
    assert len(lines[0].get_xdata()) == 3


def evaluated(*errors):
    return leap_tf.Evaluation(
        tuple(
            leap_tf.TaskEvaluation(
                name=str(index),
                error=error,
                loss=error,
                examples=1,
                training_errors=np.full(4, error),
                training_losses=np.full(4, error),
                path_length=1.0,
                path_energy=1.0,
                parameters=1,
                finite=True,
            )
            for index, error in enumerate(errors)
        )
    )


def run_of(method, evaluation, meta_rate=None):
    settings = {"inner_rate": 0.1, "seed": 0, "budget": 1, "gradient_steps": 1}
    return ComparedRun(method, meta_rate=meta_rate, evaluation=evaluation, **settings)


def test_the_conclusion_is_about_differences_by_task():
    """Differences .2, .3 and .4: mean .3, half width 1.96 × .1 / √3 = .1132."""
    runs = [
        run_of("Leap", evaluated(0.1, 0.2, 0.3)),
        run_of("joint training", evaluated(0.3, 0.5, 0.7)),
        run_of("diverged", None),
    ]
    text = str(Comparison(tuple(runs), ()))
    assert "0.3000 ± 0.1132 below 'joint training' on the same tasks." in text
    assert text.index("\njoint training") < text.index("\ndiverged")
    runs[0] = run_of("Leap", evaluated(0.1, 0.5, 0.7))
    assert "0.0667 ± 0.1307 below 'joint training' on the same tasks: not settled" in str(
        Comparison(tuple(runs), ())
    )
    runs[1] = run_of("joint training", evaluated(0.0, 0.1, 0.1))
    text = str(Comparison(tuple(runs), ()))
    assert "No meta-learner has a lower held-out error than 'joint training'" in text


def test_what_diverged_counts_as_the_largest_error():
    """Leap's mean over all tasks is (0 + 5 + 5) / 3 = 3.3, that of the task that did not is 0."""
    runs = [
        run_of("Leap", evaluated(0.0, np.inf, np.inf)),
        run_of("joint training", evaluated(1.0, 2.0, 5.0)),
        run_of("no pretraining", evaluated(3.0, 3.0, 3.0)),
    ]
    assert Comparison(tuple(runs), ()).methods == ["joint training", "no pretraining", "Leap"]
    assert "Every method diverged" in str(Comparison((run_of("Leap", None),), ()))
    trials = [
        run_of("Leap", evaluated(0.0, np.inf), 1.0),
        run_of("Leap", evaluated(4.0, 4.0), 0.3),
        run_of("Leap", evaluated(3.0, 3.0), 0.1),
        run_of("Leap", None, 3.0),
    ]
    [best] = _best_by_method(trials)
    assert best.meta_rate == 0.1


def test_seeds_may_have_different_numbers_of_test_tasks():
    runs = [run_of(name, evaluated(*errors)) for name, errors in (("a", (1, 2)), ("a", (3, 4, 5)))]
    assert "2.7500" in str(Comparison(tuple(runs), ()))


def test_rates_at_the_end_of_their_range_are_named():
    trials = [run_of("Leap", evaluated(rate), rate) for rate in (0.1, 0.3, 1.0)]
    for chosen, is_named in ((0.1, True), (0.3, False)):
        run = run_of("Leap", evaluated(0.5), chosen)
        text = str(Comparison((run,), tuple(trials)))
        assert ("meta rate of 'Leap'" in text) == is_named


def labelled(name, classes, seed):
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(24, 4)).astype(np.float32)
    examples = inputs, rng.integers(classes, size=24)
    return leap_tf.ArrayTask(name, examples, examples, batch_size=8, classes=classes)


def test_a_method_with_settings_of_its_own_and_heads_for_joint_training():
    tasks = [labelled(str(index), 2 + index % 2, index) for index in range(4)]
    splits = leap_tf.TaskSplits(leap_tf.FiniteTasks(tasks[:2]), tasks[2:3], tasks[3:])
    comparison = sinusoids(
        tasks=splits,
        model=lambda: keras.Sequential(
            [keras.layers.Input((4,)), keras.layers.Dense(5), keras.layers.Dense(3, name="head")]
        ),
        loss=CROSS_ENTROPY,
        learners={"FOMAML": (leap_tf.FOMAML(), {"steps_per_task": 1})},
        task_layers=["head"],
        inner_factors=[1.0],
        meta_rates=[0.1],
        steps=5,
    )
    for run in comparison.runs:
        assert len(run.evaluation.tasks[0].training_errors) == 5
    made = {run.method: run.gradient_steps for run in comparison.runs}
    assert made == {"FOMAML": 24, "joint training": 24, "no pretraining": 0}


def test_an_optimizer_with_a_schedule_keeps_it():
    schedule = keras.optimizers.schedules.CosineDecay(0.05, 10)
    comparison = sinusoids(inner_optimizer=keras.optimizers.SGD(schedule), meta_rates=[0.01])
    assert {run.inner_rate for run in comparison.runs} == {None}


def test_exclusions_from_weight_decay_stay():
    optimizer = keras.optimizers.AdamW(0.1, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    copied = copy_optimizer(optimizer, learning_rate=0.2)
    assert float(copied.learning_rate) == pytest.approx(0.2)
    used = {v.path: copied._use_weight_decay(v) for v in leap_tf.mlp(hidden=[2]).weights}
    assert used == {path: "bias" not in path for path in used}
    assert len(set(used.values())) == 2


def test_unusable_arguments_are_refused():
    for arguments in ({"budget": 0}, {"seeds": []}, {"trial_share": 0.0}, {"workers": 0}):
        with pytest.raises(ValueError, match=next(iter(arguments))):
            sinusoids(**arguments)
    settings = {"budget": 10, "loss": "mse", "inner_optimizer": "sgd"}
    splits = leap_tf.sinusoid_splits(validation_tasks=1, test_tasks=1)
    with pytest.raises(TypeError, match="tasks must be TaskSplits.*Received a list"):
        leap_tf.compare([*splits.test], leap_tf.mlp, **settings)
    for arguments, name in (
        ({"seed": 7}, "'seed'"),
        ({"meta_optimizer": keras.optimizers.Adam()}, "'meta_optimizer'"),
        (
            {"learners": {"MAML": (leap_tf.MAML(), {"inner_optimizer": "adam"})}},
            "'inner_optimizer'",
        ),
    ):
        with pytest.raises(ValueError, match=rf"compare\(\) sets \[{name}\] itself"):
            leap_tf.compare(splits, leap_tf.mlp, **arguments, **settings)
    with pytest.raises(ValueError, match="of one class.*pass a dictionary"):
        leap_tf.compare(splits, leap_tf.mlp, learners=[leap_tf.Leap()] * 2, **settings)
    for name in ("joint training", "no pretraining"):
        with pytest.raises(ValueError, match=rf"adds \['{name}'\] itself.*other names"):
            leap_tf.compare(splits, leap_tf.mlp, learners={name: leap_tf.Leap()}, **settings)
    with pytest.raises(TypeError, match="model must be a function"):
        leap_tf.compare(splits, leap_tf.mlp(), **settings)
    with pytest.raises(TypeError, match=r"such as Reptile\(\). Received: 'reptile'"):
        leap_tf.compare(splits, leap_tf.mlp, learners=["reptile"], **settings)


def test_names_that_differ_in_a_space_have_runs_of_their_own(tmp_path):
    learners = {"a b": leap_tf.Leap(), "a-b": leap_tf.Reptile()}
    options = {"inner_factors": [1.0], "meta_rates": [0.01], "directory": tmp_path}
    comparison = sinusoids(learners=learners, **options)
    assert {run.method for run in comparison.runs} == {
        *learners,
        "joint training",
        "no pretraining",
    }


def test_a_comparison_with_own_functions_continues_in_another_process(tmp_path):
    def error(targets, outputs):
        return tf.abs(targets - outputs)[:, 0]

    own = {"evaluation": leap_tf.EvaluationConfig(error_fn=error)}
    sinusoids(learners={"Leap": (leap_tf.Leap(), own)}, directory=tmp_path, budget=6)
    assert " at 0x" not in (tmp_path / "comparison.json").read_text()


def test_a_run_that_is_built_after_ctrl_c_stops_at_once():
    splits = leap_tf.sinusoid_splits(validation_tasks=1, test_tasks=1)
    inner = keras.optimizers.SGD(0.02)
    runner = _Runner(
        lambda seed: splits,
        leap_tf.mlp,
        {"Leap": (leap_tf.Leap(), {})},
        leap_tf.MetaTrainer,
        {"loss": "mse", "inner_optimizer": inner, "steps_per_task": 2, "meta_batch_size": 1},
        None,
    )
    runner.stop()
    with pytest.raises(KeyboardInterrupt):
        runner.run(
            ComparedRun("Leap", inner_rate=0.02, meta_rate=0.1, seed=0, budget=10**9), "test"
        )


def test_a_meta_training_that_diverged_is_counted_and_left_out_of_the_mean(kept):
    run = next(run for run in kept[1].runs if run.method == "Leap")
    lost = dataclasses.replace(run, seed=7, evaluation=None)
    row = Comparison((run, lost), ()).to_dataframe().loc["Leap"]
    assert row["error"] == run.error
    assert row["diverged"] == 1
