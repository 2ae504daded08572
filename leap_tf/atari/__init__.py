"""Leap over actor-critic agents on real Atari games (appendix H), with TF-Agents."""

from leap_tf.atari.legacy_keras import require_legacy_keras

require_legacy_keras()
