"""Meta-trains the encoder of agents on Atari games.

    python bin/atari_train.py --gin_file=gin_configs/atari_cpu.gin --output_dir=runs/atari

The same command resumes an interrupted run. With --pool=ray, tasks run on a Ray cluster: see
docs/cluster.md.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow reads both when it is imported
os.environ["TF_USE_LEGACY_KERAS"] = "1"

from absl import app, flags

from leap_tf.experiments.commands import define_pool_flags
from leap_tf.training import configure_threads

_GIN_FILE = flags.DEFINE_multi_string("gin_file", None, "Configuration file.", required=True)
_GIN_PARAM = flags.DEFINE_multi_string(
    "gin_param", [], "Binding that overrides the files, such as 'atari_study.seed = 1'."
)
_OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "The run's folder.", required=True)
_POOL = define_pool_flags()


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}")
    configure_threads()  # before anything else touches TensorFlow
    from leap_tf.experiments.commands import one_line_errors

    with one_line_errors():
        from leap_tf.atari import commands

        commands.train(_GIN_FILE.value, _GIN_PARAM.value, _OUTPUT_DIR.value, _POOL())


if __name__ == "__main__":
    app.run(main)
