"""The version, for pyproject.toml, for users and for the record of every run."""

__version__ = "0.1.0"
