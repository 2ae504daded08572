"""Whole studies: build one from a configuration, train it, judge it, leave a run directory."""
