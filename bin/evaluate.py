"""Evaluates a finished run: its learned initialization against no pretraining.

The same program is installed as leap-evaluate; --help shows its flags.
"""

from leap_tf_cli import evaluate

if __name__ == "__main__":
    evaluate()
