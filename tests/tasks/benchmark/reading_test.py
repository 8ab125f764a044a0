"""Tests of jigclu.tasks.benchmark.reading."""

import dataclasses
from pathlib import Path

from absl.testing import absltest

from jigclu.data.sources import UnlabeledImages
from jigclu.system.errors import UserError
from jigclu.tasks.benchmark import reading
from jigclu.tasks.pretrain import PretrainTask
from tests.samples import write_image_tree
from tests.small_tasks import PRETRAINING

GENERATED = PretrainTask(**PRETRAINING)


class ReadingTest(absltest.TestCase):
    def setUp(self) -> None:
        super().setUp()
        root = Path(self.create_tempdir().full_path)
        write_image_tree(root)
        self.task = dataclasses.replace(GENERATED, source=UnlabeledImages(str(root)))

    def test_every_way_reads_and_is_compared(self) -> None:
        table = reading.measure_reading(self.task, 6, 1)
        names = [row[0] for row in table.rows]
        self.assertEqual(
            names,
            [
                "published, PIL",
                "published, PIL, colors left alone",
                "files, decoding alone, at full size",
                "files",
                "files, augmented on the same core",
                "packed, jpeg",
                "packed, raw",
            ],
        )
        rates = {row[0]: row[1] for row in table.rows}
        for name, rate, _, against_published, against_files in table.rows:
            self.assertGreater(rate, 0)
            self.assertAlmostEqual(against_published, rate / rates[names[0]])
            self.assertAlmostEqual(against_files, rate / rates["files"], msg=name)

    def test_needs_files_and_no_more_images_than_there_are(self) -> None:
        reading.check_reading(self.task, 7)
        with self.assertRaisesRegex(UserError, r"images is 8; it must lie in \[1, 7\]"):
            reading.check_reading(self.task, 8)
        Path(self.task.source.name(6)).write_bytes(b"no image")
        reading.check_reading(self.task, 6)
        with self.assertRaisesRegex(UserError, r"5\.png is unreadable .*: remove it to measure"):
            reading.check_reading(self.task, 7)
        with self.assertRaisesRegex(UserError, "not a file.*needs a folder of images"):
            reading.check_reading(GENERATED, 7)


if __name__ == "__main__":
    absltest.main()
