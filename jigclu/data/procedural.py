"""A generated data set of ten classes of textured shapes, for the demo and the tests.

A class is a shape with a texture. Position, scale, rotation, colors, background and lighting
are random and independent of the class, so an encoder must recognize form to separate classes.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jigclu.data.decode import Reduction, at_full_size
from jigclu.data.sources import digest
from jigclu.system.errors import check

Field = NDArray[np.floating]
Form = Callable[[Field, Field], Field]

_SPLITS = ("train", "val")
_KNOTS = 3  # Colors per side of the smooth background noise.


# Shapes: positive inside, 0 on the outline, with a slope of about 1 per unit; (u, v) in units of
# the shape's radius.
def _disc(u: Field, v: Field) -> Field:
    return 0.9 - np.hypot(u, v)


def _square(u: Field, v: Field) -> Field:
    return 0.75 - np.maximum(abs(u), abs(v))


def _triangle(u: Field, v: Field) -> Field:
    return 0.5 - np.maximum(-v, 0.5 * v + 0.866 * abs(u))


def _star(u: Field, v: Field) -> Field:
    return 0.75 + 0.3 * np.cos(5 * np.arctan2(v, u)) - np.hypot(u, v)


def _ring(u: Field, v: Field) -> Field:
    return 0.27 - abs(np.hypot(u, v) - 0.7)


def _cross(u: Field, v: Field) -> Field:
    arms = np.minimum(abs(u), abs(v))
    return np.minimum(0.35 - arms, 0.95 - np.maximum(abs(u), abs(v)))


def _bar(u: Field, v: Field) -> Field:
    return np.minimum(1.0 - abs(u), 0.45 - abs(v))


def _crescent(u: Field, v: Field) -> Field:
    return np.minimum(0.95 - np.hypot(u, v), np.hypot(u - 0.55, v) - 0.6)


def _flower(u: Field, v: Field) -> Field:
    return 0.72 + 0.25 * abs(np.sin(2 * np.arctan2(v, u))) - np.hypot(u, v)


def _hourglass(u: Field, v: Field) -> Field:
    return np.minimum(0.78 - abs(v), 0.12 + 0.7 * abs(v) - abs(u))


# Textures: share of the second color in [0, 1]; (u, v) in periods of the texture.
def _ramp(wave: Field) -> Field:
    """Maps a wave in [-1, 1] to a share in [0, 1] with soft edges."""
    return np.clip(0.5 + 2 * wave, 0, 1)


def _stripes(u: Field, v: Field) -> Field:
    return _ramp(np.sin(math.tau * u))


def _dots(u: Field, v: Field) -> Field:
    return np.clip(6 * (0.34 - np.hypot(u % 1 - 0.5, v % 1 - 0.5)) + 0.5, 0, 1)


def _speckles(u: Field, v: Field) -> Field:
    waves = np.sin(9.1 * u + 3 * np.sin(4.7 * v)) + np.sin(8.3 * v + 3 * np.sin(5.3 * u + 1))
    return _ramp(waves / 2)


def _checks(u: Field, v: Field) -> Field:
    return _ramp(2 * np.sin(math.pi * u) * np.sin(math.pi * v))


def _targets(u: Field, v: Field) -> Field:
    return _ramp(np.sin(math.tau * np.hypot(u, v)))


def _zigzags(u: Field, v: Field) -> Field:
    return _ramp(np.sin(math.tau * (u + 0.7 * abs(v % 1 - 0.5) * 2)))


def _meshes(u: Field, v: Field) -> Field:
    return np.clip(6 * np.maximum(abs(u % 1 - 0.5), abs(v % 1 - 0.5)) - 2, 0, 1)


def _plain(u: Field, v: Field) -> Field:
    return np.clip(0.5 + 0.12 * u, 0, 1)


def _bricks(u: Field, v: Field) -> Field:
    joints = np.maximum(abs(v % 1 - 0.5), 2 * abs((u / 2 + 0.5 * (v // 1)) % 1 - 0.5) - 0.5)
    return np.clip(8 * joints - 2.8, 0, 1)


def _spokes(u: Field, v: Field) -> Field:
    return _ramp(np.sin(8 * np.arctan2(v, u)))


_CLASSES: dict[str, tuple[Form, Form]] = {
    "striped_disc": (_disc, _stripes),
    "dotted_square": (_square, _dots),
    "speckled_triangle": (_triangle, _speckles),
    "checked_star": (_star, _checks),
    "spoked_ring": (_ring, _spokes),
    "zigzag_cross": (_cross, _zigzags),
    "bricked_bar": (_bar, _bricks),
    "plain_crescent": (_crescent, _plain),
    "meshed_flower": (_flower, _meshes),
    "target_hourglass": (_hourglass, _targets),
}


class ProceduralImages:
    """A source of images that depend only on (seed, split, index) and are drawn when read.

    Attributes:
      classes: names of the ten classes.
      labels: class number of every image, index % 10.
    """

    def __init__(self, *, images: int, size: int, seed: int, split: str) -> None:
        """Draws nothing yet.

        Args:
          images: number of images, at least 1.
          size: side of an image, pixels, at least 16.
          seed: of the images; different seeds give different ones.
          split: "train" or "val", which share no image.
        """
        check(images >= 1, "images", images, "1 or more")
        check(size >= 16, "size", size, "16 or more, in pixels")
        check(seed >= 0, "seed", seed, "0 or more")
        check(split in _SPLITS, "split", split, "'train' or 'val'")
        self.classes = list(_CLASSES)
        self.labels = [index % len(_CLASSES) for index in range(images)]
        self._size = size
        self._split = split
        self._stream = (seed, _SPLITS.index(split))

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """Returns split/class/index, the path that the image would have in a folder tree."""
        return f"{self._split}/{self.classes[self.labels[index]]}/{index:06d}"

    def fingerprint(self, deep: bool) -> str:
        """See `Source`. The settings identify the content of the images."""
        del deep
        return digest(len(self), self._size, self._split, self._stream)

    def read(self, index: int, reduction: Reduction = at_full_size) -> Tensor:
        """Returns uint8 [3, size, size], RGB, at full size."""
        del reduction
        shape, texture = _CLASSES[self.classes[self.labels[index]]]
        generator = np.random.default_rng((*self._stream, index))
        return torch.from_numpy(_draw(generator, self._size, shape, texture))


def _draw(
    generator: np.random.Generator, size: int, shape: Form, texture: Form
) -> NDArray[np.uint8]:
    """Draws one object on a background under random lighting: uint8 [3, size, size]."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) * np.float32(2 / size) - 1
    radius = generator.uniform(0.5, 0.9)
    reach = 1.05 - radius
    left, top = generator.uniform(-reach, reach, 2)
    u, v = _rotate(axis - np.float32(left), axis - np.float32(top), generator.uniform(0, math.tau))
    coverage = np.clip(shape(u / radius, v / radius) * radius * size / 2 + 0.5, 0, 1)
    # Relative to the image, not to the object: a patch of a large object shows whole periods.
    period = np.float32(generator.uniform(0.2, 0.3))
    share = texture(u / period, v / period)

    first, second = _two_colors(generator)
    paint = first + share * (second - first)
    canvas = _background(generator, axis)
    canvas += coverage * (paint - canvas)
    slope = generator.uniform(-0.2, 0.2, 2).astype(np.float32)
    canvas *= generator.uniform(0.8, 1.1) + slope[0] * axis[:, None] + slope[1] * axis
    canvas += generator.normal(0, 0.02, canvas.shape)
    return (np.clip(canvas, 0, 1) * 255).astype(np.uint8)


def _rotate(x: Field, y: Field, angle: float) -> tuple[Field, Field]:
    """Returns rotated coordinates (u, v), [size, size] each, of the axes x and y, [size] each."""
    cosine, sine = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    return cosine * x + sine * y[:, None], cosine * y[:, None] - sine * x


def _two_colors(generator: np.random.Generator) -> tuple[Field, Field]:
    """Draws two colors [3, 1, 1] that differ in brightness, so that the texture is visible."""
    dark = generator.uniform(0.0, 0.3, (3, 1, 1)).astype(np.float32)
    light = np.minimum(dark + generator.uniform(0.4, 0.7, (3, 1, 1)), 1).astype(np.float32)
    return (dark, light) if generator.random() < 0.5 else (light, dark)


def _background(generator: np.random.Generator, axis: Field) -> Field:
    """Interpolates variations of one random color smoothly over the image: [3, size, size]."""
    variation = generator.uniform(-0.15, 0.15, (3, _KNOTS, _KNOTS))
    colors = (generator.uniform(0.35, 0.65, (3, 1, 1)) + variation).astype(np.float32)
    positions = (axis + 1) * np.float32((_KNOTS - 1) / 2)
    hats = np.clip(1 - abs(positions[:, None] - np.arange(_KNOTS, dtype=np.float32)), 0, 1)
    smooth = hats * hats * (3 - 2 * hats)
    return smooth @ colors @ smooth.T
