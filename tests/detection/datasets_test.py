"""Tests of jigclu.detection.datasets."""

from absl.testing import absltest, parameterized

from jigclu.detection import datasets
from jigclu.system.errors import UserError


class SameClassesTest(parameterized.TestCase):
    def test_accepts_equal_classes(self) -> None:
        summary = datasets.Summary(1, 1, ("a", "b"))
        datasets.check_same_classes({"train": summary, "test": summary._replace(images=5)})

    @parameterized.parameters((("a", "c"), "b, c"), (("b", "a"), "in another order"))
    def test_rejects_different_classes(self, classes: tuple[str, ...], difference: str) -> None:
        summary = datasets.Summary(1, 1, ("a", "b"))
        other = summary._replace(classes=classes)
        with self.assertRaisesRegex(
            UserError, f"train and test have different classes .{difference}."
        ):
            datasets.check_same_classes({"train": summary, "test": other})


if __name__ == "__main__":
    absltest.main()
