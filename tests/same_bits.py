"""Six short meta-trainings and one served adaptation whose results are recorded to the bit.

    python -m tests.same_bits                 print the results of the present code
    python -m tests.same_bits --record        put them into tests/data/same_bits.json

A change of the code that is meant to change no result must leave all of them as they are.
Convolutions and sums have other last digits on other processors, so there is a record for each
kind of machine. On a kind without one, `SMOOTH` runs are compared to 1e-5 with those of other
kinds. The rest amplify last digits: between the two kinds on record, figures differ by up to 13 %.
"""

import hashlib
import json
import pathlib
import platform
import re
import sys
import tempfile

import keras
import numpy as np
import pytest
import tensorflow as tf

RECORD = pathlib.Path(__file__).parent / "data" / "same_bits.json"
SUBSETS = pathlib.Path(__file__).parents[2] / "shared" / "tfds_subset"

_UNICODE = [
    "meta_train.meta_steps = 5",
    "MetaTrainer.steps_per_task = 8",
    "MetaTrainer.meta_batch_size = 4",
    'MetaTrainer.running_statistics = "fresh"',
]
CONFIGURED = {
    "unicode, Leap": ("unicode_cpu.gin", [*_UNICODE]),
    "unicode, Reptile": ("unicode_cpu.gin", [*_UNICODE, "MetaTrainer.learner = @Reptile()"]),
    "unicode, finetuning": (
        "unicode_cpu.gin",
        [
            *_UNICODE,
            "MetaTrainer.learner = @JointTraining()",
            "MetaTrainer.task_layers = ['head']",
            "meta/SGD.learning_rate = 1.0",
        ],
    ),
    "sinusoids, MAML": (
        "sinusoid.gin",
        [
            "MetaTrainer.learner = @MAML()",
            "MetaTrainer.steps_per_task = 5",
            "MetaTrainer.meta_batch_size = 4",
        ],
    ),
    "Multi-CV, HAT": (
        "multi_cv/cell_cpu.gin",
        [
            "MetaTrainer.learner = @HAT()",
            "HAT.tasks = 6",
            "HAT.steps_per_epoch = 6",
            "HAT.largest_scale = 40.0",
            "MetaTrainer.meta_batch_size = 1",
            "MetaTrainer.steps_per_task = 6",
        ],
    ),
}


SMOOTH = ("sinusoids, MAML", "served adapt", "colour bandit")


def fingerprint() -> str:
    """Returns the processor and the versions that decide the last digits."""
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    model = re.search(r"model name\s*:\s*(.*)", text)
    return "; ".join(
        [
            model[1] if model else platform.processor(),
            "AVX-512" if "avx512f" in text else "no AVX-512",
            f"tensorflow {tf.__version__}",
            f"keras {keras.__version__}",
            f"numpy {np.__version__}",
        ]
    )


def digest(arrays) -> str:
    """Returns the SHA-256 of arrays, in their order."""
    hashed = hashlib.sha256()
    for array in arrays:
        hashed.update(np.ascontiguousarray(array).tobytes())
    return hashed.hexdigest()


def summary(arrays) -> list[float]:
    """Returns a few numbers that tell weights apart where their bits may differ."""
    flat = np.concatenate([np.ravel(array).astype(np.float64) for array in arrays])
    return [float(np.linalg.norm(flat)), float(flat.mean()), float(np.abs(flat).max())]


def configured(name: str) -> dict:
    """Meta-trains one of `CONFIGURED` for five meta-steps and evaluates two tasks."""
    from leap_tf.experiments.config import configured_study, parse_configuration, read_configuration

    file, bindings = CONFIGURED[name]
    path = pathlib.Path(__file__).parents[1] / "gin_configs" / file
    parse_configuration(read_configuration([path], bindings))
    study = configured_study(data_dir=SUBSETS if "multi_cv" in file else None)
    study.trainer.fit(study.tasks.train, 5, verbose=False)
    tasks = study.tasks.test[:2]
    if file == "sinusoid.gin":  # the held-out tasks of the record, which came from another stream
        earlier = len(study.tasks.validation)
        tasks = study.tasks.train.sample(earlier + 2, np.random.default_rng([0, 0]))[-2:]
    evaluation = study.trainer.evaluate(tasks, steps=6)
    return _result(study.trainer.model.get_weights(), evaluation)


def adapt() -> dict:
    """Exports a small convolutional network and sends one `adapt` request."""
    import leap_tf
    from leap_tf.array_tasks import pixels_to_floats
    from tests.serving import exports

    trainer, make_task = exports.convolutional()
    with tempfile.TemporaryDirectory() as folder:
        leap_tf.export(trainer, f"{folder}/export", pixels_to_floats)
        served = tf.saved_model.load(f"{folder}/export/saved_model")
    request = exports.request(trainer, make_task())
    inputs = {name: tf.constant(value) for name, value in request.items()}
    answers = served.signatures["adapt_uint8"](**inputs)
    arrays = [answers[name].numpy() for name in sorted(answers)]
    return {"weights": digest(arrays), "figures": summary(arrays)}


def _result(weights, evaluation) -> dict:
    figures = [
        number
        for task in evaluation.tasks
        for number in (task.error, task.loss, task.path_length, task.area_under_error)
    ]
    curves = [array for task in evaluation.tasks for array in (task.training_losses,)]
    return {
        "weights": digest([*weights, *curves, np.array(figures)]),
        "figures": [*summary(weights), *map(float, figures)],
    }


def assert_as_recorded(name: str, found: dict) -> None:
    """Compares results with the recorded ones."""
    records = json.loads(RECORD.read_text())
    expected = records.get(fingerprint(), {}).get(name)
    if expected is None and name not in SMOOTH:
        pytest.skip(f"no run was recorded on a machine of this kind: {fingerprint()}")
    if expected is not None:
        assert found["weights"] == expected["weights"]
    for of_a_kind in records.values() if name in SMOOTH else ():
        figures = of_a_kind[name]["figures"]
        np.testing.assert_allclose(found["figures"], figures, rtol=1e-5, atol=1e-5)


def record(results: dict[str, dict]) -> None:
    """Replaces the results that are recorded for this kind of machine."""
    records = json.loads(RECORD.read_text())
    records[fingerprint()] = {**records.get(fingerprint(), {}), **results}
    RECORD.write_text(json.dumps(records, indent=1) + "\n")


def main():
    found = {name: configured(name) for name in CONFIGURED} | {"served adapt": adapt()}
    print(json.dumps(found, indent=1))
    if "--record" in sys.argv:
        record(found)


if __name__ == "__main__":
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(2)
    main()
