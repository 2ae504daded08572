"""Studies from configuration files: build, train and evaluate one, and keep it in a folder."""
