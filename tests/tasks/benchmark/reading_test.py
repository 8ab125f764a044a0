"""Tests of jigclu.tasks.benchmark.reading."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from absl.testing import absltest
from torch import Tensor

from jigclu.data.folders import UnlabeledImages
from jigclu.data.image_files import ImageFiles
from jigclu.data.sources import Source
from jigclu.ops.augment import draw_augmentation
from jigclu.system.errors import UserError
from jigclu.tasks.benchmark import reading
from jigclu.tasks.benchmark.instruments import processor_instruments
from jigclu.tasks.benchmark.reading import Reader, ReadingTimes
from jigclu.tasks.benchmark.timing import Seconds
from jigclu.tasks.pretrain import PretrainTask
from jigclu.training.settings import with_settings
from tests.samples import AUGMENTATION, MemorySource, write_image_tree
from tests.small_tasks import PRETRAINING
from tests.tasks.benchmark.fakes import FakeMachine

# Every image becomes gray, so that augmented patches can be told from others.
GRAY = dataclasses.replace(
    AUGMENTATION,
    grayscale_probability=1.0,
    mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0),
)


def is_gray(patches: Tensor) -> bool:
    """Whether all channels of patches [count, 3, height, width] are equal."""
    return bool(((patches - patches.mean(1, keepdim=True)).abs() < 0.01).all())


class ReadingTest(absltest.TestCase):
    def setUp(self) -> None:
        super().setUp()
        root = Path(self.create_tempdir().full_path)
        write_image_tree(root)
        self.task = with_settings(PRETRAINING, source=UnlabeledImages(str(root)), augmentation=GRAY)

    def test_every_reader_reads_all_chosen_images_on_one_thread(self) -> None:
        machine = FakeMachine()
        seen: list[tuple[str, int, int]] = []
        chosen: list[str] = []

        def fake_readers(
            task: PretrainTask, files: Source, packs: Mapping[str, Source]
        ) -> Iterator[tuple[str, Reader]]:
            chosen.extend(files.name(index) for index in range(len(files)))

            def reader(name: str, seconds: float) -> Reader:
                def read(index: int) -> None:
                    seen.append((name, index, torch.get_num_threads()))
                    machine.wait(seconds)

                return read

            yield "a", reader("a", 2)
            yield "b", reader("b", 5)

        self.addCleanup(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(2)
        with mock.patch.object(reading, "readers", fake_readers):
            times = reading.measure_reading(self.task, 3, 1, machine.instruments)
        self.assertEqual(times, ReadingTimes(3, {"a": Seconds(6, 6, 6), "b": Seconds(15, 15, 15)}))
        one_round = [(name, index, 1) for name in "ab" for index in range(3)]
        self.assertEqual(seen, 2 * one_round)
        self.assertEqual(torch.get_num_threads(), 2)
        # Of 7 images, evenly spread.
        self.assertEqual(chosen, [self.task.source.name(index) for index in (0, 2, 4)])

    def read_with_all(self, index: int) -> dict[str, Any]:
        """Returns what every reader returns for an image; packs contain flat colors instead."""
        names = [self.task.source.name(number) for number in range(7)]
        files = ImageFiles("", names, [], None)
        packs = {
            name: MemorySource([torch.full((3, 40, 40), value, dtype=torch.uint8)] * 7)
            for name, value in (("jpeg", 10), ("raw", 20))
        }
        return {name: read(index) for name, read in reading.readers(self.task, files, packs)}

    def test_published_readers_augment_with_and_without_colors(self) -> None:
        read = self.read_with_all(2)
        for name, gray in (
            ("published, PIL", True),
            ("published, PIL, no color changes", False),
        ):
            self.assertEqual((read[name].shape, read[name].dtype), ((4, 3, 16, 16), torch.float32))
            self.assertEqual(is_gray(read[name]), gray, name)

    def test_decoding_only_returns_the_whole_image(self) -> None:
        image = self.read_with_all(2)["files, decoding only, full size"]
        self.assertTrue(torch.equal(image, self.task.source.read(2)))
        self.assertEqual(image.shape, (3, 40, 30))

    def test_files_are_read_to_patches_with_and_without_augmentation(self) -> None:
        read = self.read_with_all(2)
        patches = read["files"].crops
        dataset = self.task.method.dataset(self.task.source, self.task.seed, 1)
        self.assertTrue(torch.equal(patches, dataset[0, 2].crops))
        self.assertFalse(is_gray(patches / 255))
        augmented = read["files, augmented on the same core"]
        drawn = draw_augmentation(GRAY, self.task.seed, 2, 4)
        torch.testing.assert_close(augmented, GRAY(patches, drawn))
        self.assertTrue(is_gray(augmented))

    def test_packs_are_read_by_their_own_readers(self) -> None:
        read = self.read_with_all(2)
        for name, value in (("packed, jpeg", 10), ("packed, raw", 20)):
            self.assertEqual(read[name].crops.unique().tolist(), [value])
        self.assertLen(read, 7)

    def test_real_readers_run(self) -> None:
        times = reading.measure_reading(self.task, 6, 1, processor_instruments())
        self.assertEqual(times.images, 6)
        self.assertEqual(
            list(times.seconds),
            [
                "published, PIL",
                "published, PIL, no color changes",
                "files, decoding only, full size",
                "files",
                "files, augmented on the same core",
                "packed, jpeg",
                "packed, raw",
            ],
        )
        for seconds in times.seconds.values():
            self.assertGreater(seconds.least, 0)

    def test_packs_contain_the_images_in_their_format(self) -> None:
        with reading._packs(self.task.source) as packs:
            self.assertEqual(list(packs), ["jpeg", "raw"])
            original = self.task.source.read(3)
            self.assertTrue(torch.equal(packs["raw"].read(3), original))
            jpeg = packs["jpeg"].read(3)
            self.assertEqual(jpeg.shape, original.shape)
            self.assertFalse(torch.equal(jpeg, original))

    def test_needs_files_and_no_more_images_than_there_are(self) -> None:
        reading.check_reading(self.task, 7)
        with self.assertRaisesRegex(UserError, r"images is 8; it must lie in \[1, 7\]"):
            reading.check_reading(self.task, 8)
        Path(self.task.source.name(6)).write_bytes(b"no image")
        reading.check_reading(self.task, 6)
        with self.assertRaisesRegex(UserError, r"5\.png is unreadable .*: remove it to measure"):
            reading.check_reading(self.task, 7)
        with self.assertRaisesRegex(UserError, "not a file.*needs a folder of images"):
            reading.check_reading(PRETRAINING, 7)


if __name__ == "__main__":
    absltest.main()
