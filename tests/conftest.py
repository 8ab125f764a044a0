"""Set-up of every test."""

import pytest
from absl import flags

import jigclu.system.compile_cache  # noqa: F401  # Before torch is imported, as in the command.

import torch  # isort: skip

flags.FLAGS.mark_as_parsed()


@pytest.fixture(autouse=True)
def seed() -> None:
    """Seeds torch, so that a test draws the same numbers in every run, alone and after others."""
    torch.manual_seed(0)
