"""Six short meta-trainings and one served adaptation whose results are recorded to the bit.

    python -m tests.same_bits                 print the results of the present code
    python -m tests.same_bits --record        replace tests/data/same_bits.json by them

A change of the code that is meant to change no result must leave all of them as they are.
Convolutions and sums have other last digits on other processors, so the digests hold on the
recorded kind of machine only; elsewhere the figures are compared to 1e-5.
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


def fingerprint() -> str:
    """Returns the processor and the versions that decide the last digits."""
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    model = re.search(r"model name\s*:\s*(.*)", text)
    return "; ".join(
        [
            model[1] if model else platform.processor(),
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
    evaluation = study.trainer.evaluate(study.tasks.test[:2], steps=6)
    return _result(study.trainer.model.get_weights(), evaluation)


def adapt() -> dict:
    """Exports a small convolutional network and sends one `adapt` request."""
    import leap_tf
    from tests.serving import exports

    trainer, make_task = exports.convolutional()
    with tempfile.TemporaryDirectory() as folder:
        leap_tf.export(trainer, f"{folder}/export")
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
    record = json.loads(RECORD.read_text())
    expected = record["results"][name]
    if fingerprint() == record["machine"]:
        assert found["weights"] == expected["weights"]
    np.testing.assert_allclose(found["figures"], expected["figures"], rtol=1e-5, atol=1e-5)


def record(results: dict[str, dict]) -> None:
    """Replaces recorded results, and the kind of machine they hold for."""
    before = json.loads(RECORD.read_text())["results"] if RECORD.exists() else {}
    content = {"machine": fingerprint(), "results": {**before, **results}}
    RECORD.write_text(json.dumps(content, indent=1) + "\n")


def main():
    found = {name: configured(name) for name in CONFIGURED} | {"served adapt": adapt()}
    print(json.dumps(found, indent=1))
    if "--record" in sys.argv:
        record(found)


if __name__ == "__main__":
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(2)
    main()
