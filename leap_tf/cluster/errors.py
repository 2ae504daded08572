"""What goes wrong with a cluster, apart from tasks."""

from leap_tf.training import TaskPoolError


class ClusterError(TaskPoolError):
    """The cluster cannot do the work."""
