"""What pre-training minimizes: its settings. What it computes is held by step_test."""

from absl.testing import absltest, parameterized

from jigclu.methods import jigsaw
from jigclu.system.errors import UserError
from tests.samples import AUGMENTATION

OBJECTIVE = jigsaw.Objective(AUGMENTATION, 0.3, 0.07, 1.0, 1.0)


class ObjectiveTest(parameterized.TestCase):
    @parameterized.parameters(
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"base_temperature": float("inf")}, "base_temperature is inf"),
        ({"clustering_weight": -1.0}, "clustering_weight"),
        ({"clustering_weight": 0.0, "location_weight": 0.0}, "not both 0"),
        ({"location_weight": float("nan")}, "nan"),
    )
    def test_refuses_objectives(self, change: dict[str, float], message: str) -> None:
        with self.assertRaisesRegex(UserError, message):
            jigsaw.check_objective(OBJECTIVE._replace(**change))  # type: ignore[arg-type]


if __name__ == "__main__":
    absltest.main()
