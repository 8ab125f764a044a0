"""Tests of jigclu.training.monitor."""

import contextlib
import io
import math
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from absl.testing import absltest, parameterized
from google.protobuf.json_format import MessageToDict
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata
from torch import Tensor

from jigclu.system import progress
from jigclu.system.errors import UserError
from jigclu.training import metrics_file, monitor, records
from tests.terminal import Clock, Terminal, screen


def _loss(value: float) -> dict[str, Tensor]:
    return {"loss": torch.tensor(value)}


class MonitorTest(parameterized.TestCase):
    def setUp(self) -> None:
        super().setUp()
        self.workdir = Path(self.create_tempdir().full_path)
        self.clock = Clock()
        self.recorded: list[tuple[int, str]] = []
        self.enter_context(mock.patch.object(monitor.time, "monotonic", self.clock))

    def _monitor(
        self,
        stream: io.StringIO | None = None,
        start_step: int = 0,
        total_steps: int = 10,
        log_every: int = 4,
        is_main: bool = True,
        images_per_step: int = 32,
        alarms: Any = None,
        bad_steps: int = 0,
        repeats_evaluation: bool = False,
    ) -> monitor.Monitor:
        return monitor.Monitor(
            workdir=self.workdir,
            total_steps=total_steps,
            start_step=start_step,
            images_per_step=images_per_step,
            steps_per_epoch=5,
            log_every=log_every,
            bad_steps=monitor.BadSteps(
                bad_steps, "lower the rate", lambda *record: self.recorded.append(record)
            ),
            references={"location_accuracy_chance": 0.25},
            alarms=alarms,
            is_main=is_main,
            console=progress.Console(stream or io.StringIO()),
            repeats_evaluation=repeats_evaluation,
        )

    def _flush(self, run: monitor.Monitor) -> None:
        """Waits until the thread of TensorBoard has written, or failed to."""
        assert run._records is not None
        if run._records._writer is not None:
            with contextlib.suppress(OSError):
                run._records._writer.flush()

    def _events(self) -> EventAccumulator:
        return EventAccumulator(str(self.workdir / "tensorboard")).Reload()

    def _scalars(self, name: str) -> list[tuple[int, float]]:
        events = self._events().Scalars(records.tag(name))
        return [(event.step, event.value) for event in events]

    def test_reports_means_over_every_window_and_the_remaining_steps(self) -> None:
        with self._monitor() as run:
            for step in range(1, 11):
                metrics = _loss(step) | {"accuracy": torch.tensor(step / 2)}
                run.step(step, metrics, data_wait=0.0)
        self.assertEqual(self._scalars("loss"), [(4, 2.5), (8, 6.5), (10, 9.5)])
        self.assertEqual(self._scalars("accuracy"), [(4, 1.25), (8, 3.25), (10, 4.75)])

    def test_transfers_metrics_once_per_window(self) -> None:
        read_at: list[int] = []
        tolist = Tensor.tolist

        def counted(tensor: Tensor) -> list[float]:
            read_at.append(step)
            return tolist(tensor)

        forbidden = AssertionError("synchronized with the device")
        with (
            self._monitor() as run,
            mock.patch.object(Tensor, "tolist", counted),
            mock.patch.object(Tensor, "item", side_effect=forbidden),
            mock.patch.object(Tensor, "__float__", side_effect=forbidden),
            mock.patch.object(Tensor, "__bool__", side_effect=forbidden),
        ):
            for step in range(1, 9):
                run.step(step, _loss(1.0), data_wait=0.0)
        self.assertEqual(read_at, [4, 8])

    def test_sums_do_not_share_memory_with_metrics_of_a_step(self) -> None:
        loss = torch.tensor(1.0, requires_grad=True)
        with self._monitor(log_every=2) as run:
            run.step(1, {"loss": loss}, data_wait=0.0)
            loss.data.fill_(3.0)  # As a captured graph does with its output.
            run.step(2, {"loss": loss}, data_wait=0.0)
        self.assertEqual(self._scalars("loss"), [(2, 2.0)])

    def test_throughput_excludes_first_step_and_pauses(self) -> None:
        with self._monitor() as run:
            for step in range(1, 9):
                self.clock.now += 60.0 if step == 1 else 2.0
                run.step(step, _loss(1.0), data_wait=50.0 if step == 1 else 0.5)
                with run.pause():
                    self.clock.now += 30.0
        self.assertEqual(self._scalars("images_per_second"), [(4, 16.0), (8, 16.0)])
        self.assertSequenceAlmostEqual(
            [value for _, value in self._scalars("eta_hours")], [6 * 2 / 3600, 2 * 2 / 3600], 6
        )
        self.assertSequenceAlmostEqual(
            [value for _, value in self._scalars("epoch")], [0.8, 1.6], 6
        )
        self.assertEqual(self._scalars("data_wait_fraction"), [(4, 0.25), (8, 0.25)])

    def test_window_of_only_the_first_step_has_no_throughput(self) -> None:
        with self._monitor(log_every=1) as run:
            for step in (1, 2):
                self.clock.now += 4.0
                run.step(step, _loss(1.0), data_wait=1.0)
        self.assertEqual(self._scalars("images_per_second"), [(2, 8.0)])

    @parameterized.parameters(math.nan, math.inf)
    def test_rejects_a_loss_that_is_not_finite_anywhere_in_the_window(self, value: float) -> None:
        for is_main in (True, False):
            with self._monitor(is_main=is_main) as run:
                for step in range(1, 8):
                    run.step(step, _loss(value if step == 6 else 1.0), data_wait=0.0)
                with self.assertRaisesRegex(
                    UserError,
                    f"loss is {value} at step 6; lower the rate",
                ):
                    run.step(8, _loss(1.0), data_wait=0.0)

    def test_allowed_bad_steps_are_counted_recorded_and_left_out_of_the_means(self) -> None:
        stream = io.StringIO()
        with self._monitor(stream, bad_steps=2) as run:
            for step in range(1, 9):
                run.step(step, _loss(math.nan if step in (2, 4, 5, 8) else step), data_wait=0.0)
                if step == 5:  # As before a checkpoint is saved.
                    run.means(step)
        self.assertEqual(self._scalars("loss"), [(4, 2.0), (8, 6.5)])
        self.assertEqual(self._scalars("bad_steps"), [(4, 2.0), (8, 2.0)])
        self.assertEqual(self.recorded, [(step, "loss is nan") for step in (2, 4, 5, 8)])
        self.assertIn("warning: step 5 was skipped: loss is nan\n", stream.getvalue())

    def test_too_many_bad_steps_in_a_row_stop_the_run_across_windows(self) -> None:
        with self._monitor(bad_steps=2) as run:
            for step in range(1, 8):
                run.step(step, _loss(math.inf if step in (3, 4, 5) else 1.0), data_wait=0.0)
            with self.assertRaisesRegex(UserError, "loss is inf at step 5, bad step 3 in a row; l"):
                run.step(8, _loss(1.0), data_wait=0.0)

    def test_a_window_of_bad_steps_only_has_no_means(self) -> None:
        with self._monitor(bad_steps=9, log_every=2) as run:
            for step in range(1, 5):
                run.step(step, _loss(math.nan if step < 3 else 3.0), data_wait=0.0)
        self.assertEqual(self._scalars("loss"), [(4, 3.0)])

    def test_full_disk_under_tensorboard_is_a_warning_until_there_is_room_again(self) -> None:
        stream, full = io.StringIO(), OSError(28, "No space left on device")
        write = "tensorboard.summary.writer.record_writer.RecordWriter.write"
        with self._monitor(stream, log_every=1) as run:
            run.step(1, _loss(1.0), data_wait=0.0)
            with (
                mock.patch(write, side_effect=full),
                mock.patch.object(records, "disk_usage", return_value=mock.Mock(free=0)),
            ):
                for step in range(2, 6):
                    run.step(step, _loss(1.0), data_wait=0.0)
                    self._flush(run)
            run.step(6, _loss(7.0), data_wait=0.0)
        self.assertEqual(stream.getvalue().count("No space left on device"), 1)
        self.assertIn("warning: ", stream.getvalue())
        self.assertEqual(self._scalars("loss")[-1], (6, 7.0))

    def test_log_file_has_one_line_per_window(self) -> None:
        stream = io.StringIO()
        with self._monitor(stream, total_steps=8) as run:
            for step in range(1, 9):
                self.clock.now += 2.0
                run.step(step, _loss(step), data_wait=0.5)
                run.message(f"after {step}") if step == 5 else None
        self.assertEqual(
            stream.getvalue().splitlines(),
            [
                "step 4/8  loss 2.5  images/s 16.0  ETA 0:00:08  data wait 25.0%",
                "after 5",
                "step 8/8  loss 6.5  images/s 16.0  ETA 0:00:00  data wait 25.0%",
            ],
        )

    def test_live_line_has_a_bar_and_the_last_report(self) -> None:
        stream = Terminal()
        with self._monitor(stream, total_steps=8) as run:
            for step in range(1, 6):
                self.clock.now += 2.0
                run.step(step, _loss(step), data_wait=0.5)
            shown = screen(stream.getvalue())
        self.assertStartsWith(shown[0], "step 4/8  loss 2.5")
        self.assertStartsWith(shown[1], "[======    ]  step 5/8  loss 2.5  images/s 16.0  ETA")

    def test_terminal_keeps_reports_and_messages(self) -> None:
        stream = Terminal()
        with self._monitor(stream, total_steps=8) as run:
            for step in range(1, 9):
                self.clock.now += 2.0
                run.step(step, _loss(step), data_wait=0.5)
                if step == 4:
                    run.message("a message")
        shown = screen(stream.getvalue())
        self.assertLen(shown, 4)
        self.assertStartsWith(shown[0], "step 4/8  loss 2.5  images/s 16.0  ETA 0:00:08")
        self.assertEqual(shown[1], "a message")
        self.assertStartsWith(shown[2], "step 8/8  loss 6.5  images/s 16.0  ETA 0:00:00")
        self.assertEqual(shown[3], "")

    @parameterized.parameters(
        (60, "step 123456/1000800  loss 23.46  images/s 1234.8"),
        (80, "step 123456/1000800  loss 23.46  images/s 1234.8  ETA 5 days, 3:21:09"),
        (
            100,
            "step 123456/1000800  loss 23.46  images/s 1234.8  ETA 5 days, 3:21:09  "
            "data wait 12.0%",
        ),
        (
            120,
            "step 123456/1000800  loss 23.46  images/s 1234.8  ETA 5 days, 3:21:09  "
            "data wait 12.0%  clustering_loss 22.07",
        ),
    )
    def test_live_line_shows_whole_parts_the_loss_first(self, columns: int, line: str) -> None:
        stream = Terminal()
        with (
            mock.patch.dict("os.environ", COLUMNS=str(columns)),
            self._monitor(
                stream, start_step=123453, total_steps=1000800, log_every=3, images_per_step=625
            ) as run,
        ):
            # (5 days, 3:21:09) / 877,344 steps.
            self._take_steps(run, 3, seconds=444069 / 877344)
        self.assertEqual(screen(stream.getvalue()), [line, ""])

    def test_log_line_has_every_part_in_the_same_order(self) -> None:
        stream = io.StringIO()
        with self._monitor(
            stream, start_step=123453, total_steps=1000800, log_every=3, images_per_step=625
        ) as run:
            self._take_steps(run, 3, seconds=444069 / 877344)
        self.assertEqual(
            stream.getvalue(),
            "step 123456/1000800  loss 23.46  images/s 1234.8  ETA 5 days, 3:21:09  "
            "data wait 12.0%  clustering_loss 22.07  location_loss 1.391  "
            "location_accuracy 26.1% (chance 25.0%)  gradient_norm 4.518  learning_rate 0.03\n",
        )

    def _take_steps(self, run: monitor.Monitor, steps: int, seconds: float) -> None:
        metrics = {
            "loss": 23.4567,
            "clustering_loss": 22.0654,
            "location_loss": 1.3913,
            "location_accuracy": 0.26132,
            "gradient_norm": 4.5178,
            "learning_rate": 0.03,
        }
        for step in range(123454, 123454 + steps):
            self.clock.now += seconds
            values = {name: torch.tensor(value) for name, value in metrics.items()}
            run.step(step, values, data_wait=0.12 * seconds)

    @mock.patch.dict("os.environ", COLUMNS="30")
    def test_live_line_never_wraps(self) -> None:
        stream = Terminal()
        with self._monitor(stream) as run:
            for step in range(1, 9):
                run.step(step, _loss(step), data_wait=0.0)
        for line in screen(stream.getvalue()):
            self.assertLessEqual(len(line), 29)

    def test_measures_and_references_are_reported_and_alarms_printed(self) -> None:
        stream = io.StringIO()
        found = mock.Mock(check=mock.Mock(return_value=["alarm: too hot"]))
        with self._monitor(stream, log_every=1, alarms=found) as run:
            measures = {"rank": torch.tensor(2.5), "confusion": torch.eye(2).long()}
            run.step(1, _loss(1.0), 0.0, measures)
            run.step(2, _loss(1.0), 0.0)
        values = {"loss": 1.0, "location_accuracy_chance": 0.25, "rank": 2.5}
        found.check.assert_called_once_with(1, values)
        self.assertEqual(self._scalars("rank"), [(1, 2.5)])
        self.assertEqual(self._scalars("location_accuracy_chance"), [(1, 0.25), (2, 0.25)])
        self.assertEqual(self._events().Images("confusion")[0].step, 1)
        self.assertIn("alarm: too hot\n", stream.getvalue())
        written = metrics_file.read(self.workdir / metrics_file.METRICS)
        self.assertEqual(written[0]["alarms"], ["alarm: too hot"])
        self.assertNotIn("alarms", written[1])
        with self._monitor(start_step=1, alarms=found):
            found.replay.assert_called_once_with(written[:1])

    def test_other_ranks_write_nothing(self) -> None:
        stream = Terminal()
        with self._monitor(stream, is_main=False) as run:
            for step in range(1, 11):
                run.step(step, _loss(1.0), data_wait=0.0)
            run.message("hello")
            run.numbers(10, {"knn": 0.5})
            run.text("config", 0, "text")
            run.image("montage", 10, torch.zeros(3, 4, 4, dtype=torch.uint8))
        self.assertEqual(stream.getvalue(), "")
        self.assertEmpty(list(self.workdir.iterdir()))

    def test_scalar_text_and_image(self) -> None:
        with self._monitor() as run:
            run.numbers(3, {"knn": 0.5})
            run.text("config", 0, "some text")
            run.image("montage", 3, torch.zeros(3, 4, 6, dtype=torch.uint8))
        self.assertEqual(self._scalars("knn"), [(3, 0.5)])
        events = self._events()
        self.assertIn(
            b"some text", events.Tensors("config/text_summary")[0].tensor_proto.string_val
        )
        picture = events.Images("montage")[0]
        self.assertEqual((picture.step, picture.height, picture.width), (3, 4, 6))

    def test_the_file_of_a_picture_shows_the_last_one(self) -> None:
        with self._monitor() as run:
            for step in (3, 6):
                run.image("predictions/0", step, torch.full((3, 4, 6), step, dtype=torch.uint8))
        with Image.open(self.workdir / "pictures" / "predictions" / "0.png") as picture:
            self.assertEqual((picture.size, picture.getpixel((5, 3))), ((6, 4), (6, 6, 6)))

    def test_repeated_evaluation_replaces_its_numbers_but_not_those_of_its_step(self) -> None:
        with self._monitor(log_every=2) as run:
            for step in range(1, 5):
                run.step(step, _loss(1.0), data_wait=0.0)
            run.numbers(4, {"knn": 0.5})
        for knn in (0.25, 0.75):
            with self._monitor(log_every=2, start_step=4, repeats_evaluation=True) as run:
                run.numbers(4, {"knn": knn, "other": 0.25})
        self.assertEqual(self._scalars("loss"), [(2, 1.0), (4, 1.0)])
        self.assertEqual(self._scalars("knn"), [(4, 0.75)])
        self.assertEqual(self._scalars("other"), [(4, 0.25)])
        self.assertEqual(metrics_file.read(self.workdir / "metrics.jsonl")[-1]["knn"], 0.75)

    def test_settings_make_one_entry_in_the_table_of_runs(self) -> None:
        settings = {"rate": "0.5", "nesterov": "True", "name": "'a'", "no": "None", "x": "<x>"}
        for _ in range(2):  # A finished run that is started again.
            with self._monitor() as run:
                run.numbers(10, {"map": 0.5, "map_chance": 0.1})
                run.settings(settings | {"sizes": "(1, 2)"}, ["map", "map_chance", "iou/cat"])
        self.assertLen(list((self.workdir / "tensorboard").iterdir()), 2)
        events = self._events()
        self.assertEqual([value for _, value in self._scalars("map")], [0.5])
        tags = metadata.EXPERIMENT_TAG, metadata.SESSION_START_INFO_TAG
        contents = [events.SummaryMetadata(tag).plugin_data.content for tag in tags]
        started = metadata.parse_session_start_info_plugin_data(contents[1])
        written = {name: MessageToDict(value) for name, value in started.hparams.items()}
        expected = {"rate": 0.5, "nesterov": 1.0, "name": "a", "sizes": "(1, 2)"}
        self.assertEqual(written, expected)
        experiment = metadata.parse_experiment_plugin_data(contents[0])
        columns = [info.name.tag for info in experiment.metric_infos]
        self.assertContainsSubset(["accuracy/map", "accuracy/top1", "loss/loss"], columns)
        self.assertNoCommonElements(["accuracy/map_chance", "accuracy/iou/cat"], columns)
        self.assertNotIn("accuracy/top1", events.Tags()["scalars"])

    def test_resumed_run_replaces_reports_of_repeated_steps(self) -> None:
        with self._monitor(log_every=2) as run:
            for step in range(1, 9):
                run.step(step, _loss(1.0), data_wait=0.0)
        with self._monitor(log_every=2, start_step=4) as run:
            for step in range(5, 11):
                run.step(step, _loss(2.0), data_wait=0.0)
        expected = [(2, 1.0), (4, 1.0), (6, 2.0), (8, 2.0), (10, 2.0)]
        self.assertEqual(self._scalars("loss"), expected)

    def test_run_resumed_within_a_window_averages_its_own_steps(self) -> None:
        with self._monitor(start_step=6) as run:
            for step in (7, 8):
                run.step(step, _loss(step), data_wait=0.0)
        self.assertEqual(self._scalars("loss"), [(8, 7.5)])

    def test_rejects_steps_outside_the_run_and_other_metrics(self) -> None:
        with self._monitor(start_step=3) as run:
            for step in (3, 11):
                with self.assertRaisesRegex(ValueError, f"step {step} is not in"):
                    run.step(step, _loss(1.0), data_wait=0.0)
            run.step(4, _loss(1.0), data_wait=0.0)
        with self._monitor() as run:
            run.step(1, _loss(1.0), data_wait=0.0)
            with self.assertRaisesRegex(ValueError, "earlier steps had"):
                run.step(2, {"other": torch.tensor(1.0)}, data_wait=0.0)


if __name__ == "__main__":
    absltest.main()
