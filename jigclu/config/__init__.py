"""From gin files to one task, with user errors in one line."""

from jigclu.config.gin_files import ROOT
from jigclu.config.listing import runnable
from jigclu.config.load import Configuration, default_workdir, load

__all__ = ["ROOT", "Configuration", "default_workdir", "load", "runnable"]
