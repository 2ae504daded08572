"""Writes a page on a study: tables, figures and the findings beside them.

The same program is installed as leap-report; --help shows its flags.
"""

from leap_tf_cli import report

if __name__ == "__main__":
    report()
