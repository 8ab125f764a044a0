"""From gin files to one task, with user errors in one line."""

from jigclu.config.load import ROOT, Configuration, load

__all__ = ["ROOT", "Configuration", "load"]
