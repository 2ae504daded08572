"""The Multi-CV study as it is configured, on the real subsets, made small."""

import pathlib

import gin
import numpy as np
import pytest

from leap_tf.experiments import gin_registration

CONFIGURATIONS = pathlib.Path(__file__).parents[2] / "gin_configs" / "multi_cv"
SMALL = (
    "multi_cv_splits.share = 0.2",
    "multi_cv_splits.held_out = 'gtsrb'",
    "conv_net.filters = 4",
    "MetaTrainer.steps_per_task = 3",
)


@pytest.fixture(autouse=True)
def _no_configuration_left_behind():
    yield
    gin.clear_config()


def cells():
    gin_registration.read_configuration([CONFIGURATIONS / "table3_cpu.gin"])
    files, found = gin_registration.configured_cells()
    by_method = {cell.values["method"]: cell for cell in found}
    return [CONFIGURATIONS / file for file in files], by_method


@pytest.mark.parametrize("method", ["leap", "finetuning", "hat", "progressive", "none"])
def test_every_method_runs_on_all_subsets_and_repeats_to_the_bit(method, tfds_subset):
    outcomes = []
    for _ in range(2):
        files, by_method = cells()
        gin_registration.read_configuration(files, [*by_method[method].bindings, *SMALL])
        study = gin_registration.configured_study(data_dir=tfds_subset)
        trainer = study.trainer
        names = [task.name for task in study.tasks.train.tasks]
        assert len({*names, *(task.name for task in study.tasks.test)}) == 7
        visits = len(names) if trainer.learner.sequential else 1
        trainer.fit(study.tasks.train, 0 if method == "none" else visits, verbose=False)
        judged = trainer.evaluate(study.tasks.test, steps=5).tasks[0]
        assert judged.name == "gtsrb"
        assert judged.examples == 1978
        assert judged.training_losses[0] == pytest.approx(
            np.log(43), rel=0.5
        )  # 43 classes, not 100
        outcomes.append((judged.error, judged.loss, *judged.training_losses))
    assert outcomes[0] == outcomes[1]
