"""Self-supervised methods and supervised classification: one file per method."""
