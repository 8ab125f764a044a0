"""Pictures for people: training images, confusions of classes, and nearest neighbors."""

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image
from torchvision.utils import draw_segmentation_masks, make_grid

from jigclu.system.to_device import per_channel

SHOWN = 8  # Images of a picture of training images.
_COLUMNS = 4
_OPACITY = 0.7  # Of the colors of classes.
Color = tuple[int, int, int]
INK: Color = (40, 40, 40)
GREEN, RED = (0, 158, 115), (213, 94, 0)  # Far apart also for color-blind people.
FONT = ImageFont.load_default(13)
MARGIN, GAP, HEADER = 8, 16, 20
TILE = 72
FRAME, LINE = 5, 3  # Widths of the outer and the inner frame of an image.
_SIDE = 400  # Least side of a picture of confusions, in pixels.
_MOST_NAMES = 30
_LONGEST_NAME = 20
_LEAST_CELL, _MOST_CELL, _WRITABLE_CELL = 16, 60, 32  # Of classes with names.
_LEAST_WRITTEN = 0.005  # Smaller shares are not written as numbers.
_AXES = ("rows: true", "columns:", "predicted")


@torch.no_grad()
def to_pixels(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Returns normalized images, float [images, 3, height, width], as uint8 of the same shape."""
    center, spread = (per_channel(values, images.device) for values in (mean, std))
    return ((images * spread + center).clamp(0, 1) * 255).round().to(torch.uint8)


def image_grid(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Draws normalized images side by side.

    Args:
      images: float [images, 3, height, width].
      mean: of RGB in [0, 1], with which the images are normalized.
      std: likewise.

    Returns:
      uint8 [3, picture_height, picture_width], on the device of the images.
    """
    return make_grid(to_pixels(images, mean, std), nrow=_COLUMNS, pad_value=255)


def segmentation_picture(image: Tensor, truth: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """Draws an image, its ground truth and a prediction side by side, in VOC's colors.

    Args:
      image: uint8 [3, height, width].
      truth: integers [height, width] in [0, classes); other pixels, which are ignored, get no
        color.
      predicted: likewise.
      classes: number of classes.

    Returns:
      uint8 [3, height, 3 * width], on the CPU.
    """
    image = image.cpu()
    numbers = torch.arange(classes).view(-1, 1, 1)
    drawn = [
        draw_segmentation_masks(image, mask.cpu() == numbers, _OPACITY, voc_colors(classes))
        for mask in (truth, predicted)
    ]
    return torch.cat([image, *drawn], 2)


def voc_colors(classes: int) -> list[tuple[int, int, int]]:
    """Returns the RGB colors of VOC's palette (Everingham et al., IJCV 2015): class 0 is black.

    Every third bit of a class number belongs to the same color, the lowest bit to its highest.
    """
    return [(_color(number), _color(number >> 1), _color(number >> 2)) for number in range(classes)]


def _color(number: int) -> int:
    return sum((number >> 3 * place & 1) << 7 - place for place in range(8))


def confusion_picture(confusion: Tensor, names: Sequence[str] = ()) -> Tensor:
    """Draws which classes are mistaken for which: the darker, the larger the share.

    Args:
      confusion: int64 [classes, classes], images by true class (row) and predicted class.
      names: of the classes; up to 30 of them are written along both sides.

    Returns:
      uint8 [3, height, width], with a pixel or a square of pixels per cell.
    """
    confusion = confusion.cpu()
    shares = confusion / confusion.sum(1, keepdim=True).clamp_min(1)
    # Rare confusions matter most: the square root shows a share of 1% as a tenth.
    gray = ((1 - shares.sqrt()) * 255).round().to(torch.uint8)
    classes = len(gray)
    is_named = 0 < len(names) <= _MOST_NAMES
    least, most = (_LEAST_CELL, _MOST_CELL) if is_named else (1, _SIDE)
    zoom = min(max(least, _SIDE // classes), most)
    cells = gray.repeat_interleave(zoom, 0).repeat_interleave(zoom, 1).expand(3, -1, -1)
    if not is_named:
        return cells
    picture = to_pil_image(cells.contiguous())
    if zoom >= _WRITABLE_CELL:
        pen = ImageDraw.Draw(picture)
        for row, column in (shares >= _LEAST_WRITTEN).nonzero().tolist():
            color = "white" if gray[row, column] < 128 else INK
            middle = (round((column + 0.5) * zoom), round((row + 0.5) * zoom))
            write(pen, middle, f"{shares[row, column]:.0%}", color, "mm")
    return pil_to_tensor(_with_axes(picture, names, zoom))


def _with_axes(cells: Image.Image, names: Sequence[str], zoom: int) -> Image.Image:
    """Adds the names of true classes on the left and of predicted classes above."""
    shown = [name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}…" for name in names]
    room = 2 * MARGIN + max(round(FONT.getlength(text)) for text in (*shown, *_AXES))
    canvas = Image.new("RGB", (room + cells.width + MARGIN, room + cells.height + MARGIN), "white")
    canvas.paste(cells, (room, room))
    pen = ImageDraw.Draw(canvas)
    pen.rectangle((room - 1, room - 1, room + cells.width, room + cells.height), outline=INK)
    middles = [room + round((number + 0.5) * zoom) for number in range(len(shown))]
    for name, middle in zip(shown, middles, strict=True):
        write(pen, (room - MARGIN, middle), name, anchor="rm")
    # Text upwards is text to the right on a canvas that lies on its side.
    canvas = canvas.transpose(Image.Transpose.ROTATE_270)
    pen = ImageDraw.Draw(canvas)
    for name, middle in zip(shown, middles, strict=True):
        write(pen, (canvas.width - room + MARGIN, middle), name, anchor="lm")
    canvas = canvas.transpose(Image.Transpose.ROTATE_90)
    pen = ImageDraw.Draw(canvas)
    for number, text in enumerate(_AXES):
        write(pen, (MARGIN, MARGIN + number * HEADER), text)
    return canvas


def neighbors_picture(queries: Tensor, neighbors: Tensor, right: Tensor) -> Tensor:
    """Draws queries, each followed by its nearest neighbors in the order of their similarity.

    Args:
      queries: uint8 [queries, 3, height, width].
      neighbors: uint8 [queries, neighbors, 3, height, width].
      right: bool [queries, neighbors], whether a neighbor is of the query's class.

    Returns:
      uint8 [3, height, width], with a tile of 72x72 pixels per image; the frame of a neighbor is
      green if it is right, and red if not.
    """
    rows, columns = right.shape
    start = MARGIN + TILE + GAP
    size = (start + columns * TILE + MARGIN, 2 * (HEADER + MARGIN) + rows * TILE)
    canvas = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(canvas)
    write(pen, (MARGIN, MARGIN), "query")
    write(pen, (start, MARGIN), "nearest neighbors; green: of the query's class, red: of another")
    for row in range(rows):
        top = MARGIN + HEADER + row * TILE
        canvas.paste(framed(queries[row], TILE, (INK,)), (MARGIN, top))
        for column in range(columns):
            color = GREEN if right[row, column] else RED
            tile = framed(neighbors[row, column], TILE, (color,))
            canvas.paste(tile, (start + column * TILE, top))
    total = f"{int(right.sum())} of {right.numel()} neighbors are of the query's class"
    write(pen, (MARGIN, size[1] - HEADER - MARGIN // 2), total)
    return pil_to_tensor(canvas)


def framed(image: Tensor, side: int, colors: Sequence[Color]) -> Image.Image:
    """Returns an image, uint8 [3, height, width], in frames, the outermost first.

    Args:
      image: which is resized to the square within the frames.
      side: of the result, whose outermost pixels are white.
      colors: of the frames: the first is 5 pixels wide, the others 3.
    """
    tile = Image.new("RGB", (side, side), "white")
    pen = ImageDraw.Draw(tile)
    edge = 1
    for color, width in zip(colors, (FRAME, LINE), strict=False):
        pen.rectangle((edge, edge, side - 1 - edge, side - 1 - edge), fill=color)
        edge += width
    inner = side - 2 * edge
    tile.paste(to_pil_image(image).resize((inner, inner)), (edge, edge))
    return tile


def write(
    pen: ImageDraw.ImageDraw,
    place: tuple[int, int],
    text: str,
    color: Color | str = INK,
    anchor: str = "la",
) -> None:
    """Writes text; for the anchor see Pillow, by default its upper left corner is the place."""
    pen.text(place, text, fill=color, font=FONT, anchor=anchor)
