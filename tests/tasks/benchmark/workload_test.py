"""Tests of jigclu.tasks.benchmark.workload."""

import dataclasses
from unittest import mock

from absl.testing import absltest

from jigclu.system.machine import Choice
from jigclu.tasks.benchmark import workload
from jigclu.tasks.benchmark.workload import Arithmetic, Variant, Workload
from jigclu.tasks.pretrain import PretrainTask
from tests.small_tasks import PRETRAINING

TASK = PretrainTask(**PRETRAINING)


class WorkloadTest(absltest.TestCase):
    def test_describes_a_task_as_its_machine_runs_it(self) -> None:
        task = dataclasses.replace(TASK, compile="auto", workers=3)
        self.assertEqual(
            workload.describe(task),
            Workload(
                encoder="resnet18",
                batch_size=4,
                grid=2,
                patch_size=16,
                embedding_channels=128,
                learning_rate=0.03,
                steps_per_epoch=3,
                precision="float32",
                compiled=False,
                workers=3,
                queued_batches=6,
            ),
        )

    def test_counts_patches_and_pixels(self) -> None:
        described = workload.describe(TASK)
        self.assertEqual((described.patches, described.montage_size), (16, 32))
        self.assertEqual(described.network, "resnet18, montages of 32 pixels")

    def test_variants_are_all_combinations(self) -> None:
        arithmetics = workload.all_arithmetics(("float32", "bfloat16"), (True, False))
        self.assertEqual(arithmetics[1], Arithmetic(precision="float32", channels_last=False))
        variants = workload.all_variants((False, True), arithmetics)
        self.assertEqual(variants[0], Variant(compiled=False, arithmetic=arithmetics[0]))
        self.assertEqual(
            [str(variant) for variant in variants],
            [
                "eager, float32, channels last",
                "eager, float32, contiguous",
                "eager, bfloat16, channels last",
                "eager, bfloat16, contiguous",
                "compiled, float32, channels last",
                "compiled, float32, contiguous",
                "compiled, bfloat16, channels last",
                "compiled, bfloat16, contiguous",
            ],
        )

    def test_a_variant_changes_only_the_arithmetic(self) -> None:
        changed = workload.with_variant(TASK, Variant(True, Arithmetic("bfloat16", False)))
        expected = dataclasses.replace(
            TASK, compile=True, precision="bfloat16", channels_last=False
        )
        self.assertEqual(changed, expected)

    def test_a_few_steps_are_computed_like_the_whole_run(self) -> None:
        task = dataclasses.replace(TASK, compile="auto", warmup_epochs=1)
        chosen = task.choose_machine(None)._replace(compile=Choice(True, "a long run"))
        with mock.patch.object(PretrainTask, "choose_machine", return_value=chosen):
            few = workload.with_steps(task, 7)
        self.assertEqual((few.total_steps, few.compile), (7, True))
        self.assertEqual((few.picture_every, few.evaluation, few.warmup_epochs), (0, None, 0))

    def test_final_stage_has_full_size_and_random_weights(self) -> None:
        task = dataclasses.replace(TASK, smaller_patches=((1, 8),), init_from="w", resume_from="c")
        self.assertEqual(workload.final_stage(task), TASK)


if __name__ == "__main__":
    absltest.main()
