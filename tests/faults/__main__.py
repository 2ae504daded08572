"""Command line of the attacks in full length, and of the table of their results.

    python -m tests.faults kills --trials=55              # one of the names below, or several
    python -m tests.faults kills --pool=ray --trials=55
    python -m tests.faults table                          # writes docs/reliability.md again

Each replaces its line of docs/results/reliability.jsonl, from which the table is generated. An
attack that finds a failure ends with exit code 1.
"""

import argparse
import os
import pathlib
import shlex
import sys
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

from tests.faults.record import write_results
from tests.faults.table import write_document


def kills(folder, options):
    from tests.faults.kills import attack, supervised

    return [attack(supervised(_pool(options)), folder, options.trials or 55, options.seed)]


def games(folder, options):
    from tests.faults.kills import atari, attack

    return [attack(atari(_pool(options)), folder, options.trials or 55, options.seed)]


def _pool(options):
    return [] if options.pool == "threads" else [f"--pool={options.pool}"]


def disk(folder, options):
    from tests.faults.disk import attack_disk

    return attack_disk(folder, options.trials or 40, options.seed)


def hostile(folder, options):
    from tests.faults.fuzz import attack_readers

    return attack_readers(folder, options.trials or 2000, options.seed)


def long(folder, options):
    from tests.faults.long_run import attack_memory

    return [attack_memory(folder, options.trials or 2000, warm_up=200)]


ATTACKS = {attack.__name__: attack for attack in (kills, games, disk, hostile, long)}


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("attacks", nargs="+", choices=[*ATTACKS, "table"])
    parser.add_argument("--trials", type=int, help="faults, inputs or meta-steps of each attack")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pool", default="threads", help="where tasks run in `kills`, `games`")
    options = parser.parse_args()
    failures = []
    for name in options.attacks:
        if name == "table":
            continue
        with tempfile.TemporaryDirectory() as folder:
            faults = ATTACKS[name](pathlib.Path(folder), options)
        command = shlex.join(["python", "-m", "tests.faults", *sys.argv[1:]])
        of_pool = "" if options.pool == "threads" else f"_{options.pool}"
        print(write_results(name + of_pool, command, options.seed, faults))
        for fault in faults:
            print(fault)
            failures += fault.failures
    print(write_document())
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
