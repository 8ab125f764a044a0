"""Curves and records of runs that `kill -9` has ended: every step once, in order, without gaps."""

import os
import signal
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from absl.testing import absltest

from jigclu.tasks.pretrain import PretrainTask
from jigclu.training import metrics_file
from jigclu.training.settings import with_settings
from jigclu.training.state import TrainState
from jigclu.training.step import StepResult, TrainingStep
from tests.faults.checkpoints_test import start
from tests.samples import tiny_model
from tests.small_tasks import KNN, PRETRAINING, TaskTestCase, final, run_task

# Twelve steps; checkpoints after 5, 10 and 12, and evaluations at 0, 3, 6, 9 and 12.
TASK = with_settings(
    PRETRAINING,
    epochs=4,
    every=5,
    log_every=1,
    picture_every=4,
    evaluators=(with_settings(KNN, every=1),),
)


def run(workdir: Path) -> None:
    with mock.patch.object(PretrainTask, "network", lambda _: tiny_model()):
        run_task(TASK, workdir)


def run_and_die(workdir: Path, step: int) -> None:
    """Trains, and kills this process before it takes a step, counted from 0."""
    torch.set_num_threads(1)
    take_step = PretrainTask.take_step

    def take_step_or_die(
        task: PretrainTask, own: TrainingStep, state: TrainState, *arguments: Any
    ) -> StepResult:
        if state.step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return take_step(task, own, state, *arguments)

    with mock.patch.object(PretrainTask, "take_step", take_step_or_die):
        run(workdir)


class CurvesTest(TaskTestCase):
    def test_killed_runs_leave_neither_gaps_nor_duplicates(self) -> None:
        # Before the first checkpoint, twice between the first and the second, and at the second.
        for step in (3, 8, 9, 10):
            process = start(run_and_die, self.folder, step)
            process.join()
            self.assertEqual(process.exitcode, -signal.SIGKILL)
            self.assertNotIn(step + 1, self.recorded_steps())
        run(self.folder)
        self.assertEqual(final(self.folder)["step"], 12)

        self.assertEqual(self.recorded_steps(), [*range(13)])
        records = metrics_file.read(self.folder / "metrics.jsonl")
        scored = [values["step"] for values in records if "knn_accuracy" in values]
        self.assertEqual(scored, [0, 3, 6, 9, 12])
        events = self.events(self.folder)
        curves = {tag: [e.step for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
        self.assertEqual(curves["loss/loss"], [*range(1, 13)])
        self.assertEqual(curves["speed/epoch"], [*range(1, 13)])
        for tag, steps in curves.items():
            self.assertEqual(steps, sorted(set(steps)), tag)
            # There is no speed at the first step of a process.
            if not tag.startswith("speed/"):
                self.assertEqual(steps, scored if "knn" in tag else [*range(1, 13)], tag)
        pictures = {tag: [e.step for e in events.Images(tag)] for tag in events.Tags()["images"]}
        self.assertEqual(pictures["inputs"], [0, 4, 8])
        self.assertEqual(pictures["knn_neighbors"], scored)
        # Both records have the same values.
        losses = [values["loss"] for values in records[1:]]
        for event, loss in zip(events.Scalars("loss/loss"), losses, strict=True):
            self.assertAlmostEqual(event.value, loss, places=4)

    def recorded_steps(self) -> list[int]:
        return [values["step"] for values in metrics_file.read(self.folder / "metrics.jsonl")]


if __name__ == "__main__":
    absltest.main()
