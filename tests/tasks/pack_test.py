"""Tests of jigclu.tasks.pack: packed images equal those of the source."""

import functools
import os
from concurrent.futures.process import BrokenProcessPool
from typing import Any
from unittest import mock

import numpy as np
import torch
from absl.testing import absltest, parameterized
from PIL import Image
from torch import Tensor

from jigclu.data.crops import CropDataset
from jigclu.data.folders import ImageFolder
from jigclu.data.packed import PackedImages
from jigclu.data.sources import Source
from jigclu.ops.crops import jigsaw_crops
from jigclu.system.errors import UserError
from jigclu.tasks import pack
from jigclu.tasks.pack import PackTask
from jigclu.training.loop import RunResult
from tests.folder_case import FolderTestCase
from tests.samples import write_image_tree


def _patches(source: Source, indices: list[int]) -> list[Tensor]:
    dataset = CropDataset(
        source=source,
        seed=3,
        batch_size=1,
        draw=functools.partial(
            jigsaw_crops, grid=2, cross_ratio=0.3, scale=(0.2, 1.0), ratio=(0.75, 1.33)
        ),
        size=8,
        smaller_sizes=(),
        least_side=2,
        scaled_decoding=False,
    )
    return [dataset[(1, index)].crops for index in indices]


class PackTest(FolderTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.tree, self.workdir = self.folder / "tree", self.folder / "pack"
        write_image_tree(self.tree)

    def task(self, **settings: Any) -> PackTask:
        given = {"image_format": "raw", "shorter_side": 64, "quality": 90, "images_per_shard": 3}
        source = ImageFolder(str(self.tree), "train")
        return PackTask(**{"source": source, "workers": 2, **given, **settings})

    def pack(self, **settings: Any) -> PackedImages:
        task = self.task(**settings)
        task.check(self.workdir)
        self.assertEqual(task.run(self.workdir, ""), RunResult({}, None))
        return PackedImages(str(self.workdir), verify=True)

    def test_raw_pack_has_images_labels_and_order_of_the_source(self) -> None:
        source, images = ImageFolder(str(self.tree), "train"), self.pack()
        self.assertLen(images, 7)
        self.assertEqual(images.classes, ["cat", "dog"])
        self.assertEqual(images.labels, source.labels)
        for index in (6, *range(7)):
            self.assertTrue(torch.equal(images.read(index), source.read(index)))
        expected, actual = _patches(source, [0, 3, 6]), _patches(images, [0, 3, 6])
        self.assertTrue(all(map(torch.equal, expected, actual)))

    def test_raw_images_are_views_of_the_mapped_file(self) -> None:
        images = self.pack(images_per_shard=7)
        addresses = [images.read(index).data_ptr() for index in range(2)]
        self.assertEqual(addresses[1] - addresses[0], images.read(0).numel())
        self.assertEqual(addresses[0], images.read(0).data_ptr())

    @parameterized.parameters("jpeg", "raw")
    def test_larger_images_are_resized(self, image_format: str) -> None:
        source, images = (
            ImageFolder(str(self.tree), "train"),
            self.pack(image_format=image_format, shorter_side=22),
        )
        for index in range(7):
            before, after = source.read(index).shape[1:], images.read(index).shape[1:]
            if min(before) <= 22:
                self.assertEqual(after, before)
            else:
                self.assertEqual(min(after), 22)
                self.assertAlmostEqual(after[0] / after[1], before[0] / before[1], delta=0.1)

    def test_jpeg_pack_is_similar_and_smaller(self) -> None:
        ramp = np.linspace(0, 255, 40 * 50 * 3).reshape(40, 50, 3).astype(np.uint8)
        Image.fromarray(ramp).save(self.tree / "cat" / "0.png")
        raw = self.pack()
        sizes = (self.workdir / "shard_00000.bin").stat().st_size
        self.workdir = self.folder / "jpeg"
        jpeg = self.pack(image_format="jpeg", quality=95)
        self.assertLess((self.workdir / "shard_00000.bin").stat().st_size, sizes)
        difference = (jpeg.read(0).float() - raw.read(0).float()).abs().mean()
        self.assertBetween(difference, 0.01, 3)
        self.assertNotEqual(jpeg.fingerprint(True), raw.fingerprint(True))

    def test_unlabeled_images_stay_unlabeled(self) -> None:
        task = self.task()
        task.source.classes, task.source.labels = [], None  # type: ignore[misc]
        task.run(self.workdir, "")
        self.assertIsNone(PackedImages(str(self.workdir), verify=False).labels)

    def test_unreadable_images_are_left_out_and_named(self) -> None:
        (self.tree / "cat" / "2.png").write_bytes(b"no image")
        images = self.pack()
        self.assertLen(images, 6)
        self.assertEqual(images.labels, [0, 0, 0, 1, 1, 1])
        named = (self.workdir / "unreadable.txt").read_text(encoding="utf-8")
        self.assertRegex(named, r"cat/2.png \(UnidentifiedImageError")

    def test_names_of_files_and_classes_need_not_be_utf8(self) -> None:
        folder = os.path.join(os.fsencode(self.tree), b"caf\xe9")
        os.makedirs(folder)
        for name in (b"\xe9.png", b"\xe8.png"):
            with open(os.path.join(folder, name), "wb") as file:
                file.write((self.tree / "cat" / "0.png").read_bytes() if name < b"\xe9" else b"x")
        images = self.pack()
        self.assertEqual(images.classes, [os.fsdecode(b"caf\xe9"), "cat", "dog"])
        named = (self.workdir / "unreadable.txt").read_text(encoding="utf-8")
        self.assertIn(r"caf\udce9/\udce9.png (", named)

    def test_rejects_a_source_without_readable_images(self) -> None:
        for path in self.tree.rglob("*.png"):
            path.write_bytes(b"no image")
        with self.assertRaisesRegex(UserError, "none of the 7 images can be read"):
            self.pack()

    def test_continues_where_it_was_interrupted(self) -> None:
        task = self.task()
        self.workdir.mkdir()
        pack._write_json(self.workdir / "settings.json", task._settings())
        pack._write_shard(task, self.workdir, 1)
        # Killed while writing the next shard: files without a summary.
        (self.workdir / "shard_00002.bin").write_bytes(b"half")
        with self.assertRaisesRegex(UserError, "contains no pack.json: .* not finished"):
            PackedImages(str(self.workdir), verify=False)
        before = (self.workdir / "shard_00001.bin").stat().st_mtime_ns
        images = self.pack()
        self.assertEqual((self.workdir / "shard_00001.bin").stat().st_mtime_ns, before)
        source = ImageFolder(str(self.tree), "train")
        for index in range(7):
            self.assertTrue(torch.equal(images.read(index), source.read(index)))

    @parameterized.parameters("bin", "npy")
    def test_packing_again_repairs_a_corrupt_shard(self, suffix: str) -> None:
        images = self.pack()
        expected = [images.read(index).clone() for index in range(7)]
        path = self.workdir / f"shard_00001.{suffix}"
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        (self.workdir / "shard_00002.npy").unlink()
        images = self.pack()
        for index in range(7):
            self.assertTrue(torch.equal(images.read(index), expected[index]))

    def test_killed_process_is_reported(self) -> None:
        with (
            mock.patch.object(pack, "ProcessPoolExecutor") as pool,
            self.assertRaisesRegex(UserError, "ended after 0 shards.*finished shards are kept"),
        ):
            pool.return_value.__enter__.return_value.submit.side_effect = BrokenProcessPool()
            pool.return_value.__exit__.return_value = None
            self.task().run(self.workdir, "")

    @parameterized.parameters(
        {"shorter_side": 20}, {"image_format": "jpeg"}, {"images_per_shard": 2}
    )
    def test_rejects_a_workdir_with_another_pack(self, **settings: Any) -> None:
        self.pack()
        with self.assertRaisesRegex(UserError, "holds a pack of other images or settings"):
            self.task(**settings).check(self.workdir)

    @parameterized.parameters(
        ({"image_format": "png"}, "image_format is 'png'; it must be one of jpeg, raw"),
        ({"quality": 101}, "quality is 101"),
        ({"quality": 0}, "quality is 0"),
        ({"shorter_side": 0}, "shorter_side is 0"),
        ({"images_per_shard": 0}, "images_per_shard is 0"),
        ({"workers": 0}, "workers is 0"),
    )
    def test_rejects_values_out_of_range(self, settings: dict[str, Any], message: str) -> None:
        with self.assertRaisesRegex(UserError, f"^{message}"):
            self.task(**settings)

    def test_full_disk_is_reported(self) -> None:
        error = OSError(28, "No space left on device")
        with (
            mock.patch.object(PackTask, "_shards", side_effect=error),
            self.assertRaisesRegex(UserError, "No space left on device.: free some disk space"),
        ):
            self.task().run(self.workdir, "")


if __name__ == "__main__":
    absltest.main()
