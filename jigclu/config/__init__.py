"""gin files to one task; every user error in one line."""

from jigclu.config.load import ROOT, Configuration, load

__all__ = ["ROOT", "Configuration", "load"]
