"""From gin files to one task, with user errors in one line."""

from jigclu.config.load import ROOT, Configuration, default_workdir, load

__all__ = ["ROOT", "Configuration", "default_workdir", "load"]
