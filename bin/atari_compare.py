"""Compares evaluated runs of several methods or seeds: table, figures, learning curves.

    python bin/atari_compare.py --output_dir=runs/compared \
        --run=Leap=runs/leap_0 --run=Leap=runs/leap_1 --run=Reptile=runs/reptile_0
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow reads both when it is imported
os.environ["TF_USE_LEGACY_KERAS"] = "1"

from absl import app, flags

_RUN = flags.DEFINE_multi_string(
    "run",
    None,
    "An evaluated run, as method=folder; runs of one method are pooled.",
    required=True,
)
_OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "Folder for the comparison.", required=True)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}")
    from leap_tf.experiments.commands import one_line_errors

    with one_line_errors():
        from leap_tf.atari import commands

        commands.compare(_RUN.value, _OUTPUT_DIR.value)


if __name__ == "__main__":
    app.run(main)
