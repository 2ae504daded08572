"""Small folders of sweeps for the tests of reports."""

import json

CONFIG = "alphabet_splits.train_alphabets = 20\nstudy.seed = 7\n"
ENVIRONMENT = [
    {
        "python": "3.11.0",
        "platform": "Linux-test",
        "cores": 2,
        "intra_op_threads": 1,
        "inter_op_threads": 2,
        "packages": {"tensorflow": "2.21.0"},
    }
]


def task(error, steps=None, curve=(1.0, 0.5, 0.25), area=50.0, **more):
    """Returns the record of an evaluated task, diverged if its error is None."""
    lost = error is None
    return {
        "name": "task",
        "error": error,
        "loss": None if lost else 2 * error,
        "examples": 10,
        "area_under_error": None if lost else area,
        "path_length": 1.0,
        "path_energy": 1.0,
        "steps_to_target": steps,
        "finite": not lost,
        "final_training_error": None if lost else sum(curve[-50:]) / len(curve[-50:]),
        "training_errors": list(curve),
        "training_losses": [None if lost else 3 * value for value in curve],
        **more,
    }


def outcome(*tasks):
    """Returns the record of an initialization that was evaluated on tasks."""
    whole = [each["error"] for each in tasks if each["error"] is not None]
    mean = sum(whole) / len(whole) if whole else None
    return {
        "error": mean,
        "loss": mean,
        "area_under_error": 50.0 if whole else None,
        "diverged": [each["name"] for each in tasks if each["error"] is None],
        "tasks": list(tasks),
    }


def write_sweep(folder, cells, meta_steps=3, study="omniglot"):
    """Writes a sweep's folder. `cells` are pairs of axis values and an outcome, None if missing."""
    folder.mkdir(parents=True)
    entries = []
    for values, result in cells:
        name = "-".join(values.values())
        entries.append(
            {
                "name": name,
                "values": values,
                "gin_files": [f"gin_configs/{study}/cell_cpu.gin"],
                "bindings": ["MetaTrainer.learner = @Leap()", "evaluate.split = 'test'"],
            }
        )
        if result is None:
            continue
        run = folder / "cells" / name
        run.mkdir(parents=True)
        record = {
            "split": "test",
            "steps": 3,
            "target_error": 0.1,
            "transductive": False,
            "results": {"learned initialization": result},
        }
        (run / "evaluation.json").write_text(json.dumps(record))
        (run / "config.gin").write_text(CONFIG)
        (run / "environment.json").write_text(json.dumps(ENVIRONMENT))
        lines = [
            {
                "meta_step": step,
                "seconds": 2.0,
                "loss": 3.0 / step,
                "gradient_steps": 500.0,
                "val_path_length": 12.0 / step,
                "val_path_energy": 6.0 / step,
                "val_final_loss": 1.0 / step,
                "val_auc": 60.0 / step,
            }
            for step in range(1, meta_steps + 1)
        ]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "sweep.json").write_text(json.dumps(entries))
