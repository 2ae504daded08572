"""Evaluates a finished run: agents from its encoder, from fresh ones, and random play.

    python bin/atari_evaluate.py --output_dir=runs/atari --gin_param='atari_evaluate.seeds = 3'

The same command resumes an interrupted evaluation.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow reads both when it is imported
os.environ["TF_USE_LEGACY_KERAS"] = "1"

from absl import app, flags

from leap_tf.training import configure_threads

_GIN_PARAM = flags.DEFINE_multi_string(
    "gin_param", [], "Binding of the evaluation, such as 'atari_evaluate.seeds = 3'."
)
_OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "The run's folder.", required=True)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}")
    configure_threads()  # before anything else touches TensorFlow
    from leap_tf.experiments.commands import one_line_errors

    with one_line_errors():
        from leap_tf.atari import commands

        commands.evaluate(_GIN_PARAM.value, _OUTPUT_DIR.value)


if __name__ == "__main__":
    app.run(main)
