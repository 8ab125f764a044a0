"""Processes, devices, files, seeds and errors."""
