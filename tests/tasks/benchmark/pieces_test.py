"""Tests of jigclu.tasks.benchmark.pieces."""

from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from absl.testing import absltest
from torch import Tensor

from jigclu.ops.jigsaw import stitch_montages
from jigclu.tasks.benchmark import pieces, published
from jigclu.tasks.benchmark.instruments import device_instruments
from jigclu.tasks.benchmark.pieces import Piece, PieceCost
from jigclu.tasks.benchmark.timing import Cost, Seconds
from jigclu.tasks.benchmark.workload import Arithmetic
from jigclu.tasks.pretrain import PretrainTask
from tests.samples import JIGSAW, tiny_model
from tests.small_tasks import PRETRAINING
from tests.tasks.benchmark.fakes import FakeMachine

CPU = torch.device("cpu")
ARITHMETICS = [Arithmetic("float32", True), Arithmetic("bfloat16", False)]


class PiecesTest(absltest.TestCase):
    def real_pieces(self) -> dict[str, Piece]:
        with mock.patch.object(PretrainTask, "network", lambda _: tiny_model()):
            return pieces.step_pieces(PRETRAINING, ARITHMETICS, CPU)

    def test_pieces_are_measured_eager_and_compiled(self) -> None:
        machine = FakeMachine()
        faked = {
            "a": Piece(machine.action(90, 3, 5, memory=700), (), False),
            "b": Piece(machine.action(80, 20, 30, memory=600), (), False),
        }
        # By the function that is compiled: what compiled calls cost.
        compiled = {
            faked["a"].function: machine.action(800, 1, 2, memory=500),
            faked["b"].function: machine.action(900, 7, 8, memory=400),
        }

        def compile_function(function: Callable[..., Any], **_: object) -> Callable[..., Any]:
            return compiled[function]

        with (
            mock.patch.object(pieces, "step_pieces", return_value=faked),
            mock.patch.object(torch, "compile", compile_function),
        ):
            costs = pieces.measure_pieces(PRETRAINING, ARITHMETICS, 2, machine.instruments)
        self.assertEqual(
            costs,
            [
                PieceCost(
                    "a",
                    eager=Cost(Seconds(4, 3, 5), 700),
                    compiled=Cost(Seconds(1.5, 1, 2), 500),
                ),
                PieceCost(
                    "b",
                    eager=Cost(Seconds(25, 20, 30), 600),
                    compiled=Cost(Seconds(7.5, 7, 8), 400),
                ),
            ],
        )

    def test_only_what_learns_is_followed_by_its_gradient(self) -> None:
        machine = FakeMachine()
        value = torch.tensor(1.0, requires_grad=True)

        def square() -> Tensor:
            machine.compute(1)
            value.register_hook(lambda _: machine.compute(2))
            return value.square()

        seconds = []
        for with_gradient in (False, True):
            piece = {"square": Piece(square, (), with_gradient)}
            with (
                mock.patch.object(pieces, "step_pieces", return_value=piece),
                mock.patch.object(torch, "compile", lambda function, **_: function),
            ):
                (cost,) = pieces.measure_pieces(PRETRAINING, ARITHMETICS, 1, machine.instruments)
            seconds.append(cost.eager.seconds.median)
        self.assertEqual(seconds[0], 1)
        self.assertGreaterEqual(seconds[1], 3)

    def test_real_pieces_are_those_of_a_step(self) -> None:
        found = self.real_pieces()
        results = {name: piece.function(*piece.arguments) for name, piece in found.items()}
        slots, drawn = found["augment"].arguments
        torch.testing.assert_close(results["augment"], JIGSAW.augmentation(slots, drawn))
        torch.testing.assert_close(
            results["stitch montages"], stitch_montages(slots.float(), JIGSAW.grid)
        )
        patches, permutation = found["shuffle patches"].arguments
        by_slot = patches.transpose(0, 1).flatten(0, 1)[permutation]
        self.assertTrue(torch.equal(results["shuffle patches"], by_slot))
        embeddings, _, batch_size, *temperatures = found["clustering loss"].arguments
        image = torch.arange(batch_size).repeat_interleave(4)
        expected = published.clustering_loss(embeddings.flatten(0, 1), image, *temperatures)
        torch.testing.assert_close(results["clustering loss"], expected)
        _, parameters, *_ = found["update"].arguments
        # Of a gradient of 0, the momentum is the weight decay.
        _, moments, _ = results["update"]
        for momentum, parameter in zip(moments["momentum"], parameters, strict=True):
            torch.testing.assert_close(momentum, 1e-4 * parameter)
        self.assertEqual(
            [name for name, piece in found.items() if piece.with_gradient],
            ["network, float32, channels last", "network, bfloat16, contiguous", "clustering loss"],
        )

    def test_networks_have_their_precision_and_memory_format(self) -> None:
        found = self.real_pieces()
        seen: list[tuple[torch.dtype, bool]] = []

        def record(module: torch.nn.Module, _: Any, output: Tensor) -> None:
            if isinstance(module, torch.nn.Conv2d):
                weight = module.weight
                is_last = weight.is_contiguous(memory_format=torch.channels_last)
                seen.append((output.dtype, is_last))

        hook = torch.nn.modules.module.register_module_forward_hook(record)
        self.addCleanup(hook.remove)
        for arithmetic in ARITHMETICS:
            piece = found[f"network, {arithmetic}"]
            piece.function(*piece.arguments)
        self.assertEqual(seen, [(torch.float32, True), (torch.bfloat16, False)])

    def test_real_pieces_run(self) -> None:
        with (
            mock.patch.object(torch, "compile", lambda function, **_: function),
            mock.patch.object(PretrainTask, "network", lambda _: tiny_model()),
        ):
            costs = pieces.measure_pieces(PRETRAINING, ARITHMETICS, 1, device_instruments(CPU))
        self.assertEqual(
            [cost.name for cost in costs],
            [
                *("shuffle patches", "augment", "stitch montages"),
                *("network, float32, channels last", "network, bfloat16, contiguous"),
                *("clustering loss", "update"),
            ],
        )
        for cost in costs:
            self.assertGreater(cost.eager.seconds.least, 0)


if __name__ == "__main__":
    absltest.main()
