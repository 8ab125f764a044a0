"""Imported first by tests that need CUDA, which are skipped where there is none.

Such tests are in files `*_cuda_test.py`: `make gpu-check` runs exactly those.
"""

import unittest

import torch

if not torch.cuda.is_available():
    raise unittest.SkipTest("no GPU")
