"""Turns the results of the Omniglot or the Multi-CV study into one page.

    python bin/report.py --results=runs --output_dir=runs/report

Leaves report.html, which needs no other file, and report.md with figures/*.png. Sections appear for
those of rates/, table1/, ablation/, paths/ and jacobian/ (Omniglot), or rates/ and table3/
(Multi-CV), that are there; cells that are not finished are named.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow reads it when it is imported

from absl import app, flags

_RESULTS = flags.DEFINE_string(
    "results", None, "The folder that the sweeps' output folders are in.", required=True
)
_OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "The report's folder.", required=True)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}")
    from leap_tf.experiments import commands
    from leap_tf.experiments.report.page import write_report

    with commands.one_line_errors():
        page, text = write_report(_RESULTS.value, _OUTPUT_DIR.value)
    print(f"The report is in {page} and, as Markdown, in {text}.")


if __name__ == "__main__":
    app.run(main)
