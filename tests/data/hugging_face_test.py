"""Tests of jigclu.data.hugging_face, on files written with the library itself."""

import importlib.util
import io
import pickle
import unittest
from unittest import mock

from absl.testing import absltest
from PIL import Image

from jigclu.data.decode import UnreadableImageError
from jigclu.data.hugging_face import HuggingFaceImages
from jigclu.system import dry_run
from jigclu.system.errors import UserError
from tests.folder_case import FolderTestCase

HAS_LIBRARY = importlib.util.find_spec("datasets") is not None


def png(gray: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (7, 5), gray).save(file, "PNG")
    return file.getvalue()


@unittest.skipUnless(HAS_LIBRARY, "the library datasets is not installed")
class HuggingFaceImagesTest(FolderTestCase):
    def setUp(self) -> None:
        super().setUp()
        import datasets
        import pyarrow
        from pyarrow import parquet

        names = datasets.ClassLabel(names=["cat", "dog", "owl"])
        features = datasets.Features(
            {"img": datasets.Image(), "y": names, "name": datasets.Value("string")}
        )
        rows = [
            {"img": {"bytes": png(i), "path": None}, "y": i % 2, "name": "bca"[i]} for i in range(3)
        ]
        cache = mock.patch.object(datasets.config, "HF_DATASETS_CACHE", self.folder / "cache")
        cache.start()
        self.addCleanup(cache.stop)
        table = pyarrow.Table.from_pylist(rows, schema=features.arrow_schema)
        self.files = self.folder / "files"
        (self.files / "val").mkdir(parents=True)
        file = self.files / "train-00000-of-00001.parquet"
        parquet.write_table(table, file)
        parquet.write_table(table.slice(2), self.files / "val" / "0.parquet")
        self.data = datasets.load_dataset("parquet", data_files=str(file), split="train")

    def check(self, source: HuggingFaceImages) -> None:
        source = pickle.loads(pickle.dumps(source))
        self.assertEqual([int(source.read(index)[0, 0, 0]) for index in range(3)], [0, 1, 2])
        self.assertEqual(source.read(1).shape, (3, 5, 7))

    def test_reads_parquet_files_of_a_split(self) -> None:
        source = HuggingFaceImages(str(self.files), "train", "img", "y")
        self.check(source)
        self.assertEqual((source.classes, source.labels), (["cat", "dog", "owl"], [0, 1, 0]))
        val = HuggingFaceImages(str(self.files), "val", "img", None)
        self.assertLen(val, 1)
        self.assertEqual((val.classes, val.labels), ([], None))
        with self.assertRaisesRegex(UserError, "^split: .* no .parquet files of the split 'test'"):
            HuggingFaceImages(str(self.files), "test", "img", "y")

    def test_reads_saved_data_sets_and_text_labels(self) -> None:
        import datasets

        self.data.save_to_disk(self.folder / "one")
        datasets.DatasetDict(train=self.data).save_to_disk(self.folder / "dict")
        for name in ("one", "dict"):
            source = HuggingFaceImages(str(self.folder / name), "train", "img", "name")
            self.check(source)
            self.assertEqual((source.classes, source.labels), (["a", "b", "c"], [1, 2, 0]))

    def test_reads_arrow_files_that_lie_loose_in_a_folder(self) -> None:
        import pyarrow

        folder = self.folder / "loose"
        folder.mkdir()
        table = self.data.data.table
        for name, start, stop in (("train-0", 0, 2), ("train-1", 2, 3), ("test-0", 0, 1)):
            with (
                pyarrow.OSFile(str(folder / f"{name}.arrow"), "wb") as file,
                pyarrow.ipc.new_stream(file, table.schema) as writer,
            ):
                writer.write_table(table.slice(start, stop - start))
        source = HuggingFaceImages(str(folder), "train", "img", "y")
        self.check(source)
        self.assertEqual((source.classes, source.labels), (["cat", "dog", "owl"], [0, 1, 0]))
        self.assertLen(HuggingFaceImages(str(folder), "test", "img", "y"), 1)

    def test_fingerprint_depends_on_images(self) -> None:
        self.data.save_to_disk(self.folder / "a")
        self.data.select([0, 2, 1]).save_to_disk(self.folder / "b")
        a, b = (HuggingFaceImages(str(self.folder / name), "train", "img", None) for name in "ab")
        self.assertEqual(a.fingerprint(False), b.fingerprint(False))
        self.assertNotEqual(a.fingerprint(True), b.fingerprint(True))

    def test_rejects_missing_columns_and_folders_without_data(self) -> None:
        self.data.save_to_disk(self.folder / "a")
        with self.assertRaisesRegex(UserError, "^image: .* no column 'image': choose one of img"):
            HuggingFaceImages(str(self.folder / "a"), "train", "image", None)
        (self.folder / "empty").mkdir()
        with self.assertRaisesRegex(UserError, "^path .* contains no .parquet or .arrow files"):
            HuggingFaceImages(str(self.folder / "empty"), "train", "img", None)

    def test_rows_without_an_image_are_unreadable(self) -> None:
        self.data.save_to_disk(self.folder / "a")
        source = HuggingFaceImages(str(self.folder / "a"), "train", "name", None)
        with self.assertRaisesRegex(UnreadableImageError, "row 1 has no image in column name"):
            source.read(1)


class LibraryTest(absltest.TestCase):
    def test_a_dry_run_does_not_download(self) -> None:
        library = mock.MagicMock()
        library.config.HF_DATASETS_CACHE = "/cache"
        with mock.patch.dict("sys.modules", datasets=library), dry_run.dry_run():
            with self.assertRaisesRegex(dry_run.DownloadNeeded, "owner/name to /cache"):
                HuggingFaceImages("owner/name", "train", "image", None)
            with self.assertRaisesRegex(UserError, "^path /nowhere/name is not a folder"):
                HuggingFaceImages("/nowhere/name", "train", "image", None)
        library.load_dataset.assert_not_called()

    def test_without_the_library_the_message_says_how_to_install_it(self) -> None:
        with (
            mock.patch.dict("sys.modules", datasets=None),
            self.assertRaisesRegex(UserError, "pip install datasets"),
        ):
            HuggingFaceImages("nowhere/data", "train", "image", None)


if __name__ == "__main__":
    absltest.main()
