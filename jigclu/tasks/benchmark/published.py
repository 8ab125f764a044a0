"""The published reading and training step, as a baseline.

Chen et al., CVPR 2021, and the code published with it: PIL and a chain of torchvision's
original transforms for every patch; float32, eager, contiguous; a clustering loss that keeps
matrices of all pairs of patches.
"""

import random

import torch
import torchvision
from PIL import Image, ImageFilter
from torch import Tensor
from torch.nn import functional
from torchvision import transforms

from jigclu.models.encoder import Encoder
from jigclu.models.jigclu import JigClu
from jigclu.ops import jigsaw
from jigclu.ops.augment import ColorAugmentation

# Fixed in the published code, for feature maps of any size.
_POOLING_MAP = 8


class PublishedPatches:
    """Reads an image file to augmented patches, with PIL and a chain of transforms per patch."""

    def __init__(
        self,
        grid: int,
        cross_ratio: float,
        patch_size: int,
        scale: tuple[float, float],
        ratio: tuple[float, float],
        settings: ColorAugmentation,
    ) -> None:
        """The arguments are those of `crops.jigsaw_crops`, and of `augment`."""
        self._grid = grid
        self._cross_ratio = cross_ratio
        jitter = (settings.brightness, settings.contrast, settings.saturation, settings.hue)
        sigma = (settings.blur_sigma_min, settings.blur_sigma_max)

        def blur(patch: Image.Image) -> Image.Image:
            return patch.filter(ImageFilter.GaussianBlur(random.uniform(*sigma)))

        self._transform = transforms.Compose(
            [
                transforms.RandomResizedCrop(patch_size, scale, ratio),
                transforms.RandomApply(
                    [transforms.ColorJitter(*jitter)], settings.jitter_probability
                ),
                transforms.RandomGrayscale(settings.grayscale_probability),
                transforms.RandomApply([transforms.Lambda(blur)], settings.blur_probability),
                transforms.RandomHorizontalFlip(settings.flip_probability),
                transforms.ToTensor(),
                transforms.Normalize(settings.mean, settings.std),
            ]
        )

    def read(self, path: str) -> Tensor:
        """Returns float32 [grid**2, 3, size, size], normalized, in patch order."""
        with Image.open(path) as file:
            image = file.convert("RGB")
        boxes = jigsaw.patch_boxes(image.height, image.width, self._grid, self._cross_ratio)
        patches = [
            image.crop((box.left, box.top, box.left + box.width, box.top + box.height))
            for box in boxes
        ]
        return torch.stack([self._transform(patch) for patch in patches])


def clustering_loss(
    embeddings: Tensor, image: Tensor, temperature: float, base_temperature: float
) -> Tensor:
    """Returns `losses.clustering_loss` of all patches, from matrices of all pairs.

    Args:
      embeddings: [patches, channels], L2-normalized, in any order.
      image: int64 [patches], the index of each patch's image.
      temperature: > 0.
      base_temperature: > 0.
    """
    logits = embeddings @ embeddings.t() / temperature
    logits = logits - logits.amax(1, keepdim=True).detach()
    others = 1 - torch.eye(len(embeddings), device=embeddings.device)
    siblings = (image[:, None] == image[None]).float() * others
    log_likelihood = logits - (logits.exp() * others).sum(1, keepdim=True).log()
    of_siblings = (siblings * log_likelihood).sum(1) / siblings.sum(1)
    return -temperature / base_temperature * of_siblings.mean()


class PublishedStep:
    """A training step on augmented patches, on one device, with a learning rate of 0."""

    def __init__(
        self,
        encoder: str,
        grid: int,
        embedding_channels: int,
        temperature: float,
        base_temperature: float,
        device: torch.device,
    ) -> None:
        """Builds the network with random weights; the arguments are those of pre-training."""
        resnet = torchvision.models.get_model(encoder, weights=None)
        self._model = JigClu(Encoder(resnet), grid, _POOLING_MAP, embedding_channels).to(device)
        self._optimizer = torch.optim.SGD(
            self._model.parameters(), lr=0.0, momentum=0.9, weight_decay=1e-4
        )
        self._temperatures = (temperature, base_temperature)

    def __call__(self, patches: Tensor, permutation: Tensor) -> Tensor:
        """Takes a step; returns the loss [].

        Args:
          patches: float32 [batch * grid**2, 3, size, size], in patch order.
          permutation: int64 [batch * grid**2], on the device.
        """
        montages = jigsaw.stitch_montages(patches[permutation], self._model.grid)
        outputs = self._model(montages)
        batch_size = len(montages)
        loss = clustering_loss(outputs.embeddings, permutation % batch_size, *self._temperatures)
        location = jigsaw.patch_locations(permutation, batch_size)
        loss = loss + functional.cross_entropy(outputs.location_logits, location)
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad()
        return loss.detach()
