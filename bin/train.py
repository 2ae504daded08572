"""Meta-trains a study and evaluates the learned initialization.

    python bin/train.py --gin_file=gin_configs/unicode_cpu.gin --output_dir=runs/unicode

The same command continues a run that was stopped. With --pool=ray tasks run on a Ray cluster, see
docs/cluster.md.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow reads it when it is imported

from absl import app, flags

from leap_tf.experiments.commands import define_pool_flags
from leap_tf.training import configure_threads

_GIN_FILE = flags.DEFINE_multi_string(
    "gin_file", None, "Configuration file; can be given several times.", required=True
)
_GIN_PARAM = flags.DEFINE_multi_string(
    "gin_param", [], "Binding over the files, such as 'study.seed = 1'."
)
_OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "Folder of the run.", required=True)
_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Folder of prepared TFDS data sets; by default $TFDS_DATA_DIR."
)
_POOL = define_pool_flags()


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}")
    configure_threads()  # before anything else touches TensorFlow
    from leap_tf.experiments import commands

    with commands.one_line_errors():
        commands.train(
            _GIN_FILE.value, _GIN_PARAM.value, _OUTPUT_DIR.value, _DATA_DIR.value, _POOL()
        )


if __name__ == "__main__":
    app.run(main)
