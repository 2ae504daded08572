"""Prints the results of a few-shot sweep as CSV: docs/results/few_shot.csv and sinusoids.csv.

    python benchmarks/few_shot_table.py runs/few_shot
    python benchmarks/few_shot_table.py --sinusoids runs/few_shot_sinusoids

A row is a finished cell. Queries are test examples of a class in an episode. Accuracies are
percentages over the test episodes, with 1.96 standard errors, for the statistics of the query batch
(transductive) and running statistics. For sinusoids it has mean squared errors on held-out examples
after one gradient step, after five, and at the end, with the same intervals.
"""

import argparse
import csv
import json
import pathlib
import re
import sys

import numpy as np

COLUMNS = ["episodes", "method", "seed", "test_episodes", "queries", "steps", "transductive",
           "transductive_interval", "inductive", "inductive_interval", "meta_steps",
           "gradient_steps", "hours"]  # fmt: skip
OF_SINUSOIDS = ["method", "seed", "test_tasks", "error_after_1", "interval_after_1",
                "error_after_5", "interval_after_5", "steps", "error", "interval",
                "meta_steps"]  # fmt: skip


def accuracy(errors):
    """Returns the mean accuracy in percent and 1.96 standard errors of it."""
    errors = np.asarray(errors)
    return 100.0 * (1.0 - errors.mean()), 196.0 * errors.std(ddof=1) / len(errors) ** 0.5


def row(folder):
    """Returns the row of a finished run."""
    evaluation = json.loads((folder / "evaluation.json").read_text())
    [found] = evaluation["results"].values()
    if found["diverged"]:
        raise SystemExit(f"{folder.name}: {len(found['diverged'])} episodes diverged.")
    tasks = found["tasks"]
    transductive = accuracy([each["metrics"]["transductive_error"] for each in tasks])
    inductive = accuracy([each["error"] for each in tasks])
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    configuration = (folder / "config.gin").read_text()
    seed, queries = (
        re.search(rf"^{name} = (\d+)", configuration, re.MULTILINE)[1]
        for name in ("study.seed", "episode_splits.queries")
    )
    episodes, _, method = folder.name.rpartition("-")
    return [
        episodes, method, seed, len(tasks), queries, evaluation["steps"],
        *(f"{value:.2f}" for value in (*transductive, *inductive)),
        len(entries), round(sum(entry["gradient_steps"] for entry in entries)),
        f"{sum(entry['seconds'] for entry in entries) / 3600:.2f}",
    ]  # fmt: skip


def row_of_sinusoids(folder):
    """Returns the row of a finished run on sinusoids."""
    evaluation = json.loads((folder / "evaluation.json").read_text())
    found = evaluation["results"]["learned initialization"]
    if found["diverged"]:
        raise SystemExit(f"{folder.name}: {len(found['diverged'])} tasks diverged.")
    tasks, metrics = found["tasks"], folder / "metrics.jsonl"
    after = {steps: [task["metrics"][f"error_after_{steps}"] for task in tasks] for steps in (1, 5)}
    seed, _, method = folder.name.partition("-")
    return [
        method, seed, len(tasks), *estimate(after[1]), *estimate(after[5]),
        evaluation["steps"], *estimate([task["error"] for task in tasks]),
        len(metrics.read_text().splitlines()) if metrics.exists() else 0,
    ]  # fmt: skip


def estimate(errors):
    """Returns the mean and 1.96 standard errors of it, as text."""
    return f"{np.mean(errors):.3f}", f"{1.96 * np.std(errors, ddof=1) / len(errors) ** 0.5:.3f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sinusoids", action="store_true", help="whether its tasks are sinusoids")
    parser.add_argument("sweep", type=pathlib.Path, help="the folder of the sweep")
    arguments = parser.parse_args()
    cells = arguments.sweep / "cells"
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(OF_SINUSOIDS if arguments.sinusoids else COLUMNS)
    for name in [cell["name"] for cell in json.loads((cells.parent / "sweep.json").read_text())]:
        if (cells / name / "evaluation.json").exists():
            writer.writerow((row_of_sinusoids if arguments.sinusoids else row)(cells / name))


if __name__ == "__main__":
    main()
