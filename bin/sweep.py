"""Runs a sweep of many training runs, the cells of a table, in worker processes.

The same program is installed as leap-sweep; --help shows its flags.
"""

from leap_tf_cli import sweep

if __name__ == "__main__":
    sweep()
