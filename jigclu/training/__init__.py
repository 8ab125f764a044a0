"""Training step, loop, checkpoints, reports and evaluators."""
