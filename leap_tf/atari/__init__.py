"""Leap over actor-critic agents on real Atari games (appendix H), with TF-Agents.

tf-agents 0.19 needs Keras 2. With TF_USE_LEGACY_KERAS=1, `tf.keras` is Keras 2 and `import keras`
still is Keras 3, which the rest of this library uses. The requirements are checked here because
TF-Agents' own errors do not say what is missing.
"""

import contextlib
import importlib.util
import io
import warnings

import tensorflow as tf

_missing = [
    name
    for name in ("tf_agents", "tf_keras", "ale_py", "cv2")
    if not importlib.util.find_spec(name)
]
if _missing:
    raise ImportError(
        f"leap_tf.atari needs {', '.join(_missing)}: install the extra with "
        "`pip install --no-deps -r requirements-atari.txt`."
    )
if not tf.keras.layers.Layer.__module__.startswith("tf_keras"):
    raise ImportError(
        "leap_tf.atari needs TF_USE_LEGACY_KERAS=1 in the environment before TensorFlow is "
        "imported: set it in the shell, or in os.environ at the very top of the program."
    )
# Gym, which TF-Agents imports, prints a deprecation notice. Nothing here uses Gym.
with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
    warnings.simplefilter("ignore")
    importlib.import_module("tf_agents.agents")

from leap_tf.atari.actor_critic import ActorCriticLoss, RMSProp, actor_critic, mnih_2013
from leap_tf.atari.catch import CatchEnvironment, catch_encoder
from leap_tf.atari.environments import (
    AtariEnvironment,
    Episode,
    ScreenEnvironment,
    available_games,
    flavours,
)
from leap_tf.atari.evaluation import GameEvaluation, GameEvaluations
from leap_tf.atari.problem import AtariProblem, EnvironmentPool, Game, games
from leap_tf.atari.tf_agents import ActorCriticAgent, ActorCriticNetwork, ActorCriticPolicy

# fmt: off
__all__ = [
    "ActorCriticAgent", "ActorCriticLoss", "ActorCriticNetwork", "ActorCriticPolicy",
    "AtariEnvironment", "AtariProblem", "CatchEnvironment", "EnvironmentPool", "Episode", "Game",
    "GameEvaluation", "GameEvaluations", "RMSProp", "ScreenEnvironment", "actor_critic",
    "available_games", "catch_encoder", "flavours", "games", "mnih_2013",
]
# fmt: on
