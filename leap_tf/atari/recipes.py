"""How a worker of a cluster builds a study of games: from the run's own configuration."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from leap_tf.atari.gin_registration import configured_study
from leap_tf.cluster import Replica
from leap_tf.experiments.config import parse_configuration
from leap_tf.tasks import TaskSplits


@dataclasses.dataclass(frozen=True)
class AtariRecipe:
    """Makes replicas of a configured study of games.

    Environments are none of what travels: a worker's arcade makes them when a game is first
    played there. Since every visit starts with a seeded reset, results are the same.

    Attributes:
        configuration: the whole of it, as text.
        environment: variables that must be set before TensorFlow is imported.
    """

    configuration: str
    environment: ClassVar[Mapping[str, str]] = {"TF_USE_LEGACY_KERAS": "1"}

    def __call__(self) -> Replica:
        """Builds the study."""
        parse_configuration(self.configuration)
        study = configured_study()
        return Replica(study.trainer, TaskSplits(study.games, (), ()))
