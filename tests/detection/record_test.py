"""Tests of jigclu.detection.record."""

from pathlib import Path
from typing import Any

import torch
from absl.testing import absltest, parameterized

from jigclu.detection import record
from jigclu.system.errors import UserError

SETTINGS = {"SOLVER.IMS_PER_BATCH": 2, "SOLVER.BASE_LR": 0.0025, "SOLVER.AMP.ENABLED": False}


class RecordTest(parameterized.TestCase):
    def setUp(self) -> None:
        super().setUp()
        self.path = Path(self.create_tempdir()) / "model_final.pth"
        self.write(iteration=9, class_names=["cat", "dog"], settings=SETTINGS)

    def write(self, **trainer: Any) -> None:
        torch.save({"model": {}, "trainer": trainer}, self.path)

    @parameterized.parameters(b"", b" \n", b"\xff\xfe", None)
    def test_last_checkpoint_needs_a_name(self, contents: bytes | None) -> None:
        path = self.path.parent / "last_checkpoint"
        self.assertIsNone(record.last_checkpoint(path.parent))
        if contents is None:
            path.mkdir()
        else:
            path.write_bytes(contents)
        with self.assertRaisesRegex(UserError, "last_checkpoint is empty or unreadable: write"):
            record.last_checkpoint(path.parent)

    def test_accepts_the_same_classes(self) -> None:
        self.assertIsNone(record.check_classes(str(self.path), ("cat", "dog")))

    @parameterized.parameters((("dog", "cat"),), (("cat", "cow"),), (("cat",),))
    def test_rejects_other_classes_and_another_order(self, classes: tuple[str, ...]) -> None:
        with self.assertRaisesRegex(
            UserError, f"trained on the classes cat, dog, but the data have {', '.join(classes)}:"
        ):
            record.check_classes(str(self.path), classes)

    @parameterized.parameters("https://example.org/x.pth", "zoo.pkl", "")
    def test_files_of_other_projects_hold_no_class_names(self, weights: str) -> None:
        torch.save({"model": {}}, self.path)
        message = record.check_classes(weights or str(self.path), ("cat", "dog"))
        self.assertRegex(message or "", "holds no class names: .* cat, dog")

    def test_accepts_the_same_settings_with_as_many_iterations_or_more(self) -> None:
        for iterations in (10, 11):
            record.check_resumed(str(self.path), SETTINGS, iterations)
        with self.assertRaisesRegex(UserError, "MAX_ITER is 9, but .* was trained for 10 iter"):
            record.check_resumed(str(self.path), SETTINGS, 9)

    @parameterized.parameters(
        ("SOLVER.IMS_PER_BATCH", 4), ("SOLVER.BASE_LR", 0.01), ("SOLVER.AMP.ENABLED", True)
    )
    def test_rejects_a_run_resumed_with_another_setting(self, key: str, value: object) -> None:
        with self.assertRaisesRegex(
            UserError, f"--resume: {key} is {value}, but the run was started with {SETTINGS[key]}:"
        ):
            record.check_resumed(str(self.path), SETTINGS | {key: value}, 10)

    def test_rejects_to_resume_a_file_without_settings(self) -> None:
        self.write(iteration=9)
        with self.assertRaisesRegex(UserError, "does not hold the settings of its training"):
            record.check_resumed(str(self.path), SETTINGS, 10)


if __name__ == "__main__":
    absltest.main()
