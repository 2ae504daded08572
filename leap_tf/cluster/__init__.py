"""Tasks on many machines: a pool of Ray actors, each with a study of its own.

This package needs the extra `cluster`. Ray is imported when a pool starts.
"""

from leap_tf.cluster.ray_pool import RayPool
from leap_tf.cluster.worker import ClusterError, StudyFactory

__all__ = ["ClusterError", "RayPool", "StudyFactory"]
