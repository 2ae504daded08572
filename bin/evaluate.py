"""Evaluates a finished run: its learned initialization against no pretraining.

    python bin/evaluate.py --output_dir=runs/unicode --gin_param='evaluate.steps = 50'

Results go to evaluation_again.json in the folder. The run's own evaluation stays as it is.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow reads it when it is imported

from absl import app, flags

from leap_tf.training import configure_threads

_GIN_FILE = flags.DEFINE_multi_string("gin_file", [], "Configuration file over the run's own.")
_GIN_PARAM = flags.DEFINE_multi_string(
    "gin_param", [], "Binding over the run's configuration, such as 'evaluate.target_error = 0.1'."
)
_OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "Folder of the run.", required=True)
_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Folder of prepared TFDS data sets; by default $TFDS_DATA_DIR."
)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}")
    configure_threads()  # before anything else touches TensorFlow
    from leap_tf.experiments import commands

    with commands.one_line_errors():
        commands.evaluate(_GIN_FILE.value, _GIN_PARAM.value, _OUTPUT_DIR.value, _DATA_DIR.value)


if __name__ == "__main__":
    app.run(main)
