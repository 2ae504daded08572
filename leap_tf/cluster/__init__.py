"""Task pools on many machines: Ray actors, each with a study of its own.

Install the extra `cluster` for this package. Ray is imported when a pool starts.
"""

from leap_tf.cluster.ray_pool import RayPool
from leap_tf.cluster.worker import ClusterError, StudyFactory

__all__ = ["ClusterError", "RayPool", "StudyFactory"]
