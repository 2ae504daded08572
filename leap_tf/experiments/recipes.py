"""How a worker of a cluster builds the study of a run: from the run's own configuration."""

import dataclasses

from leap_tf.cluster import Replica
from leap_tf.experiments.gin_registration import configured_study, parse_configuration


@dataclasses.dataclass(frozen=True)
class StudyRecipe:
    """Makes replicas of a configured study.

    Attributes:
        configuration: the whole of it, as text.
        data_dir: folder of prepared data sets, the same on every node; None for the usual one.
    """

    configuration: str
    data_dir: str | None = None

    def __call__(self) -> Replica:
        """Builds the study."""
        parse_configuration(self.configuration)
        study = configured_study(data_dir=self.data_dir)
        return Replica(study.trainer, study.tasks)
