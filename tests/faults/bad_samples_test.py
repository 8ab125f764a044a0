"""Unreadable images: reported once, listed in a file, and too many of them stop the run."""

import json
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

from absl import logging
from absl.testing import absltest
from PIL import Image

from jigclu.data.folders import ImageFolder, UnlabeledImages
from jigclu.system.errors import UserError
from jigclu.tasks.pretrain import PretrainTask
from jigclu.training import bad_samples, checkpoint
from jigclu.training.settings import with_settings
from tests.ranks import run_on_ranks
from tests.samples import tiny_model
from tests.small_tasks import KNN, PRETRAINING, TaskTestCase, run_task

IMAGES, BATCH = 16, 4
MOST = range(6, IMAGES)


def task(folder: Path, **changes: Any) -> PretrainTask:
    source = UnlabeledImages(str(folder / "images"))
    usual = {"epochs": 2, "batch_size": BATCH, "source": source, "log_every": 1}
    return with_settings(PRETRAINING, **(usual | changes))


def run(folder: Path, **changes: Any) -> tuple[str, list[str]]:
    """Trains on a folder; returns what was printed, and the warnings."""
    warnings: list[str] = []

    def warn(text: str, *values: object) -> None:
        warnings.append(text % values)

    with (
        mock.patch.object(PretrainTask, "network", lambda _: tiny_model()),
        mock.patch.object(logging, "warning", warn),
    ):
        return run_task(task(folder, **changes), folder / "run", ""), warnings


def warnings_of_rank(folder: str) -> list[str]:
    return run(Path(folder))[1]


class BadSamplesTest(TaskTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.images = self.folder / "images" / "a"
        self.images.mkdir(parents=True)
        for number in range(IMAGES):
            Image.new("RGB", (40, 30), (9 * number, 0, 0)).save(self.images / f"{number:02d}.png")

    def spoil(self, *numbers: int) -> None:
        for number in numbers:
            (self.images / f"{number:02d}.png").write_bytes(b"no image")

    def listed(self) -> dict[str, dict[str, Any]]:
        """Returns the lines of the file by the name of the image, each of which occurs once."""
        text = (self.folder / "run" / bad_samples.NAME).read_text()
        lines = [json.loads(line) for line in text.splitlines()]
        found = {Path(line["path"]).name: line for line in lines}
        self.assertLen(found, len(lines))
        return found

    def unreadable_warnings(self, warnings: list[str]) -> list[str]:
        return [text for text in warnings if "unreadable" in text]

    def test_each_file_is_reported_once_and_counted_by_all_starts(self) -> None:
        self.spoil(3, 7)
        printed, warnings = run(self.folder, stop_after_steps=4)
        self.assertLen(self.unreadable_warnings(warnings), 2)
        self.assertIn("2 unreadable images were skipped", printed)
        first = self.listed()
        self.assertCountEqual(first, ["03.png", "07.png"])
        self.assertIn("cannot identify image file", first["03.png"]["reason"])
        # Once as itself in the epoch, and perhaps as a substitute of the other.
        self.assertBetween(first["03.png"]["count"], 1, 2)

        _, warnings = run(self.folder)
        self.assertEmpty(self.unreadable_warnings(warnings))
        second = self.listed()
        self.assertCountEqual(second, first)
        for name, line in second.items():
            self.assertGreater(line["count"], first[name]["count"])

    def test_a_full_disk_costs_only_the_file(self) -> None:
        self.spoil(3)
        full = mock.patch.object(bad_samples.files, "write_file", side_effect=UserError("full"))
        with full:
            printed, warnings = run(self.folder)
        self.assertIn("done: ", printed)
        self.assertIn("full", warnings)

    def test_counts_of_ranks_are_summed(self) -> None:
        self.spoil(3, 7, 9)
        _, alone = run(self.folder)
        expected = self.listed()
        shutil.rmtree(self.folder / "run")
        main, other = run_on_ranks(warnings_of_rank, 2, str(self.folder))
        self.assertEqual(self.listed(), expected)
        self.assertCountEqual(self.unreadable_warnings(main), self.unreadable_warnings(alone))
        self.assertEmpty(self.unreadable_warnings(other))

    def test_too_many_stop_the_run_before_the_first_step(self) -> None:
        self.spoil(*MOST)
        with self.assertRaisesRegex(
            UserError, r"^most_unreadable is 0.25, .* 16 images, but \d+ of them"
        ):
            run(self.folder, most_unreadable=0.25)
        self.assertIsNone(checkpoint.latest(self.folder / "run"))
        self.assertGreaterEqual(len(self.listed()), 5)

    def test_a_run_resumes_after_the_images_are_repaired(self) -> None:
        good = (self.images / "00.png").read_bytes()
        self.spoil(*MOST)
        with self.assertRaisesRegex(UserError, "most_unreadable"):
            run(self.folder)
        for number in MOST:
            (self.images / f"{number:02d}.png").write_bytes(good)
        printed, warnings = run(self.folder)
        self.assertIn("done: ", printed)
        self.assertEmpty(self.unreadable_warnings(warnings))

    def test_images_of_evaluations_are_reported_once(self) -> None:
        for split in ("bank", "queries"):
            for label in ("a", "b"):
                shutil.copytree(self.images, self.folder / split / label)
        bank, queries = (
            ImageFolder(str(self.folder / split), "train") for split in ("bank", "queries")
        )
        bad = self.folder / "queries" / "a" / "03.png"
        bad.write_bytes(b"no image")
        knn = with_settings(KNN, bank=bank, queries=queries, skip_unreadable=True, every=1)
        _, warnings = run(self.folder, evaluators=(knn,))
        self.assertLen(self.unreadable_warnings(warnings), 1)
        # Before training, and after each of two epochs.
        self.assertEqual(self.listed()["03.png"]["count"], 3)
        for path in (self.folder / "queries" / "a").iterdir():
            path.write_bytes(b"no image")
        (self.folder / "queries" / "b" / "00.png").write_bytes(b"no image")
        shutil.rmtree(self.folder / "run")
        with self.assertRaisesRegex(
            UserError, "most_unreadable is 0.5, a share of the 32 images, but 17"
        ):
            run(self.folder, evaluators=(knn,))


if __name__ == "__main__":
    absltest.main()
