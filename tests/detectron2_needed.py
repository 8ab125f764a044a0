"""Imported first by tests that need detectron2, which are skipped where it is absent."""

import importlib.util
import unittest

if importlib.util.find_spec("detectron2") is None:
    raise unittest.SkipTest("detectron2 is not installed; detection/README.md says how")
