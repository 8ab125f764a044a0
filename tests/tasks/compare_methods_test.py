"""Tests of jigclu.tasks.compare_methods."""

from typing import Any
from unittest import mock

from absl.testing import absltest, parameterized

from jigclu.data.procedural import ProceduralImages
from jigclu.system.errors import UserError
from jigclu.tasks.compare_methods import Method, check_conditions, check_names
from jigclu.tasks.knn import KnnTask
from jigclu.tasks.stages import Task
from jigclu.training.settings import with_settings
from tests.small_tasks import PRETRAINING


class MethodTest(absltest.TestCase):
    def test_a_single_candidate_is_not_tried(self) -> None:
        method = Method("jigclu", "jigclu.gin", (), [("rate=1",)])
        self.assertEmpty(method.tried)
        both = method._replace(candidates=[("rate=1",), ("rate=2",)])
        self.assertEqual(both.tried, [("rate=1",), ("rate=2",)])


class NamesTest(parameterized.TestCase):
    def test_names_of_shipped_comparisons(self) -> None:
        check_names("methods", ["jigclu", "cross_ratio_0.1"])

    @parameterized.parameters(
        (["knn", "knn"], "different names"),
        (["../knn"], "letters, digits"),
        (["a/b"], "letters, digits"),
        ([""], "letters, digits"),
        ([".hidden"], "letters, digits"),
    )
    def test_rejects(self, names: list[str], message: str) -> None:
        with self.assertRaisesRegex(UserError, f"scorings is .*{message}"):
            check_names("scorings", names)


class ConditionsTest(parameterized.TestCase):
    @parameterized.parameters(
        ({"encoder": "resnet34"}, "encoder differs .*'resnet18' .first. and 'resnet34' .second."),
        ({"small_stem": False}, "small_stem differs .*True .first. and False .second."),
        ({"device": "auto"}, "compute.device differs"),
        ({"precision": "bfloat16"}, "compute.precision differs"),
        ({"compile": True}, "compute.compile differs"),
        (
            {"source": ProceduralImages(images=7, size=32, seed=0, split="train")},
            "number of training images differs .* and 7 .second.",
        ),
    )
    def test_differences_are_named(self, changes: dict[str, Any], message: str) -> None:
        tasks = {"first": PRETRAINING, "second": with_settings(PRETRAINING, **changes)}
        with self.assertRaisesRegex(UserError, message):
            check_conditions(tasks)

    def test_rates_may_differ(self) -> None:
        other = with_settings(PRETRAINING, learning_rate=PRETRAINING.learning_rate * 2)
        check_conditions({"first": PRETRAINING, "second": other})

    def test_an_evaluation_is_no_method(self) -> None:
        with self.assertRaisesRegex(UserError, "second trains nothing"):
            check_conditions({"first": PRETRAINING, "second": mock.Mock(spec=KnnTask)})

    def test_tasks_without_their_data_are_left_out(self) -> None:
        check_conditions({"first": PRETRAINING, "second": mock.Mock(spec=Task)})


if __name__ == "__main__":
    absltest.main()
