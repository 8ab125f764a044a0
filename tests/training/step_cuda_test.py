"""The training step on CUDA: precisions, compilation, two GPUs, and no waiting for the device."""

from tests import cuda_needed  # noqa: F401  # isort: skip
import math
from functools import partial
from typing import Any

import torch
from absl.testing import absltest, parameterized
from torch import nn

from jigclu.methods.method import Method
from tests import step_case
from tests.methods.simclr_test import projector
from tests.ranks import run_on_ranks
from tests.samples import (
    BATCH,
    BYOL,
    EXTENDED,
    JIGSAW,
    MOCO,
    SIMCLR,
    SIMSIAM,
    method_inputs,
    small_model,
    tiny_network,
)
from tests.small_tasks import TaskTestCase

CUDA = "cuda"
# By name: a method, and what builds its network.
METHODS: dict[str, tuple[Method, Any]] = {
    "jigsaw": (JIGSAW, small_model),
    "extended jigsaw": (EXTENDED, partial(tiny_network, EXTENDED)),
    "simclr": (SIMCLR, projector),
    "moco": (MOCO, partial(tiny_network, MOCO)),
    "simsiam": (SIMSIAM, partial(tiny_network, SIMSIAM)),
    "byol": (BYOL, partial(tiny_network, BYOL)),
}


def train_in_double(count: int, **named: Any) -> dict[str, Any]:
    """Trains in float64 on the current GPU, eager: differences are not those of rounding."""
    return step_case.train(count, build=step_case.double_model, device=CUDA, **named)


def train_in_float32(count: int, use_compile: bool = False) -> dict[str, Any]:
    """Trains on the current GPU without TF32, whose rounding would hide differences."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        return step_case.train(count, use_compile, device=CUDA)
    finally:
        torch.backends.cudnn.allow_tf32 = before


class StepsCudaTest(TaskTestCase):
    @parameterized.product(
        name=tuple(METHODS),
        precision=("float32", "bfloat16", "float16"),
        micro_batch_size=(None, BATCH // 2),
    )
    def test_nothing_waits_for_the_device(
        self, name: str, precision: str, micro_batch_size: int | None
    ) -> None:
        self.take_steps_without_waiting(
            name, precision=precision, micro_batch_size=micro_batch_size
        )

    @parameterized.parameters(*METHODS)
    def test_nothing_waits_for_the_device_in_a_compiled_step(self, name: str) -> None:
        torch._dynamo.reset()
        self.take_steps_without_waiting(name, use_compile=True, precision="bfloat16")

    def take_steps_without_waiting(self, name: str, **settings: Any) -> None:
        method, build = METHODS[name]
        step = step_case.pretrain_step(method=method, build=build, device=CUDA, **settings)
        state = step.initial_state()
        crops = method_inputs(method, 0, CUDA).crops.unflatten(0, (BATCH, -1))
        for number in range(4):
            # The first two steps, one of each kind, compile and set up libraries.
            torch.cuda.set_sync_debug_mode("error" if number > 1 else "default")
            try:
                state, _, _ = step(state, method.step_inputs(crops, 0, number), 0.03)
            finally:
                torch.cuda.set_sync_debug_mode("default")

    @parameterized.parameters("bfloat16", "float16")
    def test_half_precision_is_finite_and_near_float32(self, precision: str) -> None:
        full = train_in_float32(1)["metrics"][0]
        half = step_case.train(1, False, precision, device=CUDA)["metrics"][0]
        for name, value in half.items():
            self.assertTrue(math.isfinite(value), name)
        self.assertAlmostEqual(half["loss"], full["loss"], delta=0.02 * full["loss"])
        self.assertNotEqual(half["loss"], full["loss"])
        self.assertEqual(half.get("skipped_steps", 0.0), 0.0)

    def test_equals_the_cpu(self) -> None:
        cpu, gpu = step_case.train(1, build=step_case.double_model), train_in_double(1)
        loss = cpu["metrics"][0]["loss"]
        self.assertAlmostEqual(gpu["metrics"][0]["loss"], loss, delta=1e-5 * loss)
        self.assert_tensors_close(gpu["gradients"], cpu["gradients"], 1e-4)
        self.assert_tensors_close(gpu["buffers"], cpu["buffers"], 1e-5)

    def test_compiled_equals_eager(self) -> None:
        eager, compiled = train_in_float32(1), train_in_float32(1, use_compile=True)
        loss = eager["metrics"][0]["loss"]
        self.assertAlmostEqual(compiled["metrics"][0]["loss"], loss, delta=1e-4 * loss)
        # Statistics of few values make gradients of float32's last bit.
        self.assert_tensors_close(compiled["gradients"], eager["gradients"], 1e-2)
        self.assert_tensors_close(compiled["parameters"], eager["parameters"], 1e-3)
        self.assert_tensors_close(compiled["buffers"], eager["buffers"], 1e-4)

    def test_micro_batches_without_batch_norm_equal_the_whole_batch(self) -> None:
        settings: dict[str, Any] = {"norm_layer": nn.Identity}
        whole = train_in_double(1, **settings)
        pieces = train_in_double(1, micro_batch_size=BATCH // 2, **settings)
        self.assert_tensors_close(pieces["gradients"], whole["gradients"], 1e-5)

    @absltest.skipIf(torch.cuda.device_count() < 2, "needs two GPUs")
    def test_two_gpus_equal_one(self) -> None:
        one = train_in_float32(1)
        for rank in run_on_ranks(train_in_float32, 2, 1, backend="nccl"):
            self.assert_tensors_close(rank["gradients"], one["gradients"], 1e-3)
            self.assert_tensors_close(rank["buffers"], one["buffers"], 1e-4)
            self.assert_tensors_close(rank["parameters"], one["parameters"], 1e-4)


if __name__ == "__main__":
    absltest.main()
