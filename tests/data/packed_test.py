"""Tests of jigclu.data.packed."""

import copy
import json
import pickle
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from absl.testing import absltest, parameterized
from torch import Tensor
from torch.utils.data import DataLoader

from jigclu.data import packed
from jigclu.data.decode import UnreadableImageError
from jigclu.data.folders import ImageFolder
from jigclu.data.packed import PackedImages
from jigclu.system.errors import UserError
from jigclu.tasks.pack import PackTask
from tests.folder_case import FolderTestCase
from tests.samples import write_image_tree


class PackedImagesTest(FolderTestCase):
    source: ImageFolder
    pack: Path

    @classmethod
    def setUpClass(cls) -> None:
        """Packs images once, of which every test gets a copy."""
        super().setUpClass()
        temporary = tempfile.TemporaryDirectory()
        cls.addClassCleanup(temporary.cleanup)
        tree, cls.pack = Path(temporary.name) / "tree", Path(temporary.name) / "pack"
        write_image_tree(tree)
        cls.source = ImageFolder(str(tree), "train")
        PackTask(
            source=cls.source,
            image_format="raw",
            shorter_side=64,
            quality=90,
            images_per_shard=3,
            workers=1,
        ).run(cls.pack, "")

    def setUp(self) -> None:
        super().setUp()
        self.root = Path(shutil.copytree(self.pack, self.folder / "pack"))

    def open(self, verify: bool = False) -> PackedImages:
        return PackedImages(str(self.root), verify=verify)

    def test_pickled_source_contains_no_pixels(self) -> None:
        images = self.open()
        expected = images.read(5).clone()
        self.assertLess(len(pickle.dumps(images)), 3000)
        # copy uses __getstate__ as pickle does.
        other = copy.copy(images)
        self.assertEmpty(other._maps)
        self.assertTrue(torch.equal(other.read(5), expected))

    def test_worker_processes_read_the_same_images(self) -> None:
        images = self.open()

        def size_and_sum(batch: list[Tensor]) -> tuple[torch.Size, int]:
            return batch[0].shape, int(batch[0].sum())

        class Images(torch.utils.data.Dataset[Tensor]):
            def __getitem__(self, index: int) -> Tensor:
                return images.read(index)

            def __len__(self) -> int:
                return len(images)

        loader = DataLoader(Images(), num_workers=2, collate_fn=size_and_sum, batch_size=1)
        expected = [size_and_sum([self.source.read(index)]) for index in range(7)]
        self.assertEqual(list(loader), expected)

    def test_fingerprint_depends_on_images_and_records(self) -> None:
        self.assertEqual(self.open().fingerprint(False), self.open().fingerprint(True))
        contents = json.loads((self.root / "pack.json").read_text(encoding="utf-8"))
        contents["shards"][0]["sha256"] = "0" * 64
        other = packed.build_index("raw", contents["classes"], contents["shards"])
        self.assertNotEqual(other["fingerprint"], contents["fingerprint"])
        contents["shards"][0]["records_sha256"] = "0" * 64
        third = packed.build_index("raw", contents["classes"], contents["shards"])
        self.assertNotIn(third["fingerprint"], (other["fingerprint"], contents["fingerprint"]))

    def test_name_is_shard_and_position(self) -> None:
        self.assertEqual(self.open().name(4), f"{self.root}/shard_00001.bin image 1")

    def test_rejects_truncated_shards(self) -> None:
        path = self.root / "shard_00001.bin"
        path.write_bytes(path.read_bytes()[:-1])
        with self.assertRaisesRegex(
            UserError, "shard_00001.bin has .* bytes and 3 images, expected"
        ):
            self.open()

    def test_verification_finds_a_changed_byte(self) -> None:
        path = self.root / "shard_00001.bin"
        data = bytearray(path.read_bytes())
        data[100] ^= 1
        path.write_bytes(data)
        self.open()
        with self.assertRaisesRegex(UserError, "shard_00001.bin is corrupt, its SHA-256"):
            self.open(verify=True)

    def test_rejects_changed_labels_without_verification(self) -> None:
        path = self.root / "shard_00001.npy"
        rows = np.load(path)
        rows["label"][0] = 1 - rows["label"][0]
        np.save(path, rows)
        with self.assertRaisesRegex(UserError, "shard_00001.npy is corrupt, its SHA-256"):
            self.open()

    @parameterized.parameters("shard_00002.bin", "shard_00002.npy")
    def test_rejects_missing_files(self, name: str) -> None:
        (self.root / name).unlink()
        with self.assertRaisesRegex(UserError, "shard_00002.npy cannot be read .*shard_00002"):
            self.open()

    def test_rejects_invalid_records(self) -> None:
        (self.root / "shard_00002.npy").write_bytes(b"nothing")
        with self.assertRaisesRegex(UserError, "shard_00002.npy cannot be read"):
            self.open()

    def test_images_of_a_deleted_shard_are_unreadable(self) -> None:
        images = self.open()
        (self.root / "shard_00000.bin").unlink()
        with self.assertRaisesRegex(UnreadableImageError, "shard_00000.bin: No such file"):
            images.read(0)

    @parameterized.parameters(
        "{", "[]", '{"format": "raw", "shards": [{"images": 3}]}', '{"format": "png", "shards": []}'
    )
    def test_rejects_corrupt_indexes(self, text: str) -> None:
        (self.root / "pack.json").write_text(text, encoding="utf-8")
        with self.assertRaisesRegex(UserError, "pack.json is corrupt"):
            self.open()

    def test_rejects_folders_without_a_pack(self) -> None:
        with self.assertRaisesRegex(UserError, "contains no pack.json"):
            PackedImages(str(self.folder), verify=False)


if __name__ == "__main__":
    absltest.main()
