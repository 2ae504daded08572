"""Tasks on many machines: a pool of Ray actors, each with a replica of the study.

Needs the extra `cluster`; nothing else imports Ray, and this package only when a pool starts.
"""

from leap_tf.cluster.errors import ClusterError
from leap_tf.cluster.ray_pool import RayPool
from leap_tf.cluster.replica import Recipe, Replica
from leap_tf.cluster.wire import MessageError

__all__ = ["ClusterError", "MessageError", "RayPool", "Recipe", "Replica"]
