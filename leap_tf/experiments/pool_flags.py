"""The flags of binaries whose tasks can run on a cluster."""

from collections.abc import Callable

from absl import flags

from leap_tf.experiments.pool_choice import POOLS, THREADS, PoolChoice

flags.disclaim_key_flags()  # they are the binary's own, and in its --help


def define_pool_flags() -> Callable[[], PoolChoice]:
    """Defines --pool, --address, --workers and --deadline.

    Returns:
        Reads them, once flags are parsed; raises ValueError if they do not go together.
    """
    kind = flags.DEFINE_enum("pool", THREADS.kind, POOLS, "Where tasks run.")
    address = flags.DEFINE_string(
        "address", None, "Of a running Ray cluster; by default Ray is started on this machine."
    )
    workers = flags.DEFINE_integer("workers", None, "Workers on Ray; one per CPU by default.")
    deadline = flags.DEFINE_float(
        "deadline", THREADS.deadline, "Seconds after which a task on Ray counts as hanging."
    )
    return lambda: PoolChoice(kind.value, address.value, workers.value, deadline.value)
