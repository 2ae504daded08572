"""Runs a sweep of many training runs, the cells of a table, in worker processes.

    python bin/sweep.py --gin_file=gin_configs/omniglot/table1_cpu.gin --output_dir=runs/table1

The same command continues a sweep that was stopped, and skips finished cells.
"""

import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow reads it when it is imported

from absl import app, flags

_GIN_FILE = flags.DEFINE_string("gin_file", None, "Configuration file of the sweep.", required=True)
_GIN_PARAM = flags.DEFINE_multi_string("gin_param", [], "Binding over the sweep's file.")
_OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "Folder of the sweep.", required=True)
_WORKERS = flags.DEFINE_integer(
    "workers", os.cpu_count(), "Number of cells that run at the same time, each on one core."
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Folder of prepared TFDS data sets; by default $TFDS_DATA_DIR."
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
