"""Preprocessing of images for evaluation: resize, center crop, normalization."""

from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from jigclu.data.decode import to_pixels
from jigclu.ops.normalize import check_normalization, normalize
from jigclu.system.errors import UserError, check
from jigclu.system.on_resume import Free


@dataclass(frozen=True, kw_only=True)
class EvalTransform:
    """Preprocessing without randomness.

    Attributes:
      resize: pixels of the shorter side after resizing (published: 256).
      crop: side of the central crop in pixels, at most `resize` (published: 224).
      mean: of RGB in [0, 1].
      std: of RGB in [0, 1].
    """

    resize: Free[int]
    crop: Free[int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        check(self.resize >= 1, "resize", self.resize, "1 or more, in pixels")
        check(
            1 <= self.crop <= self.resize,
            "crop",
            self.crop,
            f"in [1, resize = {self.resize}], since images are resized first",
        )
        check_normalization(self.mean, self.std)

    def __call__(self, image: Image.Image | Tensor) -> Tensor:
        """Turns one image into an input of the encoder: float32 [3, crop, crop].

        Args:
          image: of PIL, or uint8 [3, height, width] in RGB.

        Raises:
          UserError: the tensor has another dtype or shape.
        """
        pixels = to_pixels(image) if isinstance(image, Image.Image) else image
        if pixels.dtype != torch.uint8 or pixels.ndim != 3 or len(pixels) != 3:
            raise UserError(
                f"image is {pixels.dtype} {list(pixels.shape)}; expected torch.uint8 "
                "[3, height, width]: one RGB image, not yet normalized"
            )
        return self.normalize(self.crop_image(pixels))

    def crop_image(self, image: Tensor) -> Tensor:
        """Resizes and crops uint8 [3, height, width] to uint8 [3, crop, crop]."""
        image = transforms.resize(image, [self.resize], antialias=True)
        return transforms.center_crop(image, [self.crop, self.crop])

    def normalize(self, images: Tensor) -> Tensor:
        """Normalizes uint8 [..., 3, height, width] to float32 of the same shape."""
        return normalize(images, self.mean, self.std)
