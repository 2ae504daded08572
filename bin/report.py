"""Writes a page on a study: tables, figures and the findings beside them.

    python bin/report.py --runs=runs/my_sweep --output_dir=runs/my_report
    python bin/report.py --runs=runs/omniglot --study=omniglot --output_dir=runs/report
    python bin/report.py --results=docs/results --output_dir=docs/results

--runs collects the folders of sweeps and runs into tables, which go into --output_dir with the
page; --results makes the page of such tables again. Runs that are not finished are named.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow reads it when it is imported

from absl import app, flags

_RUNS = flags.DEFINE_multi_string(
    "runs", [], "A folder of bin/sweep.py, bin/train.py or bin/jacobian.py, or of several such."
)
_RESULTS = flags.DEFINE_string(
    "results", None, "A folder with the tables of a study, or with such folders."
)
_STUDY = flags.DEFINE_string(
    "study", None, "Layout: omniglot, multi_cv, or any name for a page on sweeps of any axes."
)
_OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "The report's folder.", required=True)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}")
    if bool(_RUNS.value) == bool(_RESULTS.value):
        raise app.UsageError("Give either --runs or --results.")
    from leap_tf.experiments import commands

    try:
        from leap_tf.experiments.report.page import write_report
    except ModuleNotFoundError as error:
        raise SystemExit(
            f"{error.name} is not installed: pip install 'leap-tf[experiments]'"
        ) from error
    with commands.one_line_errors():
        pages = write_report(
            _OUTPUT_DIR.value, results=_RESULTS.value, runs=_RUNS.value, study=_STUDY.value
        )
    for page in pages:
        print(f"The report is in {page}.")


if __name__ == "__main__":
    app.run(main)
