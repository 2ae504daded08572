"""Tests that the Python code of the README runs as printed."""

import pathlib
import re

import numpy as np
import pytest
import tensorflow as tf

import leap_tf

README = (pathlib.Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def run(marker, **namespace):
    (block,) = [block for block in BLOCKS if marker in block]
    exec(compile(block, "README.md", "exec"), namespace)
    return block, namespace


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_leap_optimizer_in_fifteen_lines(tmp_path):
    block, namespace = run("LeapOptimizer(keras.optimizers")
    assert len(block.strip().splitlines()) == 15
    assert (tmp_path / "initialization.keras").exists()
    assert int(namespace["optimizer"].meta_optimizer.iterations.numpy()) == 20


def test_meta_trainer(capsys):
    _, namespace = run("leap_tf.MetaTrainer(")
    assert namespace["after"].error < namespace["before"].error
    assert "learned" in capsys.readouterr().out
    _, adapted = run("leap_tf.adapt(", **namespace)
    found = float(capsys.readouterr().out)
    trainer, task = namespace["trainer"], adapted["new_task"]
    untrained = trainer.evaluate([task], steps=1).loss
    assert found < untrained
    assert pathlib.Path("adapted.keras").exists()


def test_comparison(capsys):
    import keras

    run("leap_tf.compare(", leap_tf=leap_tf, keras=keras)
    assert "no pretraining" in capsys.readouterr().out


def test_own_tasks():
    _, namespace = run("class SensorTask")
    import keras

    trainer = leap_tf.MetaTrainer(
        leap_tf.mlp(inputs=8),
        keras.losses.MeanSquaredError(),
        keras.optimizers.SGD(0.02),
        keras.optimizers.SGD(0.02),
        steps_per_task=3,
        meta_batch_size=2,
    )
    history = trainer.fit(namespace["machines"], 2, verbose=False)
    assert np.isfinite(history.history["loss"]).all()
    assert tf.data.experimental.cardinality(namespace["machines"].tasks[0].test_batches()) > 0


def test_every_python_block_is_run_here():
    markers = ("LeapOptimizer(keras.optimizers", "leap_tf.MetaTrainer(", "leap_tf.adapt(")
    markers += ("leap_tf.compare(", "class SensorTask")
    assert len(BLOCKS) == len(markers)


def test_all_public_names_exist():
    for name in leap_tf.__all__:
        assert hasattr(leap_tf, name)
