"""Tests of jigclu.tasks.benchmark.stepping."""

import dataclasses
from unittest import mock

import torch
from absl.testing import absltest

from jigclu.tasks.benchmark import stepping
from jigclu.tasks.benchmark.stepping import Variant
from jigclu.tasks.pretrain import PretrainTask
from tests.samples import tiny_model
from tests.small_tasks import PRETRAINING

CPU = torch.device("cpu")
TASK = PretrainTask(**PRETRAINING)


class SteppingTest(absltest.TestCase):
    def test_inputs_are_those_of_a_whole_batch(self) -> None:
        inputs = stepping.random_inputs(TASK, CPU)
        self.assertEqual(inputs.slots.shape, (16, 3, 16, 16))
        self.assertEqual(inputs.permutation.sort().values.tolist(), list(range(16)))
        self.assertLen(inputs.augmentation.sigma, 16)

    def test_variants_are_all_combinations(self) -> None:
        found = stepping.variants_of((False, True), ("float32",), (True, False))
        self.assertEqual(found[1], Variant(False, "float32", False))
        self.assertEqual(
            [str(variant) for variant in found],
            [
                "eager, float32, channels last",
                "eager, float32, contiguous",
                "compiled, float32, channels last",
                "compiled, float32, contiguous",
            ],
        )

    def test_operations_of_a_known_network(self) -> None:
        # A forward of ResNet-50 at 224 pixels is 4.09e9 multiplications and additions; a
        # backward is two, but for the gradient of the images, of the first 0.118e9.
        task = dataclasses.replace(
            TASK, encoder="resnet50", small_stem=False, patch_size=112, batch_size=2
        )
        jigclu, supervised = stepping.network_operations(task)
        expected = 2 * 2 * (3 * 4.09e9 - 0.118e9)
        self.assertAlmostEqual(supervised / expected, 1, delta=0.005)
        # The heads see four vectors a montage: 2048 * 2048 and 2048 * 132 weights, three times.
        heads = 2 * 2 * 3 * (4 * 2048 * (2048 + 132) - 2048 * 1000)
        self.assertAlmostEqual((jigclu - supervised) / heads, 1, delta=0.01)

    def test_steps_move_nothing(self) -> None:
        step = TASK.training_step(TASK.model(), CPU, TASK.choose_machine(None))
        before = [value.clone() for value in step.model.parameters()]
        with mock.patch.object(PretrainTask, "training_step", return_value=step):
            take = stepping.jigsaw_step(TASK, CPU)
        take()
        take()
        for value, old in zip(step.model.parameters(), before, strict=True):
            self.assertTrue(torch.equal(value, old))

    def test_rows_of_all_steps(self) -> None:
        task = dataclasses.replace(TASK, small_stem=False, patch_size=32)
        variants = [Variant(False, "float32", True), Variant(False, "bfloat16", True)]
        with (
            mock.patch.object(stepping, "matmul_rate", return_value=1e12),
            mock.patch.object(PretrainTask, "model", lambda _: tiny_model()),
        ):
            table = stepping.measure_steps(task, variants, 1, CPU)
            operations = stepping.network_operations(task)[0]
        rows = {row[0]: row for row in table.rows}
        self.assertEqual(
            list(rows),
            [
                "published",
                "JigClu, eager, float32, channels last",
                "supervised, eager, float32, channels last",
                "JigClu, eager, bfloat16, channels last",
                "supervised, eager, bfloat16, channels last",
            ],
        )
        ours, theirs = (
            rows[f"{kind}, eager, float32, channels last"] for kind in ("JigClu", "supervised")
        )
        self.assertAlmostEqual(ours[4], theirs[1] / ours[1])
        self.assertAlmostEqual(ours[3], ours[1] / rows["published"][1])
        self.assertIsNone(theirs[4])
        self.assertAlmostEqual(ours[6], 100 * operations * ours[1] / 4 / 1e12)

    def test_names_say_where_float32_is_tf32(self) -> None:
        gpu, before = torch.device("cuda", 0), torch.backends.cudnn.allow_tf32
        self.addCleanup(setattr, torch.backends.cudnn, "allow_tf32", before)
        torch.backends.cudnn.allow_tf32 = True
        self.assertEqual(
            stepping._in_full("JigClu, eager, float32, channels last", gpu),
            "JigClu, eager, float32 (TF32 convolutions), channels last",
        )
        self.assertEqual(
            stepping._in_full("published", gpu), "published, float32 (TF32 convolutions)"
        )
        bfloat16 = "JigClu, eager, bfloat16, channels last"
        self.assertEqual(stepping._in_full(bfloat16, gpu), bfloat16)
        self.assertEqual(stepping._in_full("published", CPU), "published")
        torch.backends.cudnn.allow_tf32 = False
        self.assertEqual(stepping._in_full("published", gpu), "published")

    def test_a_small_stem_was_not_published(self) -> None:
        with mock.patch.object(stepping, "matmul_rate", return_value=1e12):
            table = stepping.measure_steps(TASK, [Variant(False, "float32", True)], 1, CPU)
        self.assertEqual([row[0].split(",")[0] for row in table.rows], ["JigClu", "supervised"])


if __name__ == "__main__":
    absltest.main()
