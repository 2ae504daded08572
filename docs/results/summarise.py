"""Puts the evaluations of several seeds together: a Markdown table and a picture.

python docs/results/summarise.py docs/results/omniglot_cpu
"""

import json
import pathlib
import sys

import numpy as np

from leap_tf.experiments.plots import plot_adaptation, standard_error
from leap_tf.training import Evaluation, TaskEvaluation


def read(folder: pathlib.Path) -> dict[str, list[Evaluation]]:
    """Returns from each initialization's name to its evaluation at every seed."""
    collected: dict[str, list[Evaluation]] = {}
    for path in sorted(folder.glob("evaluation_seed*.json")):
        for name, record in json.loads(path.read_text())["results"].items():
            tasks = tuple(
                TaskEvaluation(
                    name=task["name"],
                    error=task["error"],
                    loss=task["loss"],
                    examples=task["examples"],
                    training_errors=np.array(task["training_errors"]),
                    training_losses=np.array(task["training_losses"]),
                    path_length=task.get("path_length", float("nan")),
                    path_energy=task.get("path_energy", float("nan")),
                    parameters=task.get("parameters", 0),
                )
                for task in record["tasks"]
            )
            collected.setdefault(name, []).append(Evaluation(tasks))
    return collected


def markdown_table(collected: dict[str, list[Evaluation]]) -> str:
    """Formats mean ± standard error over the seeds, and each seed's own figure."""
    lines = ["| | held-out error, % | area under the training error, 0–100 |", "|---|---|---|"]
    for name, seeds in collected.items():
        errors = _over_seeds([100 * evaluation.error for evaluation in seeds])
        areas = _over_seeds([evaluation.area_under_error for evaluation in seeds])
        lines.append(f"| {name} | {errors} | {areas} |")
    return "\n".join(lines)


def _over_seeds(values):
    each = ", ".join(f"{value:.1f}" for value in values)
    return f"**{np.mean(values):.1f}** ± {standard_error(values):.1f} ({each})"


if __name__ == "__main__":
    results = pathlib.Path(sys.argv[1])
    evaluations = read(results)
    print(markdown_table(evaluations))
    plot_adaptation(
        {
            name: Evaluation(tuple(task for seed in seeds for task in seed.tasks))
            for name, seeds in evaluations.items()
        },
        results / "adaptation.png",
    )
