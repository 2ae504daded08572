"""Compares evaluated runs of several methods or seeds: table, figures, learning curves.

The same program is installed as leap-atari-compare; --help shows its flags.
"""

from leap_tf_cli.atari import compare

if __name__ == "__main__":
    compare()
