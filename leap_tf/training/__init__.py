"""The task loop in the graph, the outer loop, stopping, checkpoints and metrics."""
