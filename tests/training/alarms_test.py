"""Tests of jigclu.training.alarms."""

import math
from collections.abc import Sequence

from absl.testing import absltest, parameterized

from jigclu.training.alarms import Alarms

# A run as it should be: what the demo reports after a few hundred steps.
HEALTHY = {
    "loss": 21.7,
    "loss_chance": 25.1,
    "loss_floor": 10.6,
    "clustering_loss": 20.4,
    "clustering_loss_chance": 23.75,
    "clustering_loss_floor": 10.6,
    "location_loss": 1.25,
    "location_loss_chance": 1.386,
    "location_accuracy": 0.36,
    "location_accuracy_chance": 0.25,
    "retrieval": 0.09,
    "retrieval_chance": 0.012,
    "embedding_deviation": 0.8,
    "parameter_norm/encoder": 112.0,
    "update_ratio/encoder": 0.002,
    "update_ratio/fc_loc": 0.11,
}
CHANCE = {"loss": 25.1, "clustering_loss": 23.5, "location_loss": 1.39, "location_accuracy": 0.253}


def raised(reports: Sequence[dict[str, float]], total_steps: int = 200) -> list[str]:
    """Returns the alarms of reports every ten steps, each with changed values."""
    alarms = Alarms(total_steps)
    found = []
    for number, changes in enumerate(reports, 1):
        found += alarms.check(10 * number, HEALTHY | changes)
    return found


class AlarmsTest(parameterized.TestCase):
    def test_a_healthy_run_raises_none(self) -> None:
        self.assertEqual(raised([CHANCE] * 5 + [{}] * 15), [])

    def test_learning_must_show_after_half_of_a_short_run(self) -> None:
        self.assertEqual(raised([CHANCE] * 9), [])
        (text,) = raised([CHANCE] * 20)
        self.assertIn("nothing is learned beyond chance after 100 steps", text)

    def test_a_few_steps_need_not_show_learning(self) -> None:
        self.assertEqual(raised([CHANCE] * 2, total_steps=6), [])

    def test_learning_must_show_after_a_thousand_steps_of_a_long_run(self) -> None:
        self.assertEqual(raised([CHANCE] * 99, 10**6), [])
        (text,) = raised([CHANCE] * 100, 10**6)
        self.assertIn("after 1000 steps", text)

    @parameterized.parameters(
        ({"clustering_loss": 23.5}, "the clustering loss is still at chance"),
        ({"location_loss": 1.38, "location_accuracy": 0.26}, "the location loss is still at"),
    )
    def test_dead_branch(self, changes: dict[str, float], message: str) -> None:
        (text,) = raised([changes] * 20)
        self.assertIn(message, text)

    def test_noise_of_one_report_is_averaged(self) -> None:
        dead = {"location_loss": 1.38, "location_accuracy": 0.25}
        lucky = {"location_loss": 1.3, "location_accuracy": 0.30}
        (text,) = raised([dead] * 9 + [lucky] + [dead] * 10)
        self.assertIn("the location loss", text)

    def test_collapse_counts_after_the_first_half_only(self) -> None:
        collapsed = {"embedding_deviation": 0.001}
        self.assertEqual(raised([collapsed] * 9 + [{}] * 11), [])
        (text,) = raised([{}] * 10 + [collapsed])
        self.assertIn("deviation 0.001, where 1 is spread evenly", text)

    @parameterized.parameters(
        ({"update_ratio/encoder": 1.22}, "changes the weights of encoder by 122.0% of their norm"),
        ({"parameter_norm/encoder": 5000.0}, "weights of encoder has grown from 112 to 5e+03"),
    )
    def test_explosion_is_raised_at_once(self, changes: dict[str, float], message: str) -> None:
        (text,) = raised([{}, changes, changes], 10**6)
        self.assertIn(message, text)

    def test_rising_loss(self) -> None:
        rising = [{"loss": 20.0}] * 6 + [{"loss": 20.0 + 0.5 * step} for step in range(10)]
        (text,) = raised(rising, 10**6)
        self.assertIn("the loss rises: it was 20, and is 22.5", text)
        self.assertEqual(raised([{"loss": 20.0 + 5 * (step % 2)} for step in range(30)], 600), [])

    def test_a_resumed_run_repeats_no_alarm_and_remembers_its_start(self) -> None:
        rising = [
            {"loss": 20.0 + 0.5 * number, "parameter_norm/encoder": 112.0 + number}
            for number in range(20)
        ]
        lines = [
            HEALTHY | changes | {"step": 10 * number, "alarms": ["alarm: the loss rises"]}
            for number, changes in enumerate(rising, 1)
        ]
        # Evaluations and steps that failed are in the file, too.
        lines[3] |= {"knn_accuracy": 0.9, "knn_accuracy_chance": 0.1}
        bad = [{"step": 0, "knn_accuracy": 0.1}, {"step": 205, "bad_steps": 5.0}]
        alarms = Alarms(10**6)
        alarms.replay([*lines, *bad, {"step": 206, "loss": math.nan}])
        self.assertEqual(alarms.check(210, HEALTHY | {"loss": 31.0}), [])
        (text,) = alarms.check(220, HEALTHY | {"loss": 31.0, "parameter_norm/encoder": 4000.0})
        self.assertIn("has grown from 112 to 4e+03", text)


if __name__ == "__main__":
    absltest.main()
