"""Exports the learned initialization of a run for serving by any TensorFlow runtime.

The same program is installed as leap-export; --help shows its flags.
"""

from leap_tf_cli import export

if __name__ == "__main__":
    export()
