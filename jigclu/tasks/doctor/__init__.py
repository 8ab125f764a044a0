"""Examination of a machine, the data and the settings of a training task before a long run."""
