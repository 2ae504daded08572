"""Meta-trains the encoder of agents on Atari games.

The same program is installed as leap-atari-train; --help shows its flags.
"""

from leap_tf_cli.atari import train

if __name__ == "__main__":
    train()
