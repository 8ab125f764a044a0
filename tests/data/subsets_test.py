"""Tests of jigclu.data.subsets."""

import contextlib
import io
import os
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from absl.testing import absltest, parameterized
from PIL import Image

from jigclu.data import folders, sources, subsets
from jigclu.system import dry_run
from jigclu.system.errors import UserError
from tests.file_server import FileServer


def memory(labels: list[int] | None, title: str = "memory") -> sources.ImageArray:
    """Returns one image per label, filled with its index, of five classes."""
    count = 3 if labels is None else len(labels)
    pixels = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 4, 4)
    return sources.ImageArray(title, pixels, list("abcde"), labels)


LABELS = [0] * 10 + [1] * 25 + [2] * 1 + [4] * 4


class SubsetSourceTest(absltest.TestCase):
    def test_selects_images_of_the_source(self) -> None:
        whole = memory([0, 1, 1, 4])
        part = subsets.SubsetSource(whole, subsets.label_array(whole)[:2] + 2)
        part = pickle.loads(pickle.dumps(part))
        self.assertLen(part, 2)
        self.assertEqual((part.classes, part.labels), (list("abcde"), [1, 4]))
        self.assertEqual([part.read(index)[0, 0, 0].item() for index in (0, 1)], [2, 3])
        self.assertEqual(part.name(1), "memory image 3")

    def test_fingerprint_depends_on_source_and_indices(self) -> None:
        fingerprints = {
            subsets.BalancedSubset(memory(LABELS, title), 0.4, seed).fingerprint(False)
            for title in ("x", "y")
            for seed in (0, 1)
        }
        self.assertLen(fingerprints, 4)


class ListedSubsetTest(parameterized.TestCase):
    def setUp(self) -> None:
        super().setUp()
        self.root = self.create_tempdir().full_path
        for file in (
            "n01/n01_1.JPEG",
            "n01/n01_2.JPEG",
            "n02/n02_1.JPEG",
            "n02/x.JPEG",
            "n01/x.JPEG",
        ):
            os.makedirs(os.path.dirname(f"{self.root}/train/{file}"), exist_ok=True)
            Image.new("RGB", (6, 4)).save(f"{self.root}/train/{file}")
        self.whole = folders.ImageFolder(self.root, "train")

    def read_list(self, text: str) -> subsets.ListedSubset:
        path = self.create_tempfile(content=text).full_path
        return subsets.ListedSubset(self.whole, path, self.root)

    @parameterized.parameters(
        "n02_1.JPEG\nn01_2.JPEG\n",
        "n02/n02_1.JPEG\nn01_2.JPEG\n",
        "# a comment\n./n02/n02_1.JPEG\nn01\\n01_2.JPEG\n",
        "n02_1.JPEG 1\nn01/n01_2.JPEG,0\n",
    )
    def test_follows_the_order_of_the_list(self, text: str) -> None:
        part = self.read_list(text)
        self.assertEqual(part.labels, [1, 0])
        self.assertEndsWith(part.name(0), "train/n02/n02_1.JPEG")
        self.assertEqual(part.classes, ["n01", "n02"])

    def test_a_class_distinguishes_files_with_the_same_name(self) -> None:
        self.assertEqual(self.read_list("n02/x.JPEG\n").labels, [1])

    @parameterized.parameters(
        (
            "n02_1.JPEG\nn03_1.JPEG\nn03_2.JPEG\n",
            "2 of the 3 images .* the first ones are n03_1.JPEG, n03_2.JPEG:",
        ),
        ("n02_1.JPEG\nn02_1.JPEG\n", "lists n02_1.JPEG twice"),
        ("n02_1.JPEG\n./n02/n02_1.JPEG\n", "lists n02_1.JPEG twice"),
        ("x.JPEG\n", "more than one: list it as <class>/<file>"),
        ("", "lists no images"),
    )
    def test_rejects_invalid_lists(self, text: str, message: str) -> None:
        with self.assertRaisesRegex(UserError, message):
            self.read_list(text)

    def download(self, content: bytes) -> subsets.ListedSubset:
        """Reads the list of a server, twice."""
        self.server = FileServer("1percent.txt", content)
        self.addCleanup(self.server.close)
        with contextlib.redirect_stderr(io.StringIO()):
            for _ in range(2):
                part = subsets.ListedSubset(self.whole, self.server.url, f"{self.root}/lists")
        return part

    def test_lists_are_downloaded_once(self) -> None:
        self.assertEqual(self.download(b"n02_1.JPEG\n").labels, [1])
        self.assertEqual(self.server.requests, [None])

    def test_errors_in_a_downloaded_list_name_the_local_copy(self) -> None:
        message = f"1 of the 1 images of {self.root}/lists/1percent.txt"
        with self.assertRaisesRegex(UserError, message):
            self.download(b"<html>sign in\n")

    def test_failed_downloads_leave_no_list_and_name_its_place(self) -> None:
        folder = Path(f"{self.root}/lists")
        message = rf"a.txt cannot be downloaded .* store it as {folder}/a.txt$"
        with (
            contextlib.redirect_stderr(io.StringIO()),
            self.assertRaisesRegex(UserError, message),
        ):
            # Nothing listens at this port.
            subsets.ListedSubset(self.whole, "http://127.0.0.1:9/a.txt", str(folder))
        self.assertEmpty(list(folder.glob("a.txt*")))

    def test_dry_run_names_the_list_to_download(self) -> None:
        url, folder = "https://example.org/a.txt", f"{self.root}/lists"
        message = f"^downloads: {url} to {folder}/a.txt$"
        with dry_run.dry_run(), self.assertRaisesRegex(dry_run.DownloadNeeded, message):
            subsets.ListedSubset(self.whole, url, folder)
        self.assertFalse(os.path.exists(folder))


class BalancedSubsetTest(parameterized.TestCase):
    @parameterized.parameters(
        (0.1, {0: 1, 1: 2, 2: 1, 4: 1}), (0.5, {0: 5, 1: 12, 2: 1, 4: 2}), (1.0, Counter(LABELS))
    )
    def test_draws_the_fraction_of_every_class(
        self, fraction: float, expected: dict[int, int]
    ) -> None:
        part = subsets.BalancedSubset(memory(LABELS), fraction, seed=0)
        self.assertEqual(Counter(part.labels), expected)
        shown = [int(part.read(index)[0, 0, 0]) for index in range(len(part))]
        self.assertEqual([LABELS[index] for index in shown], part.labels)
        self.assertLen(set(shown), len(shown))

    def test_draw_depends_only_on_the_seed(self) -> None:
        draws = [
            [subsets.BalancedSubset(memory(LABELS), 0.5, seed).name(i) for i in range(20)]
            for seed in (0, 0, 1)
        ]
        self.assertEqual(draws[0], draws[1])
        self.assertNotEqual(draws[0], draws[2])

    @parameterized.parameters(0.0, 1.5, float("nan"))
    def test_rejects_fractions_out_of_range(self, fraction: float) -> None:
        with self.assertRaisesRegex(UserError, f"fraction is {fraction}"):
            subsets.BalancedSubset(memory(LABELS), fraction, seed=0)

    def test_rejects_unlabeled_sources(self) -> None:
        with self.assertRaisesRegex(UserError, "has no labels"):
            subsets.BalancedSubset(memory(None), 0.5, seed=0)


class HeldOutTest(parameterized.TestCase):
    def test_parts_are_disjoint_and_complete(self) -> None:
        labels = [0] * 10 + [1] * 30
        parts = [subsets.HeldOut(memory(labels), 0.2, 7, part) for part in subsets.PARTS]
        self.assertEqual([Counter(part.labels) for part in parts], [{0: 8, 1: 24}, {0: 2, 1: 6}])
        names = [part.name(index) for part in parts for index in range(len(part))]
        self.assertLen(set(names), 40)

    def test_held_out_and_balanced_draws_of_one_seed_are_independent(self) -> None:
        whole = memory([0] * 100 + [1] * 100)
        held_out = subsets.HeldOut(whole, 0.3, 0, "held_out")
        drawn = subsets.BalancedSubset(whole, 0.3, 0)
        first, second = ({part.name(i) for i in range(60)} for part in (held_out, drawn))
        # Hypergeometric: mean 18, standard deviation 3.
        self.assertBetween(len(first & second), 3, 33)

    @parameterized.parameters(
        ({"fraction": 1.0}, "fraction is 1.0"),
        ({"part": "test"}, "part is 'test'"),
        ({"source": memory(LABELS)}, "class c has too few images"),
    )
    def test_rejects_invalid_settings(self, changes: dict[str, Any], message: str) -> None:
        settings: dict[str, Any] = {
            "source": memory([0, 0, 1, 1]),
            "fraction": 0.5,
            "seed": 0,
            "part": "train",
        }
        with self.assertRaisesRegex(UserError, message):
            subsets.HeldOut(**(settings | changes))


class CheckLabeledTest(absltest.TestCase):
    def assert_rejected(self, train: Any, val: Any, message: str) -> None:
        with self.assertRaisesRegex(UserError, message):
            subsets.check_labeled(train, val, "source", "val")

    def test_accepts_matching_sources_and_rejects_others(self) -> None:
        train, val = memory([0, 1], "train"), memory([1, 4], "val")
        subsets.check_labeled(train, val, "source", "val")
        self.assert_rejected(train, memory(None), "val has no labels")
        self.assert_rejected(train, train, "train image 0 is in both source and val")
        pixels = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
        other = sources.ImageArray("val", pixels, list("abcdx"), [0, 1])
        self.assert_rejected(train, other, "source has 5 classes and val 5; .*differ in e, x")
        fewer = sources.ImageArray("val", pixels, list("abcd"), [0, 1])
        subsets.check_labeled(train, fewer, "source", "val")
        self.assert_rejected(fewer, train, "source has 4 classes and val 5; .*differ in e")
        one = [sources.ImageArray(title, pixels, ["a"], [0, 0]) for title in ("train", "val")]
        self.assert_rejected(one[0], one[1], "source only has images of class a")
        self.assert_rejected(train, memory([1, 1], "val"), "val only has images of class b")


if __name__ == "__main__":
    absltest.main()
