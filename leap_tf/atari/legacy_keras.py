"""What TF-Agents needs of the process, checked before it fails in ways that are hard to read.

tf-agents 0.19 was written for Keras 2. With TF_USE_LEGACY_KERAS=1, `tf.keras` is that Keras, while
`import keras` still is Keras 3, which the rest of this library uses; the two live side by side.
"""

import contextlib
import importlib.util
import io
import warnings

import tensorflow as tf


def require_legacy_keras() -> None:
    """Imports TF-Agents, or says why that cannot be.

    Raises:
        ImportError: the extra is not installed, or `tf.keras` is Keras 3.
    """
    missing = [
        name for name in ("tf_agents", "tf_keras", "ale_py") if not importlib.util.find_spec(name)
    ]
    if missing:
        raise ImportError(
            f"leap_tf.atari needs {', '.join(missing)}: install the extra with "
            "`pip install --no-deps -r requirements-atari.txt`."
        )
    if not tf.keras.layers.Layer.__module__.startswith("tf_keras"):
        raise ImportError(
            "leap_tf.atari needs TF_USE_LEGACY_KERAS=1 in the environment before TensorFlow is "
            "imported: set it in the shell, or in os.environ at the very top of the program."
        )
    # Old gym asks on standard error to be replaced; TF-Agents needs it and nothing here uses it.
    with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        importlib.import_module("tf_agents.agents")
