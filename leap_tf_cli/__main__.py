"""Starts a program without its script: python -m leap_tf_cli train --gin_file=…"""

import sys

import leap_tf_cli

PROGRAMS = ("train", "evaluate", "export", "sweep", "compare", "report")

if __name__ == "__main__":
    name = sys.argv.pop(1) if len(sys.argv) > 1 else ""
    if name not in PROGRAMS:
        sys.exit(f"Give one of the programs {', '.join(PROGRAMS)}, and not {name!r}.")
    getattr(leap_tf_cli, name)()
