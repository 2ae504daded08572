"""Evaluates a finished run: agents from its encoder, from fresh ones, and random play.

The same program is installed as leap-atari-evaluate; --help shows its flags.
"""

from leap_tf_cli.atari import evaluate

if __name__ == "__main__":
    evaluate()
