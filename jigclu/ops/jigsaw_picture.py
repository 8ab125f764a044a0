"""A picture of jigsaw clustering: photographs, their patches, montages, and predictions.

    photographs with boxes -> their patches -> montages with the predictions for each patch

Every photograph has a color. In the montages, the frame of a patch has the color of the
photograph to which it is assigned, and a line inside the frame that of its own, so that frames of
one color are right. A small grid marks the predicted place: white if right, red if wrong. Patches
that are encoded one by one are drawn in the same way, under another title.
"""

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from jigclu.ops.jigsaw import Box
from jigclu.ops.pictures import FRAME, HEADER, INK, LINE, MARGIN, framed, write

# Of photographs, far apart also for color-blind people (Okabe and Ito 2008).
COLORS = ((0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167))
IMAGES = len(COLORS)
RIGHT, WRONG = (255, 255, 255), (255, 40, 40)
BLOCK = 192  # Side of a photograph and of a montage.
GAP = 28  # Between blocks, with room for an arrow.
CELL = 6  # Side of a cell of the small grids.


def jigsaw_picture(
    photographs: Sequence[Tensor],
    boxes: Sequence[Sequence[Box]],
    patches: Tensor,
    slots: Tensor,
    shown: Tensor,
    assigned: Tensor,
    places: Tensor,
    single: bool,
) -> Tensor:
    """Draws a jigsaw of up to four photographs; all tensors are on the CPU.

    Args:
      photographs: uint8 [3, height, width] each.
      boxes: of the patches of each photograph, in patch order.
      patches: uint8 [images, grid**2, 3, size, size], in patch order.
      slots: uint8 [images * grid**2, 3, size, size], augmented patches in the order of montages.
      shown: int64 [slots], the row of `patches`, without its first axis, that each slot shows.
      assigned: int64 [slots], the photograph to which each slot is assigned.
      places: int64 [slots], the predicted place in the photograph, in patch order.
      single: whether patches were encoded one by one, so that blocks of slots are not montages.

    Returns:
      uint8 [3, height, width].
    """
    images, pieces = patches.shape[:2]
    grid = math.isqrt(pieces)
    own, place = shown // pieces, shown % pieces
    footer = (
        "frame: image of the nearest patch; inner line: its own image; small grid: predicted place",
        f"{int((assigned == own).sum())} of {len(shown)} patches are nearest to a patch of their "
        f"image, {int((places == place).sum())} have the right place",
    )
    bottom = top(images) - GAP // 2 + MARGIN
    size = (left(3) - GAP + MARGIN, bottom + HEADER * len(footer))
    canvas = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(canvas)
    slots_title = "shuffled patches" if single else "montages"
    for column, title in enumerate(("photographs", "patches", slots_title)):
        write(pen, (left(column), MARGIN), title)
    for row in range(images):
        canvas.paste(_photograph(photographs[row], boxes[row], COLORS[row]), (left(0), top(row)))
        for number in range(pieces):
            tile = framed(patches[row, number], BLOCK // grid, (COLORS[row],))
            canvas.paste(tile, corner(1, row, number % grid, number // grid, grid))
        for number in range(pieces):
            slot = row * pieces + number
            truth, guess = int(own[slot]), int(assigned[slot])
            tile = framed(slots[slot], BLOCK // grid, (COLORS[guess], COLORS[truth]))
            _mark_place(tile, int(places[slot]), int(place[slot]), grid)
            canvas.paste(tile, corner(2, row, number // grid, number % grid, grid))
        for column in (1, 2):
            _arrow(pen, left(column) - GAP // 2, top(row) + BLOCK // 2)
    for number, line in enumerate(footer):
        write(pen, (MARGIN, bottom + number * HEADER), line)
    return pil_to_tensor(canvas)


def left(column: int) -> int:
    """Returns the left edge of a column of blocks, in pixels."""
    return MARGIN + column * (BLOCK + GAP)


def top(row: int) -> int:
    """Returns the upper edge of a row of blocks, in pixels."""
    return MARGIN + HEADER + row * (BLOCK + GAP // 2)


def corner(column: int, row: int, down: int, right: int, grid: int) -> tuple[int, int]:
    """Returns the left and upper edge of a tile of a block, which has grid**2 tiles."""
    side = BLOCK // grid
    return left(column) + right * side, top(row) + down * side


def _photograph(image: Tensor, boxes: Sequence[Box], color: tuple[int, ...]) -> Image.Image:
    """Returns a photograph that fits a block, in the middle of it, with its boxes."""
    scale = BLOCK / max(image.shape[1:])
    height, width = (max(1, round(side * scale)) for side in image.shape[1:])
    block = Image.new("RGB", (BLOCK, BLOCK), "white")
    across, down = (BLOCK - width) // 2, (BLOCK - height) // 2
    block.paste(to_pil_image(image).resize((width, height)), (across, down))
    pen = ImageDraw.Draw(block)
    for box in boxes:
        x, y = across + round(box.left * scale), down + round(box.top * scale)
        right, bottom = x + round(box.width * scale) - 1, y + round(box.height * scale) - 1
        pen.rectangle((x, y, right, bottom), outline="white", width=4)
        pen.rectangle((x + 1, y + 1, right - 1, bottom - 1), outline=color, width=2)
    return block


def _mark_place(tile: Image.Image, predicted: int, true: int, grid: int) -> None:
    """Draws a small grid into the lower right corner, with the predicted place filled."""
    side = grid * (CELL + 1) + 1
    start = tile.width - 1 - FRAME - LINE - side
    pen = ImageDraw.Draw(tile)
    pen.rectangle((start, start, start + side - 1, start + side - 1), fill="black")
    for place in range(grid**2):
        x, y = (start + 1 + steps * (CELL + 1) for steps in (place // grid, place % grid))
        color = (RIGHT if predicted == true else WRONG) if place == predicted else (90, 90, 90)
        pen.rectangle((x, y, x + CELL - 1, y + CELL - 1), fill=color)


def _arrow(pen: ImageDraw.ImageDraw, x: int, y: int) -> None:
    pen.line((x - 9, y, x + 4, y), fill=INK, width=2)
    pen.polygon(((x + 9, y), (x + 2, y - 5), (x + 2, y + 5)), fill=INK)
