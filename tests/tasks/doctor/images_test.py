"""Tests of jigclu.tasks.doctor.images."""

from typing import Any
from unittest import mock

import torch
from absl.testing import absltest
from torch.utils.data import DataLoader, Dataset

from jigclu.data.decode import UnreadableImageError
from jigclu.data.loader import check_loader
from jigclu.data.procedural import ProceduralImages
from jigclu.tasks.doctor import images
from jigclu.tasks.doctor.images import check_images
from tests.ranks import run_on_ranks


class Damaged(ProceduralImages):
    """Images of which numbers 3 and 4 are unreadable."""

    def read(self, index: int, *reduction: Any) -> torch.Tensor:
        if index in (3, 4):
            raise UnreadableImageError("truncated")
        return super().read(index, *reduction)


DAMAGED = Damaged(images=8, size=32, seed=0, split="train")


def check_damaged() -> tuple[str, list[str]]:
    """Returns the text and details of the finding; workers would take ranks seconds to start."""

    def loader(dataset: Dataset[Any], workers: int, timeout: float) -> DataLoader[Any]:
        return check_loader(dataset, 0, timeout)

    with mock.patch.object(images, "check_loader", loader):
        finding = check_images("source", DAMAGED, 60.0, tolerated=0.25)
    return finding.text, list(finding.details)


class CheckImagesTest(absltest.TestCase):
    def test_every_unreadable_image_is_found_on_any_number_of_ranks(self) -> None:
        alone = check_images("source", DAMAGED, 60.0, tolerated=0.25)
        self.assertEqual(alone.level, "warning")
        self.assertEqual(check_images("source", DAMAGED, 60.0, 0.2).level, "error")
        self.assertIn("2 of 8 images are unreadable", alone.text)
        self.assertEqual([line.split(" (")[1] for line in alone.details], ["truncated)"] * 2)
        for text, details in run_on_ranks(check_damaged, 2):
            self.assertIn("2 of 8 images are unreadable", text)
            self.assertEqual(details, list(alone.details))


if __name__ == "__main__":
    absltest.main()
