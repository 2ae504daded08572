"""Measures the distance of the Jacobians along gradient paths from the identity.

    python bin/jacobian.py --gin_file=gin_configs/omniglot/jacobian_cpu.gin \
        --output_dir=runs/jacobian

Leap assumes that they are the identity. The command writes a JSON file for each learning rate and
task, and prints the mean over the tasks. The same command continues a run that was stopped.
"""

import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow reads it when it is imported

from absl import app, flags

from leap_tf.training import configure_threads

_GIN_FILE = flags.DEFINE_multi_string(
    "gin_file", None, "Configuration file; can be given several times.", required=True
)
_GIN_PARAM = flags.DEFINE_multi_string(
    "gin_param", [], "Binding over the files, such as 'jacobian_precision.seed = 1'."
)
_OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "Folder of the run.", required=True)
_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Folder of prepared TFDS data sets; by default $TFDS_DATA_DIR."
)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}")
    configure_threads(1)  # before anything else touches TensorFlow; paths run one by one
    sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))  # studies is not installed
    from leap_tf.experiments import commands, config
    from leap_tf.experiments.run_directory import RunDirectory
    from studies.jacobian import configured_jacobian_precision, table

    with commands.one_line_errors():
        run = RunDirectory(_OUTPUT_DIR.value)
        run.claim(config.read_configuration(_GIN_FILE.value, _GIN_PARAM.value))
        records = configured_jacobian_precision(
            output_dir=run.path / "cells", data_dir=_DATA_DIR.value
        )
        print(table(records))


if __name__ == "__main__":
    app.run(main)
