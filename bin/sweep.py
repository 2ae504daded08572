"""Runs a sweep: many trainings, each a cell of a table, in worker processes.

    python bin/sweep.py --gin_file=gin_configs/omniglot/table1_cpu.gin --output_dir=runs/table1

The same command goes on with a sweep that was stopped, and skips what is finished.
"""

import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow reads it when it is imported

from absl import app, flags

_GIN_FILE = flags.DEFINE_string("gin_file", None, "The sweep's configuration.", required=True)
_GIN_PARAM = flags.DEFINE_multi_string("gin_param", [], "Binding over the sweep's configuration.")
_OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "The sweep's folder.", required=True)
_WORKERS = flags.DEFINE_integer(
    "workers", os.cpu_count(), "Cells that run at the same time, each on one core."
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Folder of prepared TFDS data sets; $TFDS_DATA_DIR by default."
)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}")
    from leap_tf.experiments import commands

    with commands.one_line_errors():
        commands.sweep(
            _GIN_FILE.value,
            _GIN_PARAM.value,
            _OUTPUT_DIR.value,
            _WORKERS.value,
            train_binary=pathlib.Path(__file__).with_name("train.py"),
            data_dir=_DATA_DIR.value,
        )


if __name__ == "__main__":
    app.run(main)
