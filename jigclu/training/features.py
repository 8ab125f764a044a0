"""Pooled features of a frozen encoder, streamed batch by batch."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Subset

from jigclu.data.images import EpochView, ImageDataset, warn_of_one_color
from jigclu.data.loader import LabeledBatch, image_loader
from jigclu.data.transform import EvalTransform
from jigclu.models.encoder import Encoder
from jigclu.ops.normalize import pool
from jigclu.system import collectives, memory, progress
from jigclu.system.machine import choose_workers
from jigclu.training.finite import Diverged
from jigclu.training.settings import Loading

# Rows of features that ranks exchange at a time; bounds the memory on their devices.
_ROWS = 8192


class FeatureSettings(NamedTuple):
    """Settings that turn images into features.

    transform: its mean and std normalize the images, which are already cropped.
    batch_size: images per rank and batch.
    batch_size_name: of the setting, for messages.
    workers: processes that read images.
    prefetch: batches that each worker keeps ready.
    timeout: seconds to wait for a batch of the workers.
    precision: of autocast in the encoder; float32 for none.
    """

    transform: EvalTransform
    batch_size: int
    batch_size_name: str
    workers: int
    prefetch: int
    timeout: float
    precision: torch.dtype


def choose_settings(
    transform: EvalTransform,
    batch_size: int,
    loading: Loading,
    device: torch.device,
    precision: torch.dtype,
    batch_size_name: str = "batch_size",
) -> FeatureSettings:
    """Returns settings with the number of worker processes chosen for the device.

    Args:
      transform: see `FeatureSettings`.
      batch_size: see `FeatureSettings`.
      loading: worker processes as bound.
      device: of the encoder.
      precision: see `FeatureSettings`.
      batch_size_name: see `FeatureSettings`.
    """
    workers = choose_workers(loading.workers, device).value
    return FeatureSettings(
        transform,
        batch_size,
        batch_size_name,
        workers,
        loading.prefetch,
        loading.timeout,
        precision,
    )


def rank_indices(images: int) -> range:
    """Returns the indices of the images that this rank encodes; ranks share no image."""
    return range(collectives.rank(), images, collectives.world_size())


@torch.no_grad()
def encode(
    encoder: Encoder, images: ImageDataset | EpochView, settings: FeatureSettings
) -> Iterator[tuple[Tensor, LabeledBatch]]:
    """Yields features of this rank's share of the images, in order.

    The encoder runs in eval mode, without changing its statistics, and then returns to the mode
    in which it was.

    Args:
      encoder: on the device on which to compute.
      images: uint8 [3, height, width] each, all of one size.
      settings: of batches, preprocessing and precision.

    Yields:
      Features float32 [batch, channels] on the device, and their batch of images on the CPU.

    Raises:
      UserError: the device runs out of memory.
      Diverged: a feature is not finite.
    """
    device = next(encoder.parameters()).device
    was_training = encoder.training
    encoder.eval()
    share = Subset(images, rank_indices(len(images)))
    advice = f"use a smaller {settings.batch_size_name}"
    one_color: list[int] = []
    try:
        with progress.status("encoding images", total=len(share)) as work:
            for batch in image_loader(
                share,
                settings.batch_size,
                settings.workers,
                settings.prefetch,
                settings.timeout,
            ):
                with memory.advise(advice):
                    images_here = batch.image.to(device, non_blocking=True)
                    features = encode_batch(encoder, images_here, settings)
                _check_finite(features)
                one_color += batch.one_color
                yield features, batch
                work.done += len(features)
            warn_of_one_color(images.source, one_color)
    finally:
        encoder.train(was_training)


def encode_in_order(
    encoder: Encoder, images: ImageDataset, settings: FeatureSettings
) -> Iterator[Tensor]:
    """Yields the features of all images in order, the same on every rank.

    Each rank encodes its share first and keeps those features in memory.

    Args:
      encoder: see `encode`.
      images: see `encode`.
      settings: see `encode`.

    Yields:
      float32 [rows, channels] on the CPU, features of the next images.

    Raises:
      UserError: an image is unreadable.
      Diverged: a feature is not finite.
    """
    device = next(encoder.parameters()).device
    own = rank_indices(len(images))
    share = torch.zeros(len(own), encoder.channels)
    for rows, batch in encode(encoder, images, settings):
        share[(batch.image_index - own.start) // own.step] = rows.cpu()
    for start in range(0, len(images), _ROWS):
        stop = min(start + _ROWS, len(images))
        piece = torch.zeros(stop - start, encoder.channels)
        # The first of this rank's images at or after start, by its place in the share.
        first, last = (len(range(own.start, end, own.step)) for end in (start, stop))
        piece[own.start + first * own.step - start :: own.step] = share[first:last]
        # Every row was filled by one rank and is 0 elsewhere.
        yield collectives.sum_over_ranks(piece.to(device)).cpu()


def _check_finite(features: Tensor) -> None:
    if not features.isfinite().all():
        raise Diverged(
            "the encoder's features are not finite: its training diverged, its weights are "
            "corrupt, or they exceed float16; use other weights, or bind compute.precision = "
            "'float32'"
        )


def encode_batch(encoder: Encoder, images: Tensor, settings: FeatureSettings) -> Tensor:
    """Maps uint8 [batch, 3, height, width] to features float32 [batch, channels]."""
    enabled = settings.precision != torch.float32
    with torch.autocast(images.device.type, settings.precision, enabled=enabled):
        maps = encoder(settings.transform.normalize(images))
    return pool(maps)
