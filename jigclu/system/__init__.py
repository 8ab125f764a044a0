"""Processes, devices, files and errors."""
