"""How TensorFlow shares the cores: one thread a task, and as many tasks as cores.

Splitting each small operation over all cores costs more than it brings. Two tasks side by
side, one thread each, get through more steps than one after the other on two.
"""

import os

import tensorflow as tf


def available_cores() -> int:
    """Returns the number of cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def one_thread_per_task(parallel_tasks: int | None = None) -> None:
    """Tells TensorFlow to give each operation one thread, and as many operations as tasks.

    Call it before anything else touches TensorFlow, models included.

    Args:
        parallel_tasks: tasks that will run at the same time; by default one per core.

    Raises:
        RuntimeError: TensorFlow is running already with other settings.
    """
    tasks = parallel_tasks or available_cores()
    wanted = (1, tasks)
    present = (
        tf.config.threading.get_intra_op_parallelism_threads(),
        tf.config.threading.get_inter_op_parallelism_threads(),
    )
    if present == wanted:
        return
    try:
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(tasks)
    except RuntimeError as error:
        raise RuntimeError(
            "TensorFlow is running already, so its threads can no longer be set. Call "
            "leap_tf.one_thread_per_task() first of all, before a model is built."
        ) from error
