"""Features of a frozen encoder for linear evaluation: encoded in every epoch, or cached."""

from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jigclu.data.images import EpochView, ImageDataset
from jigclu.data.sources import Source, digest
from jigclu.data.subsets import label_array
from jigclu.methods.classification import ClassificationInputs
from jigclu.models.encoder import Encoder
from jigclu.tasks.feature_cache import FeatureCache
from jigclu.tasks.supervised import SupervisedTask
from jigclu.training.features import FeatureSettings, encode, encode_batch, rank_indices
from jigclu.training.process import Process


class FeatureSource(Protocol):
    """Features and labels of this rank's share of a task's images."""

    def training_batches(self, start_step: int) -> Iterator[ClassificationInputs]:
        """Yields the inputs of each step from start_step on, on the device."""

    def features(self, inputs: ClassificationInputs) -> Tensor:
        """Returns the features of training inputs, float32 [local_batch, channels]."""

    def evaluation_batches(self, source: Source) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields features float32 [batch, channels] and labels int64 [batch] of a source."""


class EncodedFeatures:
    """Reads, crops and encodes the images anew in every epoch."""

    def __init__(self, task: SupervisedTask, encoder: Encoder, process: Process) -> None:
        self._task = task
        self._encoder = encoder
        self._process = process
        self._settings = task.feature_settings(process.machine)
        self._encode: Callable[..., Tensor] = encode_batch
        if process.machine.compile.value:
            self._encode = torch.compile(encode_batch, fullgraph=True, dynamic=False)

    def training_batches(self, start_step: int) -> Iterator[ClassificationInputs]:
        """Yields images and labels for each step from start_step on."""
        return self._task.labeled_batches(start_step, self._process.device, self._process.machine)

    @torch.no_grad()
    def features(self, inputs: ClassificationInputs) -> Tensor:
        """Encodes training images."""
        return self._encode(self._encoder, inputs.images, self._settings)

    def evaluation_batches(self, source: Source) -> Iterator[tuple[Tensor, Tensor]]:
        """Encodes this rank's share of a source."""
        images = self._task.evaluation_images(source)
        for features, batch in encode(self._encoder, images, self._settings):
            yield features, batch.label.to(self._process.device)


class CachedFeatures:
    """Reads features from a cache on disk, which computes missing ones once."""

    def __init__(
        self, task: SupervisedTask, encoder: Encoder, process: Process, cache: FeatureCache
    ) -> None:
        self._task = task
        self._encoder = encoder
        self._device = process.device
        self._cache = cache
        self._settings: FeatureSettings = task.feature_settings(process.machine)
        self._files: dict[tuple[int, int | None], NDArray[np.float16]] = {}

    def training_batches(self, start_step: int) -> Iterator[ClassificationInputs]:
        """Yields features and labels for each step from start_step on."""
        source, views = self._task.training_source, self._cache.views
        labels = torch.from_numpy(label_array(source))
        for batch in self._task.sampler(start_step):
            indices = np.array([index for _, index in batch])
            features = self._file(source, batch[0][0] % views if views else None)[indices]
            yield ClassificationInputs(
                torch.from_numpy(features).to(self._device, torch.float32),
                labels[indices].to(self._device),
            )

    def features(self, inputs: ClassificationInputs) -> Tensor:
        """Returns the features of a batch, which contains them instead of images."""
        return inputs.images

    def evaluation_batches(self, source: Source) -> Iterator[tuple[Tensor, Tensor]]:
        """Reads the features of this rank's share of a source."""
        file, labels = self._file(source, None), label_array(source)
        own, size = np.array(rank_indices(len(source)), np.int64), self._task.val_batch_size
        for first in range(0, len(own), size):
            indices = own[first : first + size]
            yield (
                torch.from_numpy(file[indices]).to(self._device, torch.float32),
                torch.from_numpy(labels[indices]).to(self._device),
            )

    def _file(self, source: Source, view: int | None) -> NDArray[np.float16]:
        """Returns the features of an augmented view of a source, or of its evaluation images."""
        # Sources are told apart by identity, since a fingerprint reads all their file names.
        key = (id(source), view)
        if key not in self._files:
            images: ImageDataset | EpochView
            if view is None:
                images, crop = self._task.evaluation_images(source), self._task.evaluation_crop
            else:
                images = EpochView(self._task.training_images(), view)
                crop = self._task.training_crop
            about = digest(source.fingerprint(deep=True), view, crop)
            self._files[key] = self._cache.features(self._encoder, images, about, self._settings)
        return self._files[key]
