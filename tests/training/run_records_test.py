"""Tests of jigclu.training.run_records."""

from absl.testing import absltest, parameterized

from jigclu.system.errors import UserError
from jigclu.training import run_records
from tests.run_case import CONFIG, LINES, START, STARTED, RunTestCase


class RunRecordsTest(RunTestCase, parameterized.TestCase):
    def test_bindings_and_task(self) -> None:
        run = run_records.read(self.write_run("a"))
        self.assertEqual(run.task, "pretrain")
        self.assertEqual(
            run.bindings,
            {
                "launch.task": "@pretrain()",
                "pretrain.batch_size": "64",
                "pretrain.evaluators": "(@knn_evaluator(), @probe_evaluator())",
            },
        )

    def test_numbers_and_scores(self) -> None:
        run = run_records.read(self.write_run("a"))
        names = ["knn_accuracy", "loss", "location_accuracy", "embedding_rank", "images_per_second"]
        self.assertEqual(run.names, names)
        self.assertEqual(run.scores, ["knn_accuracy"])
        self.assertEqual((run.first("loss"), run.last("loss")), (25.0, 21.0))
        self.assertEqual((run.untrained("knn_accuracy"), run.last("knn_accuracy")), (0.25, 0.625))
        self.assertEqual(run.levels("location_accuracy"), {"chance": 0.25})
        self.assertEqual(run.points("knn_accuracy", "images"), [(0, 0.25), (1280, 0.625)])
        self.assertEqual((run.images, run.processes), (1280, 2))

    def test_scores_of_own_evaluators_and_of_stages(self) -> None:
        lines = [{"step": 0, "linear/top1": 0.5, "knn/knn_accuracy": 0.4, "own_chance": 0.1}]
        run = run_records.read(self.write_run("a", lines=[lines[0] | {"own": 0.2}]))
        self.assertEqual(run.scores, ["knn/knn_accuracy", "linear/top1", "own"])
        # What was evaluated without training is no baseline of it.
        self.assertIsNone(run.untrained("own"))

    def test_given_weights_are_not_untrained(self) -> None:
        config = f"{CONFIG}pretrain.init_from = 'runs/a'\n"
        run = run_records.read(self.write_run("a", config))
        self.assertIsNone(run.untrained("knn_accuracy"))

    def test_alarms(self) -> None:
        lines = [*LINES, {"step": 30, "alarms": ["alarm: collapse", "alarm: the loss rises"]}]
        run = run_records.read(self.write_run("a", lines=lines))
        self.assertEqual(run.alarms, [(30, "collapse"), (30, "the loss rises")])

    def test_time_between_starts_does_not_count(self) -> None:
        # The first start reports at once and after 36 minutes; the next one, after 60 minutes,
        # after 12 more.
        starts = [START, START | {"started": "2027-01-15T09:00:00Z"}]
        run = run_records.read(self.write_run("a", starts=starts))
        self.assertAlmostEqual(run.hours(), 0.6 + 0.2)
        self.assertAlmostEqual(run.hours(STARTED + 7200), 0.6 + 1.0)
        hours, _ = zip(*run.over_hours("knn_accuracy"), strict=True)
        self.assertSequenceAlmostEqual(hours, [0.0, 0.8])
        one = run_records.read(self.write_run("b"))
        self.assertAlmostEqual(one.hours(), 1.2)

    @parameterized.parameters(
        ("environment.json", "[{"), ("environment.json", '[1, {"started": "today"}]')
    )
    def test_broken_environments_have_no_starts(self, name: str, text: str) -> None:
        workdir = self.write_run("a")
        (workdir / name).write_text(text)
        run = run_records.read(workdir)
        self.assertEqual((run.starts, run.hours(), run.processes), ([], 0.0, 1))

    def test_other_values_than_numbers_are_left_out(self) -> None:
        workdir = self.write_run("a", lines=())
        (workdir / "metrics.jsonl").write_text(
            '{"step": 1, "time": 1.5, "loss": "x", "alarms": 3}\n{"step": 2}\n[]\n'
        )
        self.assertEqual(run_records.read(workdir).lines, [{"step": 1, "time": 1.5}])

    def test_folder_without_records_is_rejected(self) -> None:
        with self.assertRaisesRegex(UserError, "is not the workdir of a run: it has neither"):
            run_records.read(self.folder / "none")
        (self.folder / "config.gin").write_text("")
        self.assertEqual(run_records.read(self.folder).lines, [])

    @parameterized.parameters(
        *("knn_accuracy", "top5", "mean_iou", "iou/road", "retrieval", "linear/top1"),
    )
    def test_shares(self, name: str) -> None:
        self.assertTrue(run_records.is_share(name))

    @parameterized.parameters("loss", "best_learning_rate", "embedding_rank", "gradient_norm/top")
    def test_other_numbers(self, name: str) -> None:
        self.assertFalse(run_records.is_share(name))


if __name__ == "__main__":
    absltest.main()
