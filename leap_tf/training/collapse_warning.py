"""Says when meta-training has collapsed: nothing reaches the initialization any more.

The shortest gradient path is none at all, and a network whose units are all dead has it. A
meta-learner can get there, by one meta-update that is too long or by many in a direction that
noise decides; it then goes on to the end with a falling path length, and nothing to show for it.
"""

import logging
import statistics

import keras

_LOGGER = logging.getLogger("leap_tf")


class CollapseWarning(keras.callbacks.Callback):
    """Warns, once, when the meta-gradient has all but vanished.

    That is when its norm has been below a share of its median so far for several meta-steps. A
    mean over different tasks does not vanish so when meta-training merely converges. A run that
    goes on after a restart is compared with what comes after it.

    Args:
        share: of the median.
        meta_steps: how many in a row.
    """

    def __init__(self, share: float = 0.01, meta_steps: int = 3):
        super().__init__()
        self._share = share
        self._meta_steps = meta_steps

    def on_train_begin(self, logs=None):
        self._norms: list[float] = []
        self._in_a_row = 0
        self._warned = False

    def on_epoch_end(self, epoch, logs=None):
        norm = (logs or {})["meta_gradient_norm"]
        usual = statistics.median([*self._norms, norm])
        self._norms.append(norm)
        self._in_a_row = self._in_a_row + 1 if norm < self._share * usual else 0
        if self._in_a_row >= self._meta_steps and not self._warned:
            self._warned = True
            _LOGGER.warning(
                "The meta-gradient has all but vanished: at meta-step %d its norm is %.2g, and its "
                "median so far is %.2g. If the loss is not near its best, units of the model are "
                "dead: start again with a lower meta learning rate, or a bound on meta-updates "
                "such as SGD(global_clipnorm=...).",
                epoch + 1,
                norm,
                usual,
            )
