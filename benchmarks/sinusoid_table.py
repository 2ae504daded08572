"""Prints the errors of a sweep of sinusoids as CSV: docs/results/sinusoids.csv.

    python benchmarks/sinusoid_table.py runs/few_shot_sinusoids

A row is a finished cell: the mean squared error on held-out examples of the test tasks after one
gradient step, after five, and at the end, each with 1.96 standard errors over the tasks.
"""

import argparse
import csv
import json
import pathlib
import sys

import numpy as np

COLUMNS = ["method", "seed", "test_tasks", "error_after_1", "interval_after_1", "error_after_5",
           "interval_after_5", "steps", "error", "interval", "meta_steps"]  # fmt: skip


def estimate(errors):
    """Returns the mean and 1.96 standard errors of it."""
    errors = np.asarray(errors)
    half = 1.96 * errors.std(ddof=1) / len(errors) ** 0.5
    return f"{errors.mean():.3f}", f"{half:.3f}"


def row(folder):
    """Returns the row of a finished run."""
    evaluation = json.loads((folder / "evaluation.json").read_text())
    found = evaluation["results"]["learned initialization"]
    if found["diverged"]:
        raise SystemExit(f"{folder.name}: {len(found['diverged'])} tasks diverged.")
    tasks, metrics = found["tasks"], folder / "metrics.jsonl"
    seed, _, method = folder.name.partition("-")
    return [
        method, seed, len(tasks),
        *estimate([task["metrics"]["error_after_1"] for task in tasks]),
        *estimate([task["metrics"]["error_after_5"] for task in tasks]),
        evaluation["steps"], *estimate([task["error"] for task in tasks]),
        len(metrics.read_text().splitlines()) if metrics.exists() else 0,
    ]  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sweep", type=pathlib.Path, help="the folder of the sweep")
    cells = parser.parse_args().sweep / "cells"
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(COLUMNS)
    for folder in sorted(cells.iterdir(), key=lambda each: each.name.split("-")[::-1]):
        if (folder / "evaluation.json").exists():
            writer.writerow(row(folder))


if __name__ == "__main__":
    main()
