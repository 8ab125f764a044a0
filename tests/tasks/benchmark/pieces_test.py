"""Tests of jigclu.tasks.benchmark.pieces."""

from unittest import mock

import torch
from absl.testing import absltest

from jigclu.tasks.benchmark import pieces
from jigclu.tasks.benchmark.stepping import Variant
from jigclu.tasks.pretrain import PretrainTask
from tests.samples import tiny_model
from tests.small_tasks import PRETRAINING

CPU = torch.device("cpu")
TASK = PretrainTask(**PRETRAINING)
VARIANTS = [Variant(True, "float32", True), Variant(True, "bfloat16", False)]


class PiecesTest(absltest.TestCase):
    def test_every_piece_runs_and_is_compared(self) -> None:
        compiled = []

        def compile(function: object, **_: object) -> object:
            compiled.append(function)
            return function

        with (
            mock.patch.object(torch, "compile", compile),
            mock.patch.object(PretrainTask, "model", lambda _: tiny_model()),
        ):
            table = pieces.measure_pieces(TASK, VARIANTS, 1, CPU)
        self.assertEqual(
            [row[0] for row in table.rows],
            [
                *("shuffle patches", "augment", "stitch montages"),
                *("network, float32, channels last", "network, bfloat16, contiguous"),
                *("clustering loss", "update"),
            ],
        )
        self.assertLen(compiled, 7)
        for _, eager, compiled_time, ratio, rate, *_ in table.rows:
            self.assertAlmostEqual(ratio, eager / compiled_time)
            self.assertAlmostEqual(rate, 1e3 * TASK.batch_size / compiled_time)

    def test_what_learns_is_measured_with_its_gradient(self) -> None:
        with mock.patch.object(PretrainTask, "model", lambda _: tiny_model()):
            found = pieces._pieces(TASK, VARIANTS, CPU)
        embeddings = found["clustering loss"].arguments[0]
        pieces._action(found["clustering loss"])()
        self.assertGreater(embeddings.grad.abs().sum(), 0)
        self.assertTrue(found["network, bfloat16, contiguous"].with_gradient)
        self.assertFalse(found["augment"].with_gradient)


if __name__ == "__main__":
    absltest.main()
