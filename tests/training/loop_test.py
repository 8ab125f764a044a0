"""The loop itself, with steps that only count: order of events, periods, and early stops."""

import contextlib
import io
import json
import shlex
import signal
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from absl.testing import absltest
from torch import Tensor

from jigclu.system import signals
from jigclu.system.errors import UserError
from jigclu.system.machine import Choice
from jigclu.training import checkpoint, loop
from jigclu.training.loop import Evaluation, RunResult
from jigclu.training.monitor import Monitor
from jigclu.training.settings import with_settings
from jigclu.training.state import TrainState
from jigclu.training.step import StepResult
from tests.small_tasks import PRETRAINING, TaskTestCase, final
from tests.training.resume_test import process

# Six steps of two epochs, saved every 2 steps; a picture every 4.
TASK = with_settings(PRETRAINING, log_every=1)


class CountingRun:
    """Records what the loop calls, in order."""

    def __init__(
        self, workdir: Path, loss: float = 1.0, bad: Sequence[int] = range(6), buffer: float = 0.0
    ) -> None:
        """Makes the loss of steps `bad`, from 0, and a buffer have given values."""
        self.calls: list[str] = []
        self.workdir = workdir
        self.loss = loss
        self.bad = bad
        self.buffer = buffer

    def batches(self, start: int) -> Iterator[int]:
        for step in range(start, TASK.total_steps):
            self.calls.append(f"read {step}")
            yield step

    def prepare(self, batch: int, step: int) -> int:
        assert batch == step
        return 10 * batch

    def take_step(self, state: TrainState, inputs: int, measured: bool) -> StepResult:
        assert inputs == 10 * state.step
        self.calls.append(f"step {state.step}")
        state.parameters["w"].add_(1.0)
        state.buffers["running_mean"].fill_(self.buffer)
        loss = self.loss if state.step in self.bad else 1.0
        state = state._replace(step=state.step + 1)
        measures = {"steps": torch.tensor(float(state.step))} if measured else {}
        return StepResult(state, {"loss": torch.tensor(loss)}, measures)

    def evaluation(self, name: str, every: int, before_training: bool = False) -> Evaluation:
        def evaluate(monitor: Monitor, step: int) -> dict[str, float]:
            self.calls.append(f"{name} {step}")
            return {name: float(step)}

        return Evaluation(every, before_training, evaluate)

    def draw(self, inputs: int) -> Tensor:
        self.calls.append(f"draw {inputs}")
        return torch.zeros(3, 4, 4, dtype=torch.uint8)

    def train(
        self,
        evaluations: list[Evaluation],
        should_stop: Callable[[], bool] = signals.requested,
        **changes: Any,
    ) -> tuple[RunResult, str]:
        """Returns the result, and what the run printed."""
        state = TrainState(
            step=0,
            parameters={"w": torch.zeros(1)},
            buffers={"running_mean": torch.zeros(2)},
            moments={"momentum": {"w": torch.zeros(1)}},
            updates=torch.tensor(0),
            loss_scale=torch.ones(()),
            good_steps=torch.zeros((), dtype=torch.int64),
        )
        printed = io.StringIO()
        with contextlib.redirect_stderr(printed):
            result = loop.train(
                with_settings(TASK, **changes),
                process(self.workdir, "float32"),
                state=state,
                initialize=lambda path: "",
                batches=self.batches,
                prepare=self.prepare,
                take_step=self.take_step,
                evaluations=evaluations,
                pictures={"inputs": self.draw},
                summarize=lambda history: [f"summary of {len(history)} evaluations"],
                should_stop=should_stop,
            )
        return result, printed.getvalue()


class LoopTest(TaskTestCase):
    def test_order_of_events(self) -> None:
        run = CountingRun(self.folder)
        result, printed = run.train(
            [run.evaluation("often", 2, before_training=True), run.evaluation("rare", 4)]
        )
        self.assertEqual(
            run.calls,
            [
                *("often 0", "read 0", "draw 0", "step 0"),
                *("read 1", "step 1", "often 2"),
                *("read 2", "step 2"),
                *("read 3", "step 3", "often 4", "rare 4"),
                *("read 4", "draw 40", "step 4"),
                *("read 5", "step 5", "often 6", "rare 6"),
            ],
        )
        self.assertEqual(result.scores, {"often": 6.0, "rare": 6.0})
        self.assertEqual(result.checkpoint, checkpoint.latest(self.folder))
        self.assertIn("step 4: often 4, rare 4\n", printed)
        self.assertRegex(printed, r"done: 6 steps, .*\nsummary of 4 evaluations\n")
        self.assertEqual(
            [e.step for e in self.events(self.folder).Scalars("accuracy/rare")], [4, 6]
        )

    def test_evaluations_without_a_period_run_at_the_end(self) -> None:
        run = CountingRun(self.folder)
        run.train([run.evaluation("last", 0)])
        self.assertEqual([call for call in run.calls if call.startswith("last")], ["last 6"])

    def test_saves_at_its_period_and_at_the_end(self) -> None:
        run = CountingRun(self.folder)
        run.train([], every=4, keep_last=5)
        names = sorted(path.name for path in (self.folder / "checkpoints").iterdir())
        self.assertEqual(names, ["step_00000004.pt", "step_00000006.pt"])

    def test_should_stop_saves_and_ends_the_run_early(self) -> None:
        run = CountingRun(self.folder)
        result, printed = run.train(
            [run.evaluation("often", 2)], should_stop=lambda: "step 2" in run.calls
        )
        self.assertEqual(run.calls[-2:], ["read 2", "step 2"])
        self.assertEqual(final(self.folder)["step"], 3)
        self.assertEqual(result.scores, {"often": 2.0})
        self.assertIn("stopped at step 3 of 6; the same command resumes this run", printed)

        again = CountingRun(self.folder)
        result, printed = again.train([again.evaluation("often", 2)])
        self.assertEqual(again.calls[0], "read 3")
        self.assertIn("at step 3", printed)
        self.assertEqual(final(self.folder)["parameters"]["w"].item(), 6.0)
        self.assertEqual([step for step, _ in final(self.folder)["scores"]], [2, 4, 6])

    @mock.patch.object(loop, "_AT_RISK_SECONDS", 0.0)
    def test_a_signal_during_an_evaluation_loses_neither_the_step_nor_the_scores(self) -> None:
        for step in (2, 6):
            run = CountingRun(self.folder)
            interrupted = Evaluation(2, False, partial(self.evaluate_and_stop, step))
            with self.assertRaises(signals.Stopped), signals.handle():
                run.train([interrupted], every=100)
            self.assertEqual(final(self.folder)["step"], step)
            self.assertEqual(final(self.folder)["scores"][-1], (step, {}))
        again = CountingRun(self.folder)
        result, _ = again.train([again.evaluation("often", 2)], every=100)
        self.assertEqual(again.calls, ["often 6"])
        self.assertEqual(result.scores, {"often": 6.0})
        scores = [(step, list(values)) for step, values in final(self.folder)["scores"]]
        self.assertEqual(scores, [(2, ["often"]), (4, ["often"]), (6, ["often"])])

    def evaluate_and_stop(self, stop: int, monitor: Monitor, step: int) -> dict[str, float]:
        """Evaluates, or sends a signal at a step."""
        del monitor
        if step == stop:
            signal.raise_signal(signal.SIGTERM)
        return {"often": float(step)}

    def test_a_request_to_stop_skips_the_evaluation_until_the_run_resumes(self) -> None:
        run = CountingRun(self.folder)
        result, _ = run.train(
            [run.evaluation("often", 2)], should_stop=lambda: "step 1" in run.calls
        )
        self.assertTrue(result.is_stopped)
        self.assertNotIn("often 2", run.calls)
        again = CountingRun(self.folder)
        result, _ = again.train([again.evaluation("often", 2)])
        self.assertEqual(again.calls[:2], ["often 2", "read 2"])
        self.assertFalse(result.is_stopped)
        self.assertEqual([step for step, _ in final(self.folder)["scores"]], [2, 4, 6])

    def test_a_signal_while_saving_ends_the_run_after_the_checkpoint(self) -> None:
        save = checkpoint.save

        def save_slowly(*arguments: Any, **named: Any) -> Path:
            signal.raise_signal(signal.SIGINT)
            return save(*arguments, **named)

        run = CountingRun(self.folder)
        with signals.handle(), mock.patch.object(checkpoint, "save", save_slowly):
            result, printed = run.train([], every=2)
        self.assertTrue(result.is_stopped)
        self.assertIn("stopped at step 3 of 6", printed)
        self.assertEqual(final(self.folder)["step"], 3)

    def test_a_signal_during_the_first_step_does_not_wait_for_its_compilation(self) -> None:
        run = CountingRun(self.folder)
        stop = mock.patch.object(run, "take_step", lambda *_: signal.raise_signal(signal.SIGTERM))
        with self.assertRaises(signals.Stopped), signals.handle(), stop:
            run.train([])
        self.assertIsNone(checkpoint.latest(self.folder))

    def test_a_finished_run_takes_no_step(self) -> None:
        CountingRun(self.folder).train([])
        run = CountingRun(self.folder)
        result, printed = run.train([run.evaluation("often", 2)])
        self.assertEmpty(run.calls)
        self.assertIn("done: 6 steps", printed)
        self.assertEqual(result.checkpoint, checkpoint.latest(self.folder))

    def test_a_loss_that_is_not_finite_replaces_no_checkpoint(self) -> None:
        run = CountingRun(self.folder)
        run.train([], should_stop=lambda: "step 1" in run.calls)
        diverged = CountingRun(self.folder, loss=float("nan"))
        with self.assertRaisesRegex(ValueError, "loss is nan"):
            diverged.train([], log_every=50)
        self.assertEqual(final(self.folder)["step"], 2)

    def records(self) -> list[dict[str, Any]]:
        lines = (self.folder / "bad_steps" / "steps.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def test_bad_steps_are_recorded_with_all_that_a_replay_needs(self) -> None:
        run = CountingRun(self.folder, float("nan"), bad=(3,))
        with self.assertRaisesRegex(UserError, "^loss is nan at step 4; lower learning_rate, with"):
            run.train([], log_every=6)
        (record,) = self.records()
        self.assertEqual((record["step"], record["seed"]), (4, 0))
        self.assertEqual(record["problem"], "loss is nan")
        batch = [index for _, index in next(iter(TASK.sampler(3)))]
        expected = {str(index): TASK.source.name(index) for index in batch}
        self.assertEqual(record["images"], expected)

        flags = shlex.split(record["replay"])[3:]
        replay = Path(flags[1].removeprefix("--workdir="))
        self.assertEqual(flags[0], f"--gin_file={self.folder}/operative_config.gin")
        self.assertIn("--gin_bindings=schedule.stop_after_steps=4", flags)
        again = CountingRun(replay, float("nan"), bad=(3,))
        with self.assertRaisesRegex(UserError, "loss is nan at step 4; "):
            again.train([], log_every=1, stop_after_steps=4)
        self.assertEqual(again.calls[:2], ["read 2", "step 2"])

    def test_allowed_bad_steps_do_not_stop_the_run(self) -> None:
        run = CountingRun(self.folder, float("nan"), bad=(1, 2, 4))
        _, printed = run.train([], bad_steps=2)
        self.assertEqual([record["step"] for record in self.records()], [2, 3, 5])
        self.assertIn("warning: step 5 was skipped: loss is nan\n", printed)
        self.assertIn("done: 6 steps", printed)
        self.assertEqual(final(self.folder)["step"], 6)

    def test_a_state_that_is_not_finite_is_not_saved_and_replaces_no_checkpoint(self) -> None:
        CountingRun(self.folder).train([], stop_after_steps=2)
        sick = CountingRun(self.folder, buffer=float("inf"))
        with self.assertRaisesRegex(
            UserError, "the state after step 4 has values .* not finite in running_mean: lower"
        ):
            sick.train([])
        self.assertEqual(final(self.folder)["step"], 2)

    def test_a_checkpoint_that_is_not_finite_is_not_resumed(self) -> None:
        CountingRun(self.folder).train([], stop_after_steps=2)
        path = checkpoint.checkpoint_path(self.folder, 2)
        contents = checkpoint.load(path, "cpu")
        contents["optimizer"]["momentum"]["w"].fill_(torch.nan)
        torch.save(contents, path)
        run = CountingRun(self.folder)
        with self.assertRaisesRegex(UserError, f"^{path} has values .* in momentum of w: resume"):
            run.train([])
        self.assertEmpty(run.calls)

    def damage(self, step: int) -> Path:
        path = checkpoint.checkpoint_path(self.folder, step)
        path.write_bytes(path.read_bytes()[:-50])
        return path

    def test_a_corrupt_newest_checkpoint_is_set_aside_and_the_one_before_it_resumed(self) -> None:
        CountingRun(self.folder).train([], every=1, keep_last=9, stop_after_steps=4)
        path = self.damage(4)
        run = CountingRun(self.folder)
        _, printed = run.train([], every=3)
        self.assertEqual(run.calls[0], "read 3")
        self.assertRegex(printed, rf"warning: checkpoint {path} .*end is missing.*4.pt.corrupt\n")
        self.assertIn("step_00000003.pt at step 3\n", printed)
        self.assertEqual(final(self.folder)["parameters"]["w"].item(), 6.0)
        self.assertTrue(path.with_name(f"{path.name}.corrupt").exists())

    def test_a_run_without_intact_checkpoints_stops(self) -> None:
        CountingRun(self.folder).train([], keep_last=9)
        for step in (2, 4, 6):
            self.damage(step)
        run = CountingRun(self.folder)
        with self.assertRaisesRegex(UserError, "step_00000006.pt .*no checkpoint in .* is intact"):
            run.train([])
        self.assertEmpty(run.calls)

    def test_a_corrupt_checkpoint_that_the_user_named_stops_the_run(self) -> None:
        CountingRun(self.folder).train([], keep_last=9)
        path = self.damage(4)
        with self.assertRaisesRegex(UserError, "step_00000004.pt cannot be read"):
            CountingRun(self.folder).train([], resume_from=str(path))
        self.assertTrue(path.exists())

    def test_a_run_goes_back_to_an_earlier_checkpoint_once(self) -> None:
        CountingRun(self.folder).train([], every=1, keep_last=9, stop_after_steps=4)
        back: dict[str, Any] = {
            "resume_from": str(checkpoint.checkpoint_path(self.folder, 2)),
            "every": 1,
        }
        run = CountingRun(self.folder)
        _, printed = run.train([], keep_last=9, stop_after_steps=3, **back)
        self.assertEqual(run.calls, ["read 2", "step 2"])
        for step in (3, 4):
            self.assertIn(f"the file is now step_0000000{step}.pt.abandoned\n", printed)
        self.assertRegex(printed, r"changed since step 2: resume_from was None and is '\S+0002.pt'")
        again = CountingRun(self.folder)
        _, printed = again.train([], **back)
        self.assertEqual(again.calls[0], "read 3")
        self.assertNotIn("abandoned", printed)
        self.assertEqual(final(self.folder)["parameters"]["w"].item(), 6.0)

    def test_a_disk_without_room_for_the_checkpoints_stops_the_run_before_its_first_step(
        self,
    ) -> None:
        run = CountingRun(self.folder)
        with (
            mock.patch("shutil.disk_usage", return_value=mock.Mock(free=0)),
            self.assertRaisesRegex(UserError, "has room for 0 MB, but the checkpoints to come"),
        ):
            run.train([])
        self.assertEmpty(run.calls)

    def test_compilation_is_announced_with_its_cache(self) -> None:
        compiling = process()
        compiling = compiling._replace(
            machine=compiling.machine._replace(compile=Choice(True, "bound"))
        )
        self.assertIn("cached for the next start", loop._first_step_phrase(compiling))
        self.assertEqual(loop._first_step_phrase(process()), "taking the first step")


if __name__ == "__main__":
    absltest.main()
