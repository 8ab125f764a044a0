"""Tests of the report of a run."""

from pathlib import Path
from unittest import mock

from absl.testing import absltest
from PIL import Image

from jigclu import config
from jigclu.system import signals
from jigclu.system.document_markdown import to_markdown
from jigclu.system.documents import Document
from jigclu.system.errors import UserError
from jigclu.tasks.reproduce import ReproduceTask
from jigclu.training import report, run_records
from jigclu.training.loop import RunResult
from jigclu.training.published import PUBLISHED
from jigclu.training.report import About, Change
from jigclu.training.report_health import metric_charts
from tests.run_case import LINES, START, STARTED, RunTestCase

ABOUT = About(
    plan="data: 2,000 images, 10 classes\nmachine:\n  precision: float32 (no GPU)",
    config="pretrain.seed = 0\npretrain.batch_size = 64",
    file="gin/demo.gin",
    changes=[Change("pretrain.seed", "0", "7"), Change("a.b", None, "'x'")],
)
EVIL = "</pre><script>alert(1)</script>"


class ReportTest(RunTestCase):
    def document(self, workdir: Path, about: About = ABOUT) -> Document:
        return report.build(run_records.read(workdir), about, "Finished.", STARTED + 2 * 3600)

    def markdown(self, workdir: Path, about: About = ABOUT) -> str:
        return to_markdown(self.document(workdir, about))

    def test_scores_beside_untrained_and_chance(self) -> None:
        text = self.markdown(self.write_run("a"))
        self.assertIn(
            "# a: pretrain\n\nFinished. knn_accuracy 62.5%, untrained 25.0%, chance 10.0%.\n", text
        )
        self.assertIn("| score | this run | untrained | chance |\n", text)
        self.assertIn("| knn_accuracy | 62.5% | 25.0% | 10.0% |\n", text)

    def test_a_run_that_stopped_before_its_first_evaluation_has_no_score_yet(self) -> None:
        text = self.markdown(self.write_run("a", lines=LINES[:2]))
        self.assertIn("\n\nFinished. knn_accuracy untrained 25.0%, chance 10.0%.\n", text)
        self.assertIn("| score | untrained | chance |\n", text)

    def test_a_run_that_failed_before_its_first_report_has_no_score_yet(self) -> None:
        config = "launch.task = @pretrain()\nschedule.epochs = 5\n"
        text = self.markdown(self.write_run("a", config, lines=LINES[:1]))
        self.assertIn("\n\nFinished. knn_accuracy untrained 25.0%, chance 10.0%.\n", text)

    def test_curves_and_health_in_words(self) -> None:
        text = self.markdown(self.write_run("a"))
        self.assertIn("| location_accuracy | 26.0% | 26.0% | 40.0% | 40.0% | chance 25.0% |", text)
        self.assertIn("| loss | 25 | 21 | 25 | 21 |  |", text)
        self.assertIn("| 25.0% | 100.0% | 20% of the way from chance to the best possible |", text)
        self.assertIn("dimensions that the embeddings use", text)
        self.assertIn("No alarm was raised.", text)

    def test_parts_of_a_number_and_accuracies_without_chance_share_a_chart(self) -> None:
        values = {"loss": 1.0, "mean_iou": 0.5, "pixel_accuracy": 0.75, "iou/road": 0.25}
        values |= {"gradient_norm/encoder": 2.0, "gradient_norm/head": 3.0, "best_learning_rate": 1}
        lines = [{"step": step} | values for step in (1, 2)]
        run = run_records.read(self.write_run("a", lines=lines))
        found = {chart.title: chart for chart in metric_charts(run, ("loss", "accuracy", "optim"))}
        self.assertEqual(list(found), ["loss", "accuracy", "gradient_norm"])
        self.assertEqual(list(found["accuracy"].series), ["mean_iou", "pixel_accuracy"])
        self.assertEqual(list(found["gradient_norm"].series), ["encoder", "head"])
        self.assertEqual((found["accuracy"].is_share, found["loss"].is_share), (True, False))

    def test_floor_counts_as_the_best_possible(self) -> None:
        levels = {"clustering_loss_chance": 24.0, "clustering_loss_floor": 10.0}
        lines = [{"step": 1, "loss": 1.0, "clustering_loss": 17.0} | levels]
        text = self.markdown(self.write_run("a", lines=lines))
        self.assertIn("| clustering_loss | 17 | 17 | 24 | 10 | 50% of the way from", text)

    def test_alarms(self) -> None:
        lines = [*LINES, {"step": 30, "loss": 9.0, "alarms": ["alarm: the loss rises; wait"]}]
        text = self.markdown(self.write_run("a", lines=lines))
        self.assertIn("- Alarm at step 30: the loss rises; wait.\n", text)
        self.assertNotIn("No alarm", text)
        self.assertIn("Alarms: 1; see Health.", text)

    def test_what_ran_and_where(self) -> None:
        text = self.markdown(self.write_run("a"))
        for row in (
            "| data | 2,000 images, 10 classes |\n| precision | float32 (no GPU) |",
            "| hardware | NVIDIA H100, x86_64, 16 cores |",
            "| git commit | abc123 |",
            "| versions | python 3.11.7, torch 2.15.0 |",
            '```\npython -m jigclu.launch "--workdir=a b"\n```',
            "```\npretrain.seed = 0\npretrain.batch_size = 64\n```",
        ):
            self.assertIn(row, text)

    def test_time_and_images(self) -> None:
        text = self.markdown(self.write_run("a"))
        for row in (
            "| time | 2:00:00 |\n| device-hours | 4 (devices: 2) |",
            "| images seen | 1,280, in 1 epochs |",
            "| images per second | 120.0 (median) |",
        ):
            self.assertIn(row, text)
        self.assertNotIn("starts", text)
        again = self.write_run("b", starts=[START, START])
        self.assertIn("| starts | 2; the time between them", self.markdown(again))

    def test_differences_from_the_shipped_file(self) -> None:
        workdir = self.write_run("a")
        text = self.markdown(workdir)
        self.assertIn("| binding | gin/demo.gin | this run |\n", text)
        self.assertIn("| a.b | not bound | 'x' |\n| pretrain.seed | 0 | 7 |\n", text)
        same = self.markdown(workdir, ABOUT._replace(changes=()))
        self.assertIn("None: the run follows gin/demo.gin exactly.", same)
        own = self.markdown(workdir, ABOUT._replace(file=None))
        self.assertIn("The run follows no shipped gin file.", own)

    def test_published_score(self) -> None:
        lines = [{"step": 10, "loss": 1.0, "top1": 0.5, "top5": 0.75}]
        bindings = "launch.task = @linear()\nlinear.init_from = 'runs/a'\n"
        workdir = self.write_run("a", bindings, lines=lines)
        text = self.markdown(workdir, ABOUT._replace(file="gin/linear_r50.gin"))
        self.assertIn("| top1 | 50.0% | 66.4% |\n| top5 | 75.0% |  |", text)
        self.assertIn("bindings of gin/linear_r50.gin, of which this run changes 2.", text)
        self.assertIn("run the same command with linear.init_from=None", text)

    def test_published_scores_of_stages(self) -> None:
        lines = [{"step": 0, "linear/top1": 0.5, "linear/top1_published": 0.75}]
        workdir = self.write_run("a", "launch.task = @reproduce()\n", lines=lines)
        self.assertIn("| linear/top1 | 50.0% | 75.0% |", self.markdown(workdir))

    def test_published_scores_are_those_of_the_reproduction(self) -> None:
        task = config.load(["gin/reproduce_r50.gin"], []).task
        assert isinstance(task, ReproduceTask)
        files = {stage: file for stage, file, _ in task.stages}
        for stage, score, value in task.published:
            self.assertEqual(PUBLISHED[files[stage]][score], value)

    def test_pictures_and_files(self) -> None:
        workdir = self.write_run("a")
        (workdir / "pictures").mkdir()
        Image.new("RGB", (4, 4)).save(workdir / "pictures" / "inputs.png")
        (workdir / "weights.pth").write_bytes(b"0" * 2_500_000)
        text = self.markdown(workdir)
        self.assertIn("as the network sees them.](<pictures/inputs.png>)", text)
        self.assertIn("| pictures/ | 1 | 0.1 kB |\n| weights.pth | 1 | 2.5 MB |\n", text)

    def test_texts_of_files_and_users_are_escaped(self) -> None:
        lines = [*LINES, {"step": 30, "loss": 9.0, EVIL: 1.0, "alarms": [EVIL]}]
        workdir = self.write_run(
            "a & <b>",
            starts=[START | {"command": [EVIL]}],
            lines=[*lines, {**lines[-1], "step": 40}],
        )
        report.write_report(
            workdir, About(f"data: {EVIL}", EVIL, "gin/demo.gin", [Change(EVIL, EVIL, EVIL)]), EVIL
        )
        page = (workdir / "report.html").read_text()
        self.assertIn("<h1>a &amp; &lt;b&gt;: pretrain</h1>", page)
        self.assertGreater(page.count("&lt;script&gt;alert(1)"), 6)
        self.assertNotIn("<script", page)

    def test_run_without_numbers(self) -> None:
        workdir = self.write_run("a", "launch.task = @pack()\n", lines=())
        text = self.markdown(workdir)
        self.assertStartsWith(text, "# a: pack\n\nFinished.\n\n## What ran\n")
        self.assertIn("| time | 2:00:00 |", text)


class OutcomeTest(RunTestCase):
    def outcome(self, run: mock.Mock) -> str:
        """Runs a task with a report; returns the sentence about its outcome."""
        workdir = self.folder / "a"
        if not workdir.exists():
            self.write_run("a", lines=())
        try:
            report.run_and_report(run, workdir, ABOUT)
        finally:
            self.summary = (workdir / "report.md").read_text().splitlines()[2]
        return self.summary

    def test_finished_and_stopped(self) -> None:
        run = mock.Mock(return_value=RunResult({}, None))
        self.assertEqual(self.outcome(run), "Finished.")

    def test_stopped(self) -> None:
        run = mock.Mock(return_value=RunResult({}, None, is_stopped=True))
        self.assertEqual(self.outcome(run), "Stopped by a signal; the same command continues.")

    def test_stopped_without_a_result(self) -> None:
        with self.assertRaises(signals.Stopped):
            self.outcome(mock.Mock(side_effect=signals.Stopped))
        self.assertEqual(self.summary, "Stopped by a signal; the same command continues.")

    def test_failed(self) -> None:
        for error in (UserError("loss is nan at step 3"), ZeroDivisionError("loss is\nnan")):
            with self.assertRaises(type(error)):
                self.outcome(mock.Mock(side_effect=error))
            self.assertStartsWith(self.summary, "Failed: loss is nan")

    def test_report_that_cannot_be_written_is_only_a_warning(self) -> None:
        workdir = self.write_run("a")
        (workdir / "report.html").mkdir()
        run = mock.Mock(return_value=RunResult({"top1": 0.5}, None))
        with self.assertLogs(level="WARNING") as logs:
            result = report.run_and_report(run, workdir, ABOUT)
        self.assertEqual(result.scores, {"top1": 0.5})
        self.assertIn("the report cannot be written: ", logs.output[0])


if __name__ == "__main__":
    absltest.main()
