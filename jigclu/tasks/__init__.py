"""Tasks that a gin file can run, one module per task."""
