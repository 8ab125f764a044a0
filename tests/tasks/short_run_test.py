"""Tests of jigclu.tasks.short_run."""

from pathlib import Path
from typing import Any
from unittest import mock

from absl.testing import absltest

from jigclu.tasks import short_run
from jigclu.tasks.finetune import FinetuneTask
from jigclu.tasks.pretrain import PretrainTask
from jigclu.tasks.short_run import measure_first_steps, measure_speeds
from jigclu.training.settings import with_settings
from tests.small_tasks import FINETUNING, KNN, PRETRAINING


class ShortRunTest(absltest.TestCase):
    def capture_task(self, task: Any) -> Any:
        """Returns the task that runs in place of one to be measured."""
        ran = []

        def run(task: Any, workdir: Path, config: str, stop: Any) -> None:
            ran.append(task)

        with mock.patch.object(type(task), "run", run):
            measure_first_steps(task)
        return ran[0]

    def test_measures_the_largest_patches_without_evaluations(self) -> None:
        task = with_settings(
            PRETRAINING, smaller_patches=((1, 8),), evaluators=(KNN,), init_from="weights.pt"
        )
        found = self.capture_task(task)
        assert isinstance(found, PretrainTask)
        self.assertEqual(found.method, PRETRAINING.method)
        self.assertEqual((found.evaluators, found.init_from), ((), None))

    def test_measures_tasks_without_patches(self) -> None:
        found = self.capture_task(with_settings(FINETUNING, epochs=50))
        assert isinstance(found, FinetuneTask)
        self.assertEqual(found.schedule.epochs, 50)

    def test_speeds_are_medians_of_turns(self) -> None:
        rates = iter([10.0, 4.0, 20.0, 1.0, 40.0, 2.0])
        turns: list[str] = []

        def measure(task: Any) -> dict[str, float]:
            return {"images_per_second": next(rates)}

        with mock.patch.object(short_run, "measure_first_steps", measure):
            found = measure_speeds({"a": PRETRAINING, "b": FINETUNING}, 3, turns.append)
        self.assertEqual(found, {"a": 0.05, "b": 0.5})
        self.assertEqual([turn.split()[4] for turn in turns], ["a,", "b,"] * 3)


if __name__ == "__main__":
    absltest.main()
