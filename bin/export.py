"""Exports the learned initialization of a run for serving by any TensorFlow runtime.

    python bin/export.py --output_dir=runs/unicode

Writes a SavedModel that predicts and adapts, the Keras model, example requests and a model card to
runs/unicode/export.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow reads it when it is imported

from absl import app, flags

_OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "Folder of the run.", required=True)
_EXPORT_DIR = flags.DEFINE_string(
    "export_dir", None, "Folder to write; by default 'export' in the run's folder."
)
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    None,
    "Prefix of a checkpoint, such as runs/unicode/checkpoints/step-00000060, to export instead of "
    "the learned initialization.",
)
_GIN_FILE = flags.DEFINE_multi_string("gin_file", [], "Configuration file over the run's own.")
_GIN_PARAM = flags.DEFINE_multi_string(
    "gin_param", [], "Binding over the run's configuration, such as 'export.requests = 8'."
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Folder of prepared TFDS data sets; by default $TFDS_DATA_DIR."
)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}")
    from leap_tf.experiments import commands

    with commands.one_line_errors():
        commands.export(
            _GIN_FILE.value,
            _GIN_PARAM.value,
            _OUTPUT_DIR.value,
            _DATA_DIR.value,
            export_dir=_EXPORT_DIR.value,
            checkpoint=_CHECKPOINT.value,
        )


if __name__ == "__main__":
    app.run(main)
