"""Tests of jigclu.tasks.benchmark.tables: every cell, computed by hand.

Times have a median that is neither their least nor the middle of least and most.
"""

from absl.testing import absltest

from jigclu.tasks.benchmark import tables
from jigclu.tasks.benchmark.copies import Copies
from jigclu.tasks.benchmark.end_to_end import EndToEnd, RunTime
from jigclu.tasks.benchmark.exchange import Exchange, Received
from jigclu.tasks.benchmark.growth import LossCost
from jigclu.tasks.benchmark.micro_batches import MicroBatchCost
from jigclu.tasks.benchmark.pieces import PieceCost
from jigclu.tasks.benchmark.reading import ReadingTimes
from jigclu.tasks.benchmark.report import Table
from jigclu.tasks.benchmark.short_training import ShortTraining
from jigclu.tasks.benchmark.start import StartTimes
from jigclu.tasks.benchmark.steps import PUBLISHED, StepCost, StepCosts
from jigclu.tasks.benchmark.timing import Cost, Seconds
from jigclu.tasks.benchmark.workload import Arithmetic, Variant
from tests.tasks.benchmark.fakes import WORKLOAD

MB = 1_000_000
EAGER = Variant(False, Arithmetic("float32", True))
COMPILED = Variant(True, Arithmetic("bfloat16", False))


class TablesTest(absltest.TestCase):
    def assert_table(self, table: Table, columns: list[str], *rows: tuple[object, ...]) -> None:
        self.assertEqual(list(table.columns), columns)
        self.assertEqual(list(table.rows), list(rows))
        for panel in table.panels:
            self.assertContainsSubset(panel, columns[1:])

    def test_reading(self) -> None:
        times = ReadingTimes(
            images=40,
            seconds={
                "published, PIL": Seconds(median=20, least=10, most=80),
                "files": Seconds(median=5, least=4, most=8),
                "packed, raw": Seconds(median=2, least=1, most=16),
            },
        )
        table = tables.reading_table(WORKLOAD, times)
        self.assert_table(
            table,
            [
                *("pipeline", "images/s", "slowest to fastest"),
                *("relative to published", "relative to files"),
            ],
            ("published, PIL", 2, "0.5 to 4", 1, 0.25),
            ("files", 8, "5 to 10", 4, 1),
            ("packed, raw", 20, "2.5 to 40", 10, 2.5),
        )
        self.assertStartsWith(table.note, "40 images, each to 4 patches of 112 pixels")
        self.assertIn("256 pixels", table.note)

    def test_steps(self) -> None:
        costs = StepCosts(
            steps=[
                StepCost("published", PUBLISHED, Cost(Seconds(8, 4, 16), 900 * MB), 400),
                StepCost("JigClu", EAGER, Cost(Seconds(5, 2, 10), 800 * MB), 300),
                StepCost("supervised", EAGER, Cost(Seconds(4, 1, 8), None), 200),
                StepCost("JigClu", COMPILED, Cost(Seconds(2, 1, 5), 600 * MB), 300),
                StepCost("supervised", COMPILED, Cost(Seconds(1, 0.5, 2), 500 * MB), 200),
            ],
            matmul_rates={"bfloat16": 1000.0, "float32": 100.0},
            tf32=False,
        )
        columns = [
            *("step", "images/s", "slowest to fastest", "relative to the first"),
            *("time relative to supervised", "memory, MB", "% of the matrix product's rate"),
        ]
        table = tables.step_table(WORKLOAD, costs)
        self.assert_table(
            table,
            columns,
            ("published", 1, "0.5 to 2", 1, None, 900, 50),
            ("JigClu, eager, float32, channels last", 1.6, "0.8 to 4", 1.6, 1.25, 800, 60),
            ("supervised, eager, float32, channels last", 2, "1 to 8", 2, None, None, 50),
            ("JigClu, compiled, bfloat16, contiguous", 4, "1.6 to 8", 4, 2, 600, 15),
            ("supervised, compiled, bfloat16, contiguous", 8, "4 to 16", 8, None, 500, 20),
        )
        self.assertStartsWith(table.note, "resnet50, 8 images (montages) of 224 pixels.")
        self.assertIn("bfloat16 1e-09, float32 1e-10 TFLOP/s", table.note)
        # A step without its supervised twin is not compared.
        alone = tables.step_table(WORKLOAD, costs._replace(steps=costs.steps[1:2]))
        self.assertEqual(alone.rows[0][3:5], (1, None))

    def test_names_of_steps_say_where_float32_is_tf32(self) -> None:
        cost = Cost(Seconds(1, 1, 1), 0)
        names = [
            tables.step_name(StepCost(kind, variant, cost, 1), tf32=True)
            for kind, variant in (
                ("published", PUBLISHED),
                ("JigClu", EAGER),
                ("supervised", COMPILED),
            )
        ]
        self.assertEqual(
            names,
            [
                "published, float32 (TF32 convolutions)",
                "JigClu, eager, float32 (TF32 convolutions), channels last",
                "supervised, compiled, bfloat16, contiguous",
            ],
        )

    def test_names_in_the_table_follow_tf32(self) -> None:
        step = StepCost("JigClu", EAGER, Cost(Seconds(1, 1, 1), 0), 1)
        for tf32, name in ((True, "float32 (TF32 convolutions)"), (False, "float32")):
            costs = StepCosts([step], {"float32": 1.0}, tf32)
            row = tables.step_table(WORKLOAD, costs).rows[0]
            self.assertEqual(row[0], f"JigClu, eager, {name}, channels last")

    def test_pieces(self) -> None:
        pieces = [
            PieceCost(
                "augment",
                eager=Cost(Seconds(0.5, 0.25, 1), 30 * MB),
                compiled=Cost(Seconds(0.125, 0.0625, 2), 20 * MB),
            ),
            PieceCost(
                "update",
                eager=Cost(Seconds(2, 1, 8), None),
                compiled=Cost(Seconds(4, 3, 8), 10 * MB),
            ),
        ]
        self.assert_table(
            tables.pieces_table(WORKLOAD, pieces),
            [
                *("piece", "eager, ms", "compiled, ms", "eager / compiled"),
                *("images/s, compiled", "memory eager, MB", "memory compiled, MB"),
            ],
            ("augment", 500, 125, 4, 64, 30, 20),
            ("update", 2000, 4000, 0.5, 2, None, 10),
        )

    def test_end_to_end(self) -> None:
        run = EndToEnd(
            steps=5,
            warm_up=7,
            training=RunTime(seconds=20, waited=4),
            reading=RunTime(seconds=10, waited=9),
            step=3,
        )
        columns = ["what", "images/s", "host waits for data, %", "time beyond the steps, %"]
        table = tables.end_to_end_table(WORKLOAD, run)
        self.assert_table(
            table,
            columns,
            ("files to parameters", 2, 20, 25),
            ("steps only, on noise", 8 / 3, None, None),
            ("reading only", 4, None, None),
        )
        self.assertStartsWith(
            table.note,
            "resnet50, 8 images, bfloat16, compiled; worker processes: 3; one run of 5 steps "
            "after 7 that do not count.",
        )
        # The steps of a run are not faster than the same steps on noise.
        noisy = tables.end_to_end_table(WORKLOAD, run._replace(step=5))
        self.assertEqual(noisy.rows[0][3], 0)

    def test_copies(self) -> None:
        table = tables.copies_table(WORKLOAD, Copies(on_device=4, ahead=5, before=8, size=3 * MB))
        self.assert_table(
            table,
            ["batches", "images/s", "device waits for data, %"],
            ("no copies", 2, 0),
            ("copied during the step before", 1.6, 100 * (1 - 4 / 5)),
            ("copied before each step", 1, 50),
        )
        self.assertIn("3 MB per step from page-locked memory", table.note)
        faster = tables.copies_table(WORKLOAD, Copies(4, 2, 8, 0))
        self.assertEqual(faster.rows[1][1:], (4, 0))

    def test_losses(self) -> None:
        losses = [
            LossCost(16, Cost(Seconds(2, 1, 8), 3 * MB), Cost(Seconds(5, 4, 16), 7 * MB)),
            LossCost(64, Cost(Seconds(9, 6, 10), None), None),
            LossCost(256, None, None),
        ]
        table = tables.loss_table(WORKLOAD, losses, 31.5)
        self.assert_table(
            table,
            ["patches", "s", "MB", "s, published", "MB, published"],
            (16, 2, 3, 5, 7),
            (64, 9, None, None, None),
            (256, None, None, None, None),
        )
        self.assertIn("128 channels", table.note)
        self.assertIn("longer than 31.5 s", table.note)

    def test_exchange(self) -> None:
        exchanges = [
            Exchange(1, Received(0, 0, 0, 0), 0),
            Exchange(4, Received(1 * MB, 2 * MB, 4 * MB, 8 * MB), 160 * MB),
        ]
        table = tables.exchange_table(WORKLOAD, exchanges)
        self.assert_table(
            table,
            [
                *("ranks", "patches, MB", "embeddings, MB", "statistics, MB", "gradients, MB"),
                *("all, MB", "published: patches, MB", "published: all, MB"),
            ],
            (1, 0, 0, 0, 0, 0, 0, 0),
            (4, 1, 2, 4, 8, 15, 160, 174),
        )
        self.assertIn("8 images of all ranks together", table.note)

    def test_start(self) -> None:
        times = StartTimes(eager=5, empty_cache=80, warm_cache=20)
        self.assert_table(
            tables.start_table(times),
            ["start", "s", "relative to an empty cache"],
            ("eager", 5, 0.0625),
            ("compiled, empty cache", 80, 1),
            ("compiled, warm cache", 20, 0.25),
        )

    def test_micro_batches(self) -> None:
        costs = [
            MicroBatchCost("float32", None, None),
            MicroBatchCost("float32", 2, Cost(Seconds(4, 2, 16), 30 * MB)),
            MicroBatchCost("bfloat16", 4, Cost(Seconds(2, 1, 16), None)),
        ]
        table = tables.micro_batch_table(WORKLOAD, costs)
        self.assertEqual(table.title, "Micro-batches of a batch of 8")
        self.assert_table(
            table,
            ["step", "images/s", "memory, MB"],
            ("float32, whole batch", None, None),
            ("float32, micro-batches of 2", 2, 30),
            ("bfloat16, micro-batches of 4", 4, None),
        )
        self.assertStartsWith(table.note, "resnet50, montages of 224 pixels, compiled.")

    def test_training(self) -> None:
        training = ShortTraining(
            steps=15,
            seconds=60,
            waited=3,
            loss=7.5,
            accuracy_before=0.125,
            accuracy_after=0.5,
            chance=0.0625,
        )
        table = tables.training_table(WORKLOAD, training)
        self.assert_table(
            table,
            ["figure", "value"],
            ("steps", 15),
            ("epochs", 3),
            ("seconds", 60),
            ("images/s", 2),
            ("host waits for data, %", 5),
            ("loss of the last step", 7.5),
            ("kNN accuracy before, %", 12.5),
            ("kNN accuracy after, %", 50),
            ("kNN accuracy of chance, %", 6.25),
        )
        self.assertEqual(
            table.note,
            "resnet50, 8 images per step, montages of 224 pixels, bfloat16, compiled, "
            "worker processes: 3, learning rate 0.03.",
        )

    def test_compilation(self) -> None:
        table = tables.compilation_table(WORKLOAD, {"JigClu": 60.0, "supervised": 50.0})
        self.assertEqual(table.title, "Compilation, resnet50, montages of 224 pixels")
        self.assert_table(table, ["step", "s"], ("JigClu", 60), ("supervised", 50))

    def test_notes_say_whether_steps_were_eager(self) -> None:
        eager = WORKLOAD._replace(compiled=False)
        run = EndToEnd(1, 1, RunTime(1, 0), RunTime(1, 1), 1)
        self.assertIn("bfloat16, eager;", tables.end_to_end_table(eager, run).note)


if __name__ == "__main__":
    absltest.main()
