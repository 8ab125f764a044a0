"""Tests of jigclu.tasks.benchmark.noise_steps."""

from typing import Any
from unittest import mock

import torch
from absl.testing import absltest, parameterized

from jigclu.methods.forward import Forward
from jigclu.tasks.benchmark import noise_steps
from jigclu.tasks.benchmark.workload import Arithmetic, Variant, with_variant
from jigclu.tasks.pretrain import PretrainTask
from jigclu.training.settings import with_settings
from jigclu.training.step import TrainingStep
from tests.samples import tiny_model
from tests.small_tasks import PRETRAINING

CPU = torch.device("cpu")


class NoiseStepsTest(parameterized.TestCase):
    def test_inputs_are_those_of_a_whole_batch(self) -> None:
        inputs = noise_steps.random_inputs(PRETRAINING, CPU)
        self.assertEqual(inputs.crops.shape, (16, 3, 16, 16))
        (permutation,) = inputs.targets
        self.assertEqual(permutation.sort().values.tolist(), list(range(16)))
        self.assertEqual({len(values) for values in inputs.augmentation}, {16})

    @parameterized.product(
        build=(noise_steps.jigsaw_step, noise_steps.supervised_step), compiled=(False, True)
    )
    def test_steps_are_built_as_the_task_says(self, build: Any, compiled: bool) -> None:
        built: list[tuple[Forward, bool]] = []
        initialize: Any = TrainingStep.__init__

        def record(step: TrainingStep, forward: Forward, *rest: Any) -> None:
            optimizer, scaling, compile_step, *others = rest
            built.append((forward, compile_step))
            initialize(step, forward, optimizer, scaling, False, *others)

        task = with_variant(PRETRAINING, Variant(compiled, Arithmetic("bfloat16", not compiled)))
        with (
            mock.patch.object(TrainingStep, "__init__", record),
            mock.patch.object(PretrainTask, "network", lambda _: tiny_model()),
        ):
            build(task, CPU)
        ((forward, compile_step),) = built
        self.assertEqual(compile_step, compiled)
        self.assertEqual(forward.precision, torch.bfloat16)
        expected = torch.contiguous_format if compiled else torch.channels_last
        self.assertEqual(forward.memory_format, expected)

    def test_steps_move_nothing(self) -> None:
        with mock.patch.object(PretrainTask, "network", lambda _: tiny_model()):
            step = PRETRAINING.training_step(CPU, PRETRAINING.choose_machine(None))
        before = [value.clone() for value in step.network.parameters()]
        with mock.patch.object(PretrainTask, "training_step", return_value=step):
            take_step = noise_steps.jigsaw_step(PRETRAINING, CPU)
        take_step()
        take_step()
        for value, old in zip(step.network.parameters(), before, strict=True):
            self.assertTrue(torch.equal(value, old))

    def test_all_steps_see_as_many_pixels(self) -> None:
        shapes: list[torch.Size] = []
        task = with_settings(PRETRAINING, small_stem=False)

        def record(module: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
            if isinstance(module, torch.nn.Conv2d):
                shapes.append(inputs[0].shape)

        with mock.patch.object(PretrainTask, "network", lambda _: tiny_model()):
            steps = [
                noise_steps.jigsaw_step(task, CPU),
                noise_steps.supervised_step(task, CPU),
            ]
        steps.append(noise_steps.published_step(task, CPU))
        hook = torch.nn.modules.module.register_module_forward_pre_hook(record)
        self.addCleanup(hook.remove)
        first = []
        for step in steps:
            shapes.clear()
            step()
            first.append(shapes[0])
        self.assertEqual(first, [(4, 3, 32, 32)] * 3)

    def test_operations_of_a_known_network(self) -> None:
        # A forward of ResNet-50 at 224 pixels is 4.09e9 multiplications and additions; a
        # backward is two, but for the gradient of the images, of the first 0.118e9.
        task = with_settings(
            PRETRAINING, encoder="resnet50", small_stem=False, patch_size=112, batch_size=2
        )
        jigclu, supervised = noise_steps.network_operations(task)
        expected = 2 * 2 * (3 * 4.09e9 - 0.118e9)
        self.assertAlmostEqual(supervised / expected, 1, delta=0.005)
        # The heads see four vectors per montage: 2048 * 2048 and 2048 * 132 weights, three times.
        heads = 2 * 2 * 3 * (4 * 2048 * (2048 + 132) - 2048 * 1000)
        self.assertAlmostEqual((jigclu - supervised) / heads, 1, delta=0.01)

    def test_size_of_a_known_network(self) -> None:
        size = noise_steps.network_size(PRETRAINING)
        # 11,168,832 parameters of the encoder and 330,372 of the heads.
        self.assertEqual(size.parameters, 11_499_204)
        # Mean and variance of 4,800 channels.
        self.assertEqual(size.statistics, 9_600)


if __name__ == "__main__":
    absltest.main()
