"""What a gin file of games can name, beside what `leap_tf.experiments` registers."""

import gin

from leap_tf.atari.arcade import Arcade
from leap_tf.atari.encoder import mnih_2013
from leap_tf.atari.environment import AtariEnvironment
from leap_tf.atari.judgement import atari_judge
from leap_tf.atari.loss import ActorCriticLoss
from leap_tf.atari.meta_training import atari_meta_train
from leap_tf.atari.rmsprop import RMSProp
from leap_tf.atari.study import atari_study
from leap_tf.atari.trainer import AtariTrainer
from leap_tf.experiments.config import calling
from leap_tf.learners.sequential import SequentialLearner

configured_study = gin.external_configurable(
    atari_study, "atari_study", denylist=["report", "watch", "pool"]
)
configured_meta_train = gin.external_configurable(
    atari_meta_train, "atari_meta_train", denylist=["study", "run"]
)
configured_judge = gin.external_configurable(
    atari_judge, "atari_judge", denylist=["study", "run", "watch"]
)
gin.external_configurable(mnih_2013, module="atari")
gin.external_configurable(
    calling(AtariTrainer),
    "AtariTrainer",
    module="atari",
    denylist=["encoder", "report", "watch", "seed", "pool"],
)
gin.external_configurable(
    calling(AtariEnvironment), "AtariEnvironment", module="atari", denylist=["game", "seed"]
)
for _class in (Arcade, ActorCriticLoss, RMSProp, SequentialLearner):
    gin.external_configurable(calling(_class), _class.__name__, module="atari")
