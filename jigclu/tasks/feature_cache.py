"""On-disk cache of a frozen encoder's features: computed once, mapped into memory, never stale.

A file is named by a hash of everything that its content depends on: the encoder's weights,
the images, how they are cropped and normalized, and the precision.
"""

import contextlib
import os
import uuid
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from jigclu.data.images import EpochView, ImageDataset
from jigclu.data.sources import digest
from jigclu.models.encoder import Encoder
from jigclu.system import collectives
from jigclu.system.errors import UserError, check
from jigclu.system.files import expand_home
from jigclu.system.input_files import map_array
from jigclu.system.on_resume import Free
from jigclu.training.features import FeatureSettings, encode

# Increase it when the same images would give other features or another layout.
_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class FeatureCache:
    """Folder of cached features, and the number of augmented views of each training image.

    Attributes:
      folder: of the files, shared by all ranks, also on other machines.
      views: random crops of each training image; 0 uses its evaluation crop instead.
    """

    folder: Free[str]
    views: int

    def __post_init__(self) -> None:
        check(self.views >= 0, "views", self.views, "0 or more")

    def features(
        self,
        encoder: Encoder,
        images: ImageDataset | EpochView,
        about: str,
        settings: FeatureSettings,
    ) -> NDArray[np.float16]:
        """Returns the features of all images; computes them if the file is missing.

        Every rank must call it with the same arguments; each computes its share.

        Args:
          encoder: on the device on which to compute.
          images: of one size.
          about: fingerprint of the images and of their crops.
          settings: of batches, preprocessing and precision.

        Returns:
          float16 [images, channels], mapped into memory.

        Raises:
          UserError: the folder cannot be written, or a feature exceeds float16.
        """
        transform = settings.transform
        depends = (_FORMAT, encoder_digest(encoder), about, transform.mean, transform.std)
        name = digest(*depends, str(settings.precision), torch.__version__)[:32]
        path = os.path.join(expand_home(self.folder), f"features_{name}.npy")
        try:
            if not collectives.broadcast(os.path.exists(path)):
                self._compute(path, encoder, images, settings)
            return _open(path, (len(images), encoder.channels))
        except OSError as error:
            raise UserError(
                f"{path} cannot be written or read ({error}): use another feature_cache.folder"
            ) from error

    def _compute(
        self,
        path: str,
        encoder: Encoder,
        images: ImageDataset | EpochView,
        settings: FeatureSettings,
    ) -> None:
        # Another run may compute the same file: each writes its own, and the last one stays.
        temporary = collectives.broadcast(f"{path}.{uuid.uuid4().hex}.partial")
        try:
            if collectives.rank() == 0:
                os.makedirs(self.folder, exist_ok=True)
                _allocate(temporary, (len(images), encoder.channels))
            collectives.barrier()
            file = np.lib.format.open_memmap(temporary, "r+")
            for features, batch in encode(encoder, images, settings):
                if features.abs().max() > torch.finfo(torch.half).max:
                    raise UserError(
                        "the encoder's features exceed the range of float16, in which they are "
                        "cached: bind linear.cache = None"
                    )
                file[batch.image_index.numpy()] = features.half().cpu().numpy()
            file.flush()
            collectives.barrier()
            if collectives.rank() == 0:
                os.replace(temporary, path)
            collectives.barrier()
        finally:
            if collectives.rank() == 0:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)


def _open(path: str, shape: tuple[int, int]) -> NDArray[np.float16]:
    """Maps cached features; raises UserError for other contents than float16 of a shape."""
    try:
        features = map_array(path)
        if features.dtype != np.float16 or features.shape != shape:
            raise ValueError(f"{features.dtype} {list(features.shape)}")
    except ValueError as error:
        raise UserError(
            f"{path} is corrupt ({error}), expected float16 {list(shape)}: remove it"
        ) from error
    return features


def _allocate(path: str, shape: tuple[int, int]) -> None:
    """Creates a file for the features, and reserves its disk space."""
    np.lib.format.open_memmap(path, "w+", np.float16, shape).flush()
    # Writing through a memory map to a full disk kills the process without a message.
    if hasattr(os, "posix_fallocate"):
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, os.path.getsize(path))


def encoder_digest(encoder: Encoder) -> str:
    """Hashes the weights and statistics of an encoder."""
    tensors = encoder.state_dict().items()
    parts = ((name, value.float().cpu().contiguous().numpy().tobytes()) for name, value in tensors)
    return digest(*(part for pair in parts for part in pair))
