"""A comparison of two methods: budgets and choices by hand, and a small one for real."""

import contextlib
import io
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from absl.testing import absltest, parameterized

from jigclu.system import machine
from jigclu.system.errors import UserError
from jigclu.tasks import short_run
from jigclu.tasks.compare import CompareTask
from jigclu.tasks.stages import Task
from jigclu.training.finite import Diverged
from jigclu.training.loop import RunResult
from jigclu.training.settings import with_settings
from tests.folder_case import FolderTestCase
from tests.small_tasks import PRETRAINING


class FakeStage:
    """A stage that returns scores, or raises an error, and notes that it ran."""

    def __init__(self, ran: list[str], resolved: str, result: Any) -> None:
        self.ran = ran
        self.resolved = resolved
        self.result = result
        self.task = PRETRAINING

    def for_workdir(self, workdir: Path) -> "FakeStage":
        return self

    def check(self, workdir: Path) -> None:
        pass

    def run(self, workdir: Path) -> RunResult:
        self.ran.append(self.resolved)
        (workdir / "checkpoints").mkdir(parents=True, exist_ok=True)
        torch.save({}, workdir / "checkpoints" / "step_00000001.pt")
        (workdir / "metrics.jsonl").write_text('{"step": 1, "time": 1.0, "images": 800}\n')
        if isinstance(self.result, Exception):
            raise self.result
        scores = self.result if isinstance(self.result, dict) else {"knn_accuracy": self.result}
        return RunResult(scores, None)


class FakeTest(FolderTestCase, parameterized.TestCase):
    def setUp(self) -> None:
        super().setUp()
        self.ran: list[str] = []
        # Scores by a part of the bindings.
        self.scores: dict[str, Any] = {"rate=2": 0.5, "rate=1": 0.25, "": 0.125}
        self.enter_context(mock.patch.object(short_run, "measure_first_steps", self.measure))

    def measure(self, task: Any) -> dict[str, float]:
        self.ran.append("measured")
        return {"images_per_second": 100.0 if self.ran.count("measured") % 2 else 40.0}

    def load(self, files: Any, bindings: Any, workdir: Any) -> FakeStage:
        resolved = "\n".join((*files, *bindings))
        found = next(value for part, value in self.scores.items() if part in resolved)
        return FakeStage(self.ran, resolved, found)

    def task(self, **changes: Any) -> CompareTask:
        settings: dict[str, Any] = {
            "methods": [
                ("fast", "fast.gin", (), [("rate=1",), ("rate=2",)]),
                ("slow", "slow.gin", (), [("rate=2",), ("rate=1",)]),
            ],
            "reference": "fast",
            "epochs": 20,
            "budgets": ("time", "images"),
            "trial_share": 0.1,
            "trial_bindings": ("trial",),
            "seeds": (3,),
            "data": "images",
            "scorings": [("knn", "knn.gin", "knn", "others", ("neighbors=3",))],
            "load": self.load,
        }
        return CompareTask(**(settings | changes))

    def run_quietly(self, task: CompareTask) -> dict[str, float]:
        self.ran.clear()
        with contextlib.redirect_stderr(io.StringIO()):
            return task.run(self.folder, "").scores

    def trainings(self) -> list[tuple[str, str, str]]:
        """Returns file, rate and epochs of each training that ran outside of trials."""
        lines = [text.split("\n") for text in self.ran if "schedule.epochs" in text]
        return [(line[0], line[2], line[3]) for line in lines if "trial" not in line]

    def test_budgets_and_choices_by_hand(self) -> None:
        scores = self.run_quietly(self.task())
        # The slow method takes 2.5 times as long per image: 8 of 20 epochs.
        self.assertEqual(
            self.trainings(),
            [
                ("fast.gin", "rate=2", "schedule.epochs=20"),
                ("slow.gin", "rate=2", "schedule.epochs=8"),
                ("fast.gin", "rate=2", "schedule.epochs=20"),
                ("slow.gin", "rate=2", "schedule.epochs=20"),
            ],
        )
        trials = [text.split("\n") for text in self.ran if "trial" in text.split("\n")]
        self.assertEqual(
            [(line[0], line[3]) for line in trials],
            [("fast.gin", "schedule.epochs=2")] * 2 + [("slow.gin", "schedule.epochs=0.8")] * 2,
        )
        self.assertTrue(all("SEED=0" in line and "DATA='images'" in line for line in trials))
        self.assertEqual(scores["time/slow/3/knn/knn_accuracy"], 0.125)

    def test_a_single_candidate_is_taken_without_trials(self) -> None:
        methods = [("fast", "fast.gin", (), [("rate=1",)]), ("slow", "slow.gin", (), [("rate=2",)])]
        task = self.task(methods=methods, budgets=("images",))
        self.run_quietly(task)
        self.assertEqual([rate for _, rate, _ in self.trainings()], ["rate=1", "rate=2"])
        self.assertFalse([text for text in self.ran if "trial" in text.split("\n")])
        self.assertFalse((self.folder / "trials").exists())
        self.assertIn("trainings: 0 trials", task.plan(self.folder))

    def test_random_weights_are_scored_as_trained_ones(self) -> None:
        self.run_quietly(self.task(budgets=("images",)))
        untrained, *trained = [text.split("\n") for text in self.ran if "knn.gin" in text]
        self.assertEqual(
            untrained[2:5], ["knn.init_from=None", "knn.encoder='resnet18'", "knn.small_stem=True"]
        )
        weights = self.folder / "images/fast/seed_3/checkpoints/step_00000001.pt"
        self.assertEqual(trained[0][2], f"knn.init_from={str(weights)!r}")
        for lines in (untrained, *trained):
            self.assertEqual(lines[-2:], ["neighbors=3", "DATA='others'"])

    def test_finished_stages_do_not_run_again(self) -> None:
        first = self.run_quietly(self.task())
        self.assertEqual(self.run_quietly(self.task()), first)
        self.assertEmpty(self.ran)
        self.run_quietly(self.task(seeds=(3, 4)))
        self.assertLen(self.trainings(), 4)
        self.assertTrue(all("SEED=4" in text for text in self.ran if "schedule" in text))

    def test_a_candidate_that_diverges_loses(self) -> None:
        self.scores = self.scores | {"rate=2": Diverged("loss is nan")}
        self.run_quietly(self.task(budgets=("images",)))
        self.assertEqual({rate for _, rate, _ in self.trainings()}, {"rate=1"})
        self.assertIn("| fast | rate=2 | diverged |", (self.folder / "report.md").read_text())

    def test_a_trial_that_diverged_does_not_run_again(self) -> None:
        self.scores = self.scores | {"rate=2": Diverged("loss is nan")}
        first = self.run_quietly(self.task(budgets=("images",)))
        self.assertEqual(self.run_quietly(self.task(budgets=("images",))), first)
        self.assertEmpty(self.ran)

    def test_a_run_that_diverges_is_reported_and_the_comparison_continues(self) -> None:
        self.scores = {"fast.gin": Diverged("loss is nan")} | self.scores
        task = self.task(budgets=("images",))
        scores = self.run_quietly(task)
        self.assertEqual(
            list(scores), ["images/slow/3/knn_accuracy", "images/slow/3/knn/knn_accuracy"]
        )
        report = (self.folder / "report.md").read_text()
        self.assertIn("| fast | 20 | 800 | 0.00 | diverged | rate=1 |", report)
        self.assertIn("| slow | 20 | 800 | 0.01 | 12.5% | rate=2 |", report)
        printed = io.StringIO()
        self.ran.clear()
        with contextlib.redirect_stderr(printed):
            self.assertEqual(task.run(self.folder, "").scores, scores)
        self.assertEmpty(self.ran)
        folder = self.folder / "images/fast/seed_3"
        self.assertIn(f"diverged before; remove {folder} to run it again", printed.getvalue())

    def test_a_scoring_that_diverges_is_reported(self) -> None:
        self.scores = {"step_00000001": Diverged("features are not finite")} | self.scores
        scores = self.run_quietly(self.task(budgets=("images",)))
        self.assertEqual(list(scores), ["images/fast/3/knn_accuracy", "images/slow/3/knn_accuracy"])
        report = (self.folder / "report.md").read_text()
        self.assertIn("| fast | 20 | 800 | 0.00 | diverged | rate=2 |", report)

    def test_a_method_without_scores_of_its_own_is_evaluated(self) -> None:
        self.scores = {"slow.gin": {}} | self.scores
        methods = [(name, f"{name}.gin", (), [("rate=1",)]) for name in ("fast", "slow")]
        scores = self.run_quietly(self.task(methods=methods, budgets=("images",)))
        self.assertEqual(scores["images/slow/3/knn/knn_accuracy"], 0.125)

    def test_a_run_with_another_candidate_is_not_resumed(self) -> None:
        self.run_quietly(self.task())
        methods = self.task().methods
        changed = [("fast", "fast.gin", (), [("rate=1",), ("rate=4",)]), methods[1]]
        with self.assertRaisesRegex(
            UserError, r"trials/fast/1 has a run with settings \['rate=2'\], not \['rate=4'\]"
        ):
            self.run_quietly(self.task(methods=changed))

    def test_candidates_need_a_score(self) -> None:
        self.scores = {"": {}}
        with self.assertRaisesRegex(UserError, "fast has none of the scores"):
            self.run_quietly(self.task())

    def test_all_candidates_are_compared_under_equal_conditions(self) -> None:
        other = with_settings(PRETRAINING, encoder="resnet34")

        def load(files: Any, bindings: Any, workdir: Any) -> FakeStage:
            stage = self.load(files, bindings, workdir)
            stage.task = other if files == ["slow.gin"] and "rate=1" in bindings else PRETRAINING
            return stage

        with self.assertRaisesRegex(
            UserError, r"encoder must be the same.*'resnet34' \(slow, candidate 1"
        ):
            self.task(load=load).check(self.folder)

    def test_trainings_are_checked_with_the_epochs_that_they_will_have(self) -> None:
        """Trials have 2 of 20 epochs, and those of the slow method 0.8."""
        checked: list[str] = []

        def check(stage: FakeStage, workdir: Path) -> None:
            checked.append(stage.resolved)
            if "epochs=0.8\n" in stage.resolved:
                raise UserError("warmup_epochs is 1")

        with mock.patch.object(FakeStage, "check", check):
            self.task().check(self.folder)
            self.assertNotEmpty([text for text in checked if "epochs=2\n" in text])
            for start in (self.run_quietly, lambda task: task.check(self.folder)):
                with self.assertRaisesRegex(
                    UserError, "stage slow, candidate 0: warmup_epochs is 1"
                ):
                    start(self.task())
        self.assertEqual(set(self.ran), {"measured"})

    def test_a_single_candidate_is_not_checked_as_a_trial(self) -> None:
        methods = [(name, f"{name}.gin", (), [("rate=1",)]) for name in ("fast", "slow")]
        with mock.patch.object(FakeStage, "check", autospec=True) as check:
            self.task(methods=methods, trial_bindings=("HELD_OUT=1",)).check(self.folder)
        texts = [call.args[0].resolved for call in check.call_args_list]
        self.assertNotEmpty(texts)
        self.assertNotIn("HELD_OUT", "\n".join(texts))

    def test_tasks_that_do_not_train_pass_only_the_check_of_a_dry_run(self) -> None:
        def load(files: Any, bindings: Any, workdir: Any) -> FakeStage:
            stage = self.load(files, bindings, workdir)
            stage.task = mock.Mock(spec=Task)
            return stage

        task = self.task(load=load)
        task.check(self.folder)
        with self.assertRaisesRegex(UserError, "fast does not train"):
            self.run_quietly(task)

    def test_all_stages_run_in_the_precision_of_the_first_start(self) -> None:
        automatic = with_settings(PRETRAINING, precision="auto")

        def load(files: Any, bindings: Any, workdir: Any) -> FakeStage:
            stage = self.load(files, bindings, workdir)
            stage.task = automatic
            return stage

        task = self.task(load=load, budgets=("images",))
        with (
            mock.patch.object(machine, "_cpu_supports_bfloat16", return_value=True),
            mock.patch.object(machine, "precision_slowdown", side_effect=(0.5, 2.0)),
        ):
            self.run_quietly(task)
            lines = [text.split("\n") for text in self.ran if text != "measured"]
            self.run_quietly(replace(task, seeds=(4,)))
            lines += [text.split("\n") for text in self.ran]
        self.assertLen(lines, 13)
        # First, so that a binding of a stage overrides it.
        self.assertEqual({line[1] for line in lines}, {"compute.precision='bfloat16'"})
        self.assertIn("Training in bfloat16.", (self.folder / "report.md").read_text())

    def test_other_errors_stop_the_comparison(self) -> None:
        self.scores = self.scores | {"rate=2": UserError("no space left")}
        with self.assertRaisesRegex(UserError, "no space left"):
            self.run_quietly(self.task())

    @parameterized.parameters(
        ({"reference": "other"}, "reference is 'other'; it must be one of"),
        ({"budgets": ("hours",)}, r"budgets is \('hours',\)"),
        ({"budgets": ("time", "time")}, "budgets is .* each once"),
        ({"seeds": (0, 0)}, r"seeds is \(0, 0\)"),
        ({"seeds": (0, -1)}, "seed is -1"),
        ({"trial_share": 0.0}, "trial_share is 0"),
        ({"methods": [("../b", "b", (), [()])]}, r"methods is \['../b'\]"),
        ({"methods": [("fast", "a", (), [("x",)]), ("b", "b", (), [])]}, "equally many candidates"),
    )
    def test_rejects(self, changes: dict[str, Any], message: str) -> None:
        with self.assertRaisesRegex(UserError, message):
            self.task(**changes)


if __name__ == "__main__":
    absltest.main()
