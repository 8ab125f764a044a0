"""Substitutes for unreadable images.

The substitute of an image comes from another batch of the same epoch, where it usually is at the
same position as the unreadable image in its own batch. Substitutes of one batch therefore differ
from each other and from its images, on any number of ranks, and are spread over the data as the
order of images is random. They depend only on the images and on (seed, step).
"""

import functools
import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from jigclu.data.sampler import epoch_order


class Substitutes:
    """Finds substitutes for the images of a data set."""

    def __init__(
        self, *, seed: int, length: int, batch_size: int, is_readable: Callable[[int], bool]
    ) -> None:
        """Reads nothing yet.

        Args:
          seed: of the run, as of the sampler.
          length: images in the data set.
          batch_size: images in the global batch.
          is_readable: whether the image of an index can be read; called again for one index only
            in another process.
        """
        self._seed = seed
        self._length = length
        self._batch_size = batch_size
        self._check = is_readable
        self._checked: dict[int, bool] = {}

    def candidates(self, epoch: int, index: int, most: int) -> Iterator[int]:
        """Yields the images that may stand in for image `index`, to be tried in this order.

        All but the last are tried by no other image of the batch. The last, if there are fewer
        than `most`, is readable and the one that is left for this image after the others of its
        batch have chosen; it only occurs twice in the batch if too few images are readable.
        """
        batch, others = _split(self._seed, epoch, self._length, self._batch_size, index)
        slot = batch.index(index)
        own = others[slot :: self._batch_size].tolist()
        yield from own[:most]
        if len(own) < most:
            yield from self._last_choice(batch, others, slot)

    def _last_choice(self, batch: list[int], others: Tensor, slot: int) -> list[int]:
        """Returns the image that is left for a slot of a batch; empty if none is readable."""
        readable = list(filter(self._is_readable, batch))
        missing = [number for number, image in enumerate(batch) if not self._is_readable(image)]
        chosen = {
            number: next(filter(self._is_readable, own), None)
            for number in missing
            for own in [others[number :: self._batch_size].tolist()]
        }
        taken = set(chosen.values())
        left = (image for image in others.tolist() if image not in taken)
        # Images of the batch itself are the last resort.
        spare = itertools.chain(filter(self._is_readable, left), itertools.cycle(readable))
        unserved = [number for number in missing if chosen[number] is None]
        return [image for number, image in zip(unserved, spare, strict=False) if number == slot]

    def _is_readable(self, index: int) -> bool:
        if index not in self._checked:
            self._checked[index] = self._check(index)
        return self._checked[index]


@functools.lru_cache(maxsize=1)
def _order(seed: int, epoch: int, length: int) -> Tensor:
    return epoch_order(seed, epoch, length)


def _split(
    seed: int, epoch: int, length: int, batch_size: int, index: int
) -> tuple[list[int], Tensor]:
    """Returns the batch of an image and all other images, in the order in which they follow."""
    order = _order(seed, epoch, length)
    first = int((order == index).nonzero()) // batch_size * batch_size
    batch, after = order[first : first + batch_size], order[first + batch_size :]
    return batch.tolist(), torch.cat([after, order[:first]])
