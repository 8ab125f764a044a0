"""Named random streams: every use of the seed of a run.

Each function names one use and returns its generator. A generator depends only on the
arguments, so every rank and worker process draws the same numbers.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from jigclu.system.errors import check

_LIMIT = 2**63
# Keep streams with the same seed and step apart; a new stream needs a new number.
_AUGMENTATION = 0xA06
_IMAGE_ORDER = 0x6F72646572
_BALANCED_SUBSET, _HELD_OUT = 0, 1


def check_seed(seed: int) -> None:
    """Raises UserError unless torch accepts the seed."""
    check(0 <= seed < _LIMIT, "seed", seed, "in [0, 2**63)")


def patch_order(seed: int, step: int) -> torch.Generator:
    """Returns the stream that shuffles the patches of a step's global batch."""
    return _generator(mix_seed(seed, step))


def augmentation(seed: int, step: int) -> torch.Generator:
    """Returns the stream that augments the patches of a step's global batch."""
    return _generator(mix_seed(mix_seed(seed, _AUGMENTATION), step))


def image_order(seed: int, epoch: int) -> torch.Generator:
    """Returns the stream that orders the images of an epoch."""
    return _generator(mix_seed(mix_seed(seed, _IMAGE_ORDER), epoch))


def image_crops(seed: int, epoch: int, index: int) -> np.random.Generator:
    """Returns the stream that crops and flips one image in one epoch."""
    key = np.array([mix_seed(seed, epoch), index], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def balanced_subset(seed: int) -> torch.Generator:
    """Returns the stream that draws a balanced part of a labeled source."""
    return _generator(mix_seed(seed, _BALANCED_SUBSET))


def held_out(seed: int) -> torch.Generator:
    """Returns the stream that draws the held-out part of a labeled source."""
    return _generator(mix_seed(seed, _HELD_OUT))


@contextmanager
def initial_weights(seed: int) -> Iterator[None]:
    """Seeds torch's global CPU generator for building a network; restores it afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def mix_seed(seed: int, number: int) -> int:
    """Hashes two integers to one 63-bit seed, so that nearby numbers share no stream."""
    value = (seed * 0x9E3779B97F4A7C15 + number + 1) & 0xFFFFFFFFFFFFFFFF
    for multiplier in (0xBF58476D1CE4E5B9, 0x94D049BB133111EB):
        value = ((value ^ (value >> 30)) * multiplier) & 0xFFFFFFFFFFFFFFFF
    return (value ^ (value >> 31)) >> 1


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
