"""Meta-trains a study and evaluates the learned initialization.

The same program is installed as leap-train; --help shows its flags.
"""

from leap_tf_cli import train

if __name__ == "__main__":
    train()
