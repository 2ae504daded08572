"""Tasks on many machines: a pool of Ray actors, each with a replica of the study.

Needs the extra `cluster`; nothing else imports Ray, and this package only when a pool starts.
"""

from leap_tf.cluster.ray_pool import RayPool
from leap_tf.cluster.worker import ClusterError, Recipe, Replica

__all__ = [
    "ClusterError",
    "RayPool",
    "Recipe",
    "Replica",
]
