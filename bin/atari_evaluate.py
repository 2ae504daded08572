"""Judges a finished run: agents from its encoder, from a fresh one, and random play.

    python bin/atari_evaluate.py --output_dir=runs/atari --gin_param='atari_judge.seeds = 3'

The same command goes on with a judgement that was stopped.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow reads both when it is imported
os.environ["TF_USE_LEGACY_KERAS"] = "1"

from absl import app, flags

from leap_tf.training import one_thread_per_task

_GIN_PARAM = flags.DEFINE_multi_string(
    "gin_param", [], "Binding of the judgement, such as 'atari_judge.seeds = 3'."
)
_OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "The run's folder.", required=True)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}")
    one_thread_per_task()  # before anything else touches TensorFlow
    from leap_tf.experiments.commands import one_line_errors

    with one_line_errors():
        from leap_tf.atari import session

        session.evaluate(_GIN_PARAM.value, _OUTPUT_DIR.value)


if __name__ == "__main__":
    app.run(main)
