"""Tests of the comparison of runs."""

from absl.testing import absltest

from jigclu import config
from jigclu.system.document_markdown import to_markdown
from jigclu.system.errors import UserError
from jigclu.tasks import report
from jigclu.training import run_records
from tests.run_case import CONFIG, LINES, RunTestCase
from tests.small_tasks import run_task


class ReportTaskTest(RunTestCase):
    def compared(self, *names: str) -> str:
        runs = {name: run_records.read(self.folder / name) for name in names}
        return to_markdown(report.compare(runs))

    def test_compares_two_workdirs(self) -> None:
        self.write_run("a")
        self.write_run(
            "b", CONFIG.replace("64", "128"), lines=[*LINES[:2], {**LINES[2], "knn_accuracy": 0.5}]
        )
        text = self.compared("a", "b")
        amount = "20 | 1,280 | 1:12:00 | 2.4 | 0 |"
        self.assertIn(
            f"| a | pretrain | knn_accuracy | 25.0% | 62.5% | 62.5% | {amount}\n"
            f"| b | pretrain | knn_accuracy | 25.0% | 50.0% | 50.0% | {amount}",
            text,
        )
        self.assertIn("| knn_accuracy: b | 25.0% | 25.0% | 50.0% | 50.0% | chance 10.0% |", text)
        self.assertIn("| knn_accuracy | 62.5% | 50.0% |\n", text)
        self.assertIn(
            "| binding | a | b |\n| --- | --- | --- |\n| pretrain.batch_size | 64 | 128 |", text
        )
        self.assertEqual(text.count("pretrain."), 1)
        self.assertEqual(text.count("| knn_accuracy: b |"), 1)

    def test_compares_runs_of_different_tasks(self) -> None:
        self.write_run("a")
        top1 = [{"step": step, "loss": 1.0, "top1": step / 10} for step in (1, 3)]
        self.write_run("b", "launch.task = @linear()\n", lines=top1)
        self.write_run("c", "launch.task = @pack()\n", starts=(), lines=())
        text = self.compared("a", "b", "c")
        self.assertIn(
            "| b | linear | top1 |  | 30.0% | 30.0% | 3 | 192 | 0:36:00 | 1.2 | 0 |", text
        )
        self.assertIn("| c | pack |  |  |  |  |  | 0 | 0:00:00 | 0 | 0 |", text)
        self.assertIn("| first score of each run: b (top1) | 10.0% | 10.0% | 30.0% |", text)
        self.assertIn("| launch.task | @pretrain() | @linear() | @pack() |", text)
        self.assertNotIn("pretrain.batch_size", text)

    def test_lists_alarms(self) -> None:
        self.write_run("a", lines=[*LINES, {"step": 30, "alarms": ["alarm: collapse"]}])
        self.assertIn("| a | 30 | collapse |", self.compared("a"))

    def test_gin_file_compares_two_workdirs(self) -> None:
        names = [str(self.write_run(name)) for name in ("a", "b")]
        loaded = config.load(["gin/report.gin"], [f"report.workdirs={tuple(names)}"])
        workdir = self.folder / "report"
        loaded.check(workdir)
        loaded.run(workdir)
        page = (workdir / "report.html").read_text()
        self.assertEqual(page.count("<svg "), 2)
        self.assertIn("hours of work", page)
        self.assertIn("images seen</text>", page)
        self.assertIn("\n| b | pretrain |", (workdir / "report.md").read_text())

    def test_runs_of_folders_with_equal_names_have_their_paths(self) -> None:
        (self.folder / "other").mkdir()
        paths = [str(self.write_run(name)) for name in ("a", "other/a")]
        run_task(report.ReportTask(workdirs=tuple(paths)), self.folder / "report")
        text = (self.folder / "report" / "report.md").read_text()
        # The name of the temporary folder may end with an underscore, which Markdown escapes.
        text = text.replace("\\_", "_")
        for path in paths:
            self.assertIn(f"\n| {path} | pretrain |", text)

    def test_rejects_other_folders(self) -> None:
        (self.folder / "other").mkdir()
        task = report.ReportTask(workdirs=(str(self.folder / "other"),))
        with self.assertRaisesRegex(UserError, "workdirs: .*/other is not the workdir of a run"):
            run_task(task, self.folder / "report")
        for workdirs in ((), ("a", "a")):
            with self.assertRaisesRegex(UserError, "workdirs is .*; it must be one or more diff"):
                report.ReportTask(workdirs=workdirs)


if __name__ == "__main__":
    absltest.main()
