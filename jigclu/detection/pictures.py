"""Pictures of boxes and masks, annotated and predicted."""

import colorsys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

# Longer side of a drawn image, pixels: smaller images are enlarged to make room for labels.
_MIN_SIDE, _MAX_SIDE = 480, 1280
_MASK_OPACITY = 0.3
# Nearby multiples of it are far apart on the color circle.
_GOLDEN_RATIO = (5**0.5 - 1) / 2
_MARGIN = 3
# Width of the dark outline of labels.
_STROKE = 1

Edges = tuple[float, float, float, float]
Size = tuple[int, int]  # Width and height.
Color = tuple[int, int, int]


class Shape(NamedTuple):
    """An annotated or predicted object.

    box: left, top, right and bottom edge, pixels.
    class_number: index of its class.
    score: in [0, 1]; None for annotations.
    mask: bool [height, width] of the image, or None.
    is_ignored: whether evaluation ignores it, because it is a crowd or difficult.
    """

    box: Edges
    class_number: int
    score: float | None = None
    mask: NDArray[np.bool_] | None = None
    is_ignored: bool = False


def compare(
    image: Tensor,
    annotated: Sequence[Shape],
    predicted: Sequence[Shape],
    classes: Sequence[str],
    score: float,
) -> Tensor:
    """Returns annotations on the left and predictions on the right, with titles.

    Args:
      image: RGB, uint8 [3, height, width].
      annotated, predicted: objects in the image.
      classes: class names.
      score: predictions with a lower score are left out.

    Returns:
      uint8 [3, height, width] of the picture.
    """
    likely = [shape for shape in predicted if (shape.score or 0) >= score]
    left = to_pil_image(draw(image, annotated, classes))
    right = to_pil_image(draw(image, likely, classes))
    width, height = left.size
    font = _font(left.size)
    header = _line_height(font) + 2 * _MARGIN
    picture = Image.new("RGB", (2 * width + _MARGIN, header + height), "white")
    picture.paste(left, (0, header))
    picture.paste(right, (width + _MARGIN, header))
    pen = ImageDraw.Draw(picture)
    pen.text((_MARGIN, _MARGIN), "annotated", fill="black", font=font)
    title = f"predicted, score {score:.0%} or more"
    pen.text((width + 2 * _MARGIN, _MARGIN), title, fill="black", font=font)
    return pil_to_tensor(picture)


def draw(image: Tensor, shapes: Sequence[Shape], classes: Sequence[str]) -> Tensor:
    """Returns the image with boxes, masks and labels in the colors of their classes.

    Objects that evaluation ignores are dashed. Labels are outside their boxes if there is room.
    The longer side is scaled to 480 pixels if it is shorter, and to 1280 if it is longer.

    Args:
      image: RGB, uint8 [3, height, width].
      shapes: objects in the image; those with the highest scores are drawn on top.
      classes: class names.

    Returns:
      uint8 [3, height, width] of the picture.
    """
    height, width = image.shape[1:]
    longer = max(height, width)
    scale = min(max(longer, _MIN_SIDE), _MAX_SIDE) / longer
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    picture = to_pil_image(image).resize(size, Image.Resampling.BICUBIC)
    # The highest score comes last, to be drawn on top.
    ordered = sorted(shapes, key=lambda shape: shape.score or 0)
    for shape in ordered:
        if shape.mask is not None:
            opacity = Image.fromarray(np.uint8(255 * _MASK_OPACITY) * shape.mask)
            mask = opacity.resize(size, Image.Resampling.NEAREST)
            picture.paste(_color(shape.class_number), (0, 0, *size), mask)
    boxes = [_scale(shape.box, (width, height), size) for shape in ordered]
    pen = ImageDraw.Draw(picture)
    for shape, box in zip(ordered, boxes, strict=True):
        _draw_box(pen, box, _color(shape.class_number), size, is_dashed=shape.is_ignored)
    _draw_labels(pen, ordered, boxes, size, classes)
    return pil_to_tensor(picture)


def _label(shape: Shape, classes: Sequence[str]) -> str:
    # Line breaks cannot be drawn.
    name = " ".join(classes[shape.class_number].split())
    if shape.is_ignored:
        return f"{name} (ignored)"
    return name if shape.score is None else f"{name} {shape.score:.0%}"


def _color(class_number: int, saturation: float = 0.75) -> Color:
    hue = class_number * _GOLDEN_RATIO % 1
    red, green, blue = (round(255 * value) for value in colorsys.hsv_to_rgb(hue, saturation, 1.0))
    return red, green, blue


def _font(size: Size) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(max(11, round(max(size) / 50)))
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


def _line_height(font: ImageFont.FreeTypeFont) -> int:
    return sum(font.getmetrics())


def _scale(box: Edges, size: Size, new_size: Size) -> Edges:
    """Returns the box in a resized image, clipped to its pixels."""
    factors = [new / old for new, old in zip(new_size, size, strict=True)]
    left, top, right, bottom = (
        round(min(max(0, edge * factors[axis]), new_size[axis] - 1))
        for axis, edge in zip((0, 1, 0, 1), box, strict=True)
    )
    return left, top, right, bottom


def _draw_box(
    pen: ImageDraw.ImageDraw, box: Edges, color: Color, size: Size, *, is_dashed: bool
) -> None:
    width = max(1, round(max(size) / 400))
    if not is_dashed:
        pen.rectangle(box, outline=color, width=width)
        return
    left, top, right, bottom = box
    for start, end in _dashes(left, right, 4 * width):
        for edge in (top, bottom):
            pen.line((start, edge, end, edge), fill=color, width=width)
    for start, end in _dashes(top, bottom, 4 * width):
        for edge in (left, right):
            pen.line((edge, start, edge, end), fill=color, width=width)


def _draw_labels(
    pen: ImageDraw.ImageDraw,
    shapes: Sequence[Shape],
    boxes: Sequence[Edges],
    size: Size,
    classes: Sequence[str],
) -> None:
    """Draws labels without a background, which would hide the image.

    A dark outline and pale colors make them readable. The last ones have the best places.
    """
    font = _font(size)
    taken: list[Edges] = []
    for shape, box in zip(reversed(shapes), reversed(boxes), strict=True):
        text = _label(shape, classes)
        text_size = (font.getlength(text) + 2 * _STROKE, _line_height(font) + 2 * _STROKE)
        place = _place(box, text_size, size, taken)
        taken.append(place)
        pen.text(
            (place[0] + _STROKE, place[1] + _STROKE),
            text,
            fill=_color(shape.class_number, saturation=0.35),
            font=font,
            stroke_width=_STROKE,
            stroke_fill="black",
        )


def _dashes(start: float, end: float, length: int) -> Iterator[tuple[float, float]]:
    while start < end:
        yield start, min(start + length, end)
        start += 2 * length


def _place(box: Edges, label: tuple[float, float], picture: Size, taken: Sequence[Edges]) -> Edges:
    """Returns edges of a label outside its box and apart from other labels, if there is room.

    Args:
      box: edges of the box.
      label, picture: width and height.
      taken: edges of other labels.
    """
    left, top, right, bottom = box
    width, height = label
    # Labels at the right edge of the picture are moved to the left.
    starts = [max(0, min(start, picture[0] - width)) for start in (left, right - width)]
    above_or_below = [(start, y) for start in starts for y in (top - height, bottom + 1)]
    beside = [(right + 1, top), (left - width - 1, top)]
    inside = [(left, top), (right - width, bottom - height)]
    candidates = [
        (x, y, x + width, y + height)
        for x, y in (*above_or_below, *beside, *inside)
        if 0 <= x <= picture[0] - width and 0 <= y <= picture[1] - height
    ]
    free = [edges for edges in candidates if not any(_overlap(edges, other) for other in taken)]
    return next(iter(free or candidates), (starts[0], 0, starts[0] + width, height))


def _overlap(first: Edges, second: Edges) -> bool:
    return (
        first[0] < second[2]
        and second[0] < first[2]
        and first[1] < second[3]
        and second[1] < first[3]
    )
