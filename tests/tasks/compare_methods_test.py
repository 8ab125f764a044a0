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
        self.assertEmpty(method.trial_candidates)
        both = method._replace(candidates=[("rate=1",), ("rate=2",)])
        self.assertEqual(both.trial_candidates, [("rate=1",), ("rate=2",)])


class NamesTest(parameterized.TestCase):
    def test_names_of_shipped_comparisons(self) -> None:
        check_names("methods", ["jigclu", "cross_ratio_0.1"])

    @parameterized.parameters(
        (["knn", "knn"], "names that differ"),
        (["../knn"], "names of letters, digits"),
        (["a/b"], "names of letters, digits"),
        ([""], "names of letters, digits"),
        ([".hidden"], "names of letters, digits"),
    )
    def test_rejects_names_that_folders_cannot_have_or_that_repeat(
        self, names: list[str], message: str
    ) -> None:
        with self.assertRaisesRegex(UserError, f"scorings is .*{message}"):
            check_names("scorings", names)


class ConditionsTest(parameterized.TestCase):
    @parameterized.parameters(
        (
            {"encoder": "resnet34"},
            "encoder must be the same .*'resnet18' .first. and 'resnet34' .second.",
        ),
        ({"small_stem": False}, "small_stem must be the same .*True .first. and False .second."),
        ({"device": "auto"}, "compute.device must be the same"),
        ({"precision": "bfloat16"}, "compute.precision must be the same"),
        ({"compile": True}, "compute.compile must be the same"),
        (
            {"source": ProceduralImages(images=7, size=32, seed=0, split="train")},
            "number of training images must be the same .* and 7 .second.",
        ),
    )
    def test_differences_are_named(self, changes: dict[str, Any], message: str) -> None:
        tasks = {"first": PRETRAINING, "second": with_settings(PRETRAINING, **changes)}
        with self.assertRaisesRegex(UserError, message):
            check_conditions(tasks)

    def test_rates_may_differ(self) -> None:
        other = with_settings(PRETRAINING, learning_rate=PRETRAINING.learning_rate * 2)
        check_conditions({"first": PRETRAINING, "second": other})

    def test_rejects_a_method_that_does_not_train(self) -> None:
        with self.assertRaisesRegex(UserError, "second does not train"):
            check_conditions({"first": PRETRAINING, "second": mock.Mock(spec=KnnTask)})

    def test_tasks_without_their_data_are_left_out(self) -> None:
        check_conditions({"first": PRETRAINING, "second": mock.Mock(spec=Task)})


if __name__ == "__main__":
    absltest.main()
