"""Which method pays? `leap_tf.compare` on three families of tasks.

    python benchmarks/compare_methods.py sinusoids --output_dir=docs/results/comparison

Families: `sinusoids` (regression, MLP, SGD inside, 10 steps), `unicode` (scripts drawn from fonts,
ConvNet, SGD inside, 50 steps), `employment` (forecasts of US employment by sector, GRU, Adam inside,
50 steps). The folder gets a table and a figure. The same command continues a run that was stopped.
"""

import argparse
import os
import pathlib
import platform
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import matplotlib

import leap_tf

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"


def sinusoids():
    return {
        "tasks": leap_tf.sinusoid_splits,
        "model": leap_tf.mlp,
        "loss": "mse",
        "inner_optimizer": keras.optimizers.SGD(0.02),
        "steps_per_task": 10,
        "meta_batch_size": 10,
        "budget": 20_000,
        "learners": {
            "Leap": leap_tf.Leap(scaled=True),
            "Reptile": leap_tf.Reptile(),
            "MAML": (leap_tf.MAML(), {"steps_per_task": 5}),
        },
    }


def unicode():
    from leap_tf.datasets import alphabet_splits

    def splits(seed):
        return alphabet_splits(
            seed=seed,
            dataset="unicode_alphabets",
            train_alphabets=20,
            validation_alphabets=3,
            test_alphabets=8,
            characters=20,
            held_out_drawings=5,
            rotations=1,
            batch_size=20,
        )

    return {
        "tasks": splits,
        "model": lambda: leap_tf.conv_net(classes=20, filters=32),
        "loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        "inner_optimizer": keras.optimizers.SGD(0.1),
        "steps_per_task": 50,
        "meta_batch_size": 10,
        "budget": 15_000,
        "task_layers": ["head"],
    }


def employment():
    sys.path.insert(0, str(EXAMPLES / "employment"))
    from employment import employment_splits, recurrent_net

    return {
        "tasks": employment_splits,
        "model": recurrent_net,
        "loss": "mse",
        "inner_optimizer": keras.optimizers.Adam(0.01),
        "steps_per_task": 50,
        "meta_batch_size": 4,
        "budget": 20_000,
        "seeds": [0, 1, 2],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("family", choices=["sinusoids", "unicode", "employment"])
    parser.add_argument("--output_dir", type=pathlib.Path, required=True)
    parser.add_argument("--runs", type=pathlib.Path, default=pathlib.Path("runs/comparison"))
    arguments = parser.parse_args()
    matplotlib.use("Agg")
    leap_tf.configure_threads()
    started = time.time()
    comparison = leap_tf.compare(
        **globals()[arguments.family](), directory=arguments.runs / arguments.family
    )
    print(comparison)
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    with (arguments.output_dir / f"{arguments.family}.csv").open("w") as file:
        file.write(f"# python benchmarks/compare_methods.py {arguments.family}; commit {commit}\n")
        file.write(f"# {os.cpu_count()} cores, {platform.machine()}\n")
        for line in str(comparison).splitlines()[1 + len(comparison.methods) :]:
            file.write(f"# {line}\n")
        comparison.to_dataframe().to_csv(file, float_format="%.6g")
    axes = comparison.plot()
    axes.figure.savefig(arguments.output_dir / f"{arguments.family}.png", dpi=110)
    print(f"{time.time() - started:.0f} seconds")


if __name__ == "__main__":
    main()
