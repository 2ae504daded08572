"""Compares methods on the tasks and the model of a study, at equal numbers of gradient steps.

The same program is installed as leap-compare; --help shows its flags.
"""

from leap_tf_cli import compare

if __name__ == "__main__":
    compare()
