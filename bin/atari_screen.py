"""Trains single agents from fresh encoders and compares them with random play.

python bin/atari_screen.py --gin_file=gin_configs/atari_cpu.gin --game=crazy_climber --seed=101
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow reads both when it is imported
os.environ["TF_USE_LEGACY_KERAS"] = "1"

from absl import app, flags

from leap_tf.training import configure_threads

_GIN_FILE = flags.DEFINE_multi_string("gin_file", None, "Configuration file.", required=True)
_GIN_PARAM = flags.DEFINE_multi_string(
    "gin_param", [], "Binding that overrides the files, such as 'AtariEnvironment.copies = 8'."
)
_GAMES = flags.DEFINE_multi_string("game", None, "Name of a game.", required=True)
_SEEDS = flags.DEFINE_multi_integer("seed", None, "Seed of encoder and task run.", required=True)
_UPDATES = flags.DEFINE_integer("updates", None, "Updates; the trainer's number by default.")
_OUTPUT = flags.DEFINE_string("output", None, "File of JSON lines to append the figures to.")


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}")
    configure_threads()  # before anything else touches TensorFlow
    from leap_tf.experiments.commands import one_line_errors

    with one_line_errors():
        from leap_tf.atari import commands

        commands.screen(
            _GIN_FILE.value,
            _GIN_PARAM.value,
            _GAMES.value,
            _SEEDS.value,
            updates=_UPDATES.value,
            output=_OUTPUT.value,
        )


if __name__ == "__main__":
    app.run(main)
