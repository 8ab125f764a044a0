"""Tests of jigclu.tasks.benchmark.workload."""

from unittest import mock

from absl.testing import absltest, parameterized

from jigclu.system.machine import Choice
from jigclu.tasks.benchmark import workload
from jigclu.tasks.benchmark.workload import Arithmetic, Variant, Workload
from jigclu.tasks.pretrain import PretrainTask
from jigclu.training.settings import with_settings
from tests.small_tasks import PRETRAINING


class WorkloadTest(parameterized.TestCase):
    def test_describes_a_task_as_its_machine_runs_it(self) -> None:
        task = with_settings(PRETRAINING, compile="auto", workers=3)
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
        described = workload.describe(PRETRAINING)
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
        changed = workload.with_variant(PRETRAINING, Variant(True, Arithmetic("bfloat16", False)))
        expected = with_settings(
            PRETRAINING, compile=True, precision="bfloat16", channels_last=False
        )
        self.assertEqual(changed, expected)

    def test_a_few_steps_are_computed_like_the_whole_run(self) -> None:
        task = with_settings(PRETRAINING, compile="auto", warmup_epochs=1, stop_after_steps=1)
        chosen = task.choose_machine(None)._replace(compile=Choice(True, "a long run"))
        with mock.patch.object(PretrainTask, "choose_machine", return_value=chosen):
            few = workload.with_steps(task, 7)
        self.assertEqual(few.total_steps, 7)
        self.assertEqual((few.compute.compile, few.schedule.warmup_epochs), (True, 0))

    @parameterized.parameters("init_from", "resume_from")
    def test_final_stage_has_full_size_and_random_weights(self, weights: str) -> None:
        task = with_settings(PRETRAINING, smaller_patches=((1, 8),), **{weights: "weights.pth"})
        self.assertEqual(workload.final_stage(task), PRETRAINING)


if __name__ == "__main__":
    absltest.main()
