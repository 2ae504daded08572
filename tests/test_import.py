"""`import leap_tf` needs nothing of the extras."""

import subprocess
import sys

# Not absl, which TensorFlow itself imports.
SCRIPT = """
import sys

optional = "tensorflow_datasets matplotlib PIL jinja2 gin pandas ray scipy tf_agents".split()
for name in optional:
    sys.modules[name] = None  # importing it raises ImportError

import keras
import leap_tf

present = {name.split(".")[0] for name, module in sys.modules.items() if module is not None}
assert not present & set(optional), present & set(optional)
assert leap_tf.configurable(name="other")(leap_tf.mlp) is leap_tf.mlp
SGD = keras.optimizers.SGD
trainer = leap_tf.MetaTrainer(leap_tf.mlp(), keras.losses.MeanSquaredError(), SGD(0.1), SGD(0.1))
splits = leap_tf.sinusoid_splits(test_tasks=1)
assert len(trainer.evaluate(splits.test, steps=2).tasks) == 1
import leap_tf.cluster
try:
    leap_tf.datasets
except ImportError as error:
    assert "tensorflow_datasets" in str(error), error
else:
    raise AssertionError("leap_tf.datasets was imported without TensorFlow Datasets")
"""


def test_the_library_works_without_its_extras():
    result = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
