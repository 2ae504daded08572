"""Trains single agents from fresh encoders and compares them with random play.

The same program is installed as leap-atari-screen; --help shows its flags.
"""

from leap_tf_cli.atari import screen

if __name__ == "__main__":
    screen()
