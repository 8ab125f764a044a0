"""The picture of a jigsaw shows photographs, patches, montages and predictions where it says."""

from collections.abc import Iterator

import torch
from absl.testing import absltest, parameterized
from torch import Tensor

from jigclu.ops import jigsaw_picture
from jigclu.ops.jigsaw import Box, stitch_montages
from jigclu.ops.jigsaw_picture import BLOCK, CELL, COLORS, FRAME, LINE, RIGHT, WRONG

WHITE = (255, 255, 255)


def gray(*levels: int) -> Tensor:
    """Returns images of 20x20 pixels, one of each level."""
    return torch.tensor(levels, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 20, 20)


def pixel(picture: Tensor, x: int, y: int) -> tuple[int, ...]:
    return tuple(picture[:, y, x].tolist())


class JigsawPictureTest(parameterized.TestCase):
    def draw(
        self, grid: int, shown: Tensor, assigned: Tensor, places: Tensor, single: bool = False
    ) -> Tensor:
        """Draws two photographs whose patches have the levels 0, 1, 2, ..."""
        pieces = grid**2
        patches = gray(*range(2 * pieces))
        return jigsaw_picture.jigsaw_picture(
            [gray(100)[0], gray(100)[0][:, :10]],
            [[Box(5, 5, 10, 10)], [Box(0, 0, 10, 20)]],
            patches.unflatten(0, (2, pieces)),
            patches[shown] + 100,
            shown,
            assigned,
            places,
            single,
        )

    def tiles(self, column: int, grid: int) -> Iterator[tuple[int, int]]:
        """Yields the corners of the tiles of both blocks of a column, row by row."""
        for row in range(2):
            for number in range(grid**2):
                yield jigsaw_picture.corner(column, row, number // grid, number % grid, grid)

    @parameterized.parameters(2, 3)
    def test_frames_are_of_the_assigned_image_and_lines_of_the_own_one(self, grid: int) -> None:
        pieces, side = grid**2, BLOCK // grid
        shown = torch.randperm(2 * pieces, generator=torch.Generator().manual_seed(0))
        own, place = shown // pieces, shown % pieces
        assigned, places = own.clone(), place.clone()
        assigned[1], places[2] = 1 - own[1], (place[2] + 1) % pieces
        picture = self.draw(grid, shown, assigned, places)
        self.assertEqual((picture.dtype, picture.shape[0]), (torch.uint8, 3))
        for slot, (x, y) in enumerate(self.tiles(2, grid)):
            middle = y + side // 2
            self.assertEqual(pixel(picture, x, middle), WHITE)
            self.assertEqual(pixel(picture, x + FRAME, middle), COLORS[assigned[slot]], slot)
            line = x + FRAME + LINE
            self.assertEqual(pixel(picture, line, middle), COLORS[own[slot]], slot)
            self.assertEqual(pixel(picture, line + 2, middle), (100 + int(shown[slot]),) * 3)
            # The small grid ends at the line; the cell of the predicted place is filled.
            start = side - 1 - FRAME - LINE - grid * (CELL + 1)
            column, row = int(places[slot]) // grid, int(places[slot]) % grid
            cell = [start + number * (CELL + 1) for number in (column, row)]
            color = RIGHT if slot != 2 else WRONG
            self.assertEqual(pixel(picture, x + cell[0], y + cell[1]), color, slot)

    def test_patches_stand_at_their_place_in_the_color_of_their_photograph(self) -> None:
        slots = torch.arange(8)
        picture = self.draw(2, slots, slots // 4, slots % 4)
        # Patches are numbered column by column.
        expected = [0, 2, 1, 3, 4, 6, 5, 7]
        for level, (x, y) in zip(expected, self.tiles(1, 2), strict=True):
            self.assertEqual(pixel(picture, x + 48, y + 48), (level,) * 3)
            self.assertEqual(pixel(picture, x + FRAME, y + 48), COLORS[level // 4])

    def test_photographs_fill_their_block_and_show_their_boxes(self) -> None:
        slots = torch.arange(8)
        picture = self.draw(2, slots, slots // 4, slots % 4)
        x, y = jigsaw_picture.left(0), jigsaw_picture.top(0)
        self.assertEqual(pixel(picture, x, y), (100, 100, 100))
        # The box covers the middle half of each side.
        for along in (49, 96, 142):
            self.assertEqual(pixel(picture, x + 49, y + along), COLORS[0])
            self.assertEqual(pixel(picture, x + along, y + 142), COLORS[0])
        self.assertEqual(pixel(picture, x + 96, y + 96), (100, 100, 100))
        # The second photograph is half as high as wide, and stands in the middle.
        y = jigsaw_picture.top(1)
        self.assertEqual(pixel(picture, x + 96, y + 10), WHITE)
        self.assertEqual(pixel(picture, x + 1, y + 49), COLORS[1])
        self.assertEqual(pixel(picture, x + 96, y + 96), (100, 100, 100))

    def test_montages_are_those_of_the_network(self) -> None:
        shown = torch.tensor([7, 0, 4, 1, 2, 3, 5, 6])
        picture = self.draw(2, shown, shown // 4, shown % 4)
        montages = stitch_montages(gray(*range(8))[shown], 2)
        for row in range(2):
            x, y = jigsaw_picture.left(2), jigsaw_picture.top(row)
            drawn = picture[:, y + 40 : y + BLOCK : 96, x + 40 : x + BLOCK : 96]
            self.assertEqual((drawn - 100).tolist(), montages[row, :, 5::20, 5::20].tolist())

    def test_only_the_title_tells_single_patches_from_montages(self) -> None:
        slots = torch.arange(8)
        pictures = [self.draw(2, slots, slots // 4, slots % 4, single) for single in (False, True)]
        differs = (pictures[0] != pictures[1]).any(0)
        x, y = jigsaw_picture.left(2), jigsaw_picture.top(0)
        self.assertTrue(differs[:y, x:].any())
        differs[:y, x:] = False
        self.assertFalse(differs.any())


if __name__ == "__main__":
    absltest.main()
