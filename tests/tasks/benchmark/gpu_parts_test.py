"""Tests of jigclu.tasks.benchmark.gpu_parts on a CPU."""

import contextlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from absl.testing import absltest

from jigclu.system.machine import PRECISIONS
from jigclu.tasks.benchmark import gpu_parts
from jigclu.tasks.benchmark.copies import Copies
from jigclu.tasks.benchmark.end_to_end import EndToEnd, RunTime
from jigclu.tasks.benchmark.gpu_parts import PARTS, Findings, Target
from jigclu.tasks.benchmark.instruments import Action
from jigclu.tasks.benchmark.report import Table
from jigclu.tasks.benchmark.short_training import ShortTraining
from jigclu.tasks.benchmark.steps import PUBLISHED, StepCost, StepCosts
from jigclu.tasks.benchmark.timing import Cost, Seconds
from jigclu.tasks.benchmark.workload import Arithmetic, Variant, color_augmentation, jigsaw
from jigclu.tasks.pretrain import PretrainTask
from jigclu.training.knn_evaluator import KnnEvaluator
from jigclu.training.settings import with_settings
from tests.small_tasks import PRETRAINING
from tests.tasks.benchmark.fakes import WORKLOAD, FakeMachine

TASK = with_settings(PRETRAINING, small_stem=False, batch_size=2)
TESTS = """
import unittest
class FewTest(unittest.TestCase):
    def test_good(self): pass
    def test_bad(self): self.assertEqual(1, 2)
    @unittest.skip("needs two GPUs")
    def test_left_out(self): pass
"""
BFLOAT16, FLOAT32 = Arithmetic("bfloat16", True), Arithmetic("float32", True)
COMPILED, EAGER = Variant(True, BFLOAT16), Variant(False, BFLOAT16)
FULL = Variant(True, FLOAT32)


def step_cost(kind: str, variant: Variant, median: float) -> StepCost:
    return StepCost(kind, variant, Cost(Seconds(median, median / 2, 3 * median), 10**6), 10**12)


# The batch of `WORKLOAD` has 8 images.
COSTS = StepCosts(
    steps=[
        step_cost("published", PUBLISHED, 8.0),
        step_cost("JigClu", COMPILED, 2.5),
        step_cost("supervised", COMPILED, 2.0),
        step_cost("JigClu", EAGER, 4.0),
        step_cost("supervised", EAGER, 4.0),
        step_cost("JigClu", FULL, 1.0),
        step_cost("supervised", FULL, 2.0),
        step_cost("JigClu", Variant(False, FLOAT32), 5.0),
    ],
    matmul_rates={"bfloat16": 4e12, "float32": 1e12},
    tf32=True,
)
TABLE = Table(
    title="Training step",
    columns=("step", "images/s"),
    rows=[("published", 500.0), ("JigClu", 2600.0)],
    note="",
    panels=(),
)
# What the measurements of all parts find.
FOUND: dict[str, Any] = {
    "measure_steps": COSTS,
    "measure_copies": Copies(1, 2, 3, 4),
    "measure_end_to_end": EndToEnd(20, 3, RunTime(1, 0), RunTime(1, 1), 1),
    "measure_loss": [],
    "measure_micro_batches": [],
    "measure_training": ShortTraining(1, 1, 0, 1, 0, 0, 0),
}


class GpuPartsTest(absltest.TestCase):
    def setUp(self) -> None:
        super().setUp()
        self.folder = Path(self.create_tempdir().full_path)

    def run_tests(self, **files: str) -> Findings:
        (self.folder / "deep").mkdir(exist_ok=True)
        for name in ("__init__", "conftest", "deep/__init__"):
            (self.folder / f"{name}.py").touch()
        for name, text in files.items():
            (self.folder / "deep" / f"{name}.py").write_text(text)
        with (
            mock.patch.object(sys, "path", list(sys.path)),
            mock.patch.dict(sys.modules),
        ):
            return gpu_parts.run_tests(self.folder)

    def test_tests_that_need_cuda_are_run_and_listed(self) -> None:
        findings = self.run_tests(few_cuda_test=TESTS, other_test="raise AssertionError")
        rows = {str(row[0]).rsplit(".", 1)[1]: row[1:] for row in findings.tables[0].rows}
        self.assertEqual(
            rows,
            {
                "test_good": ("passed", ""),
                "test_bad": ("failed", "AssertionError: 1 != 2"),
                "test_left_out": ("skipped", "needs two GPUs"),
            },
        )
        self.assertEqual(findings.failure, "1 of 3 tests failed")

    def test_a_missing_package_fails_the_tests_that_import_it(self) -> None:
        findings = self.run_tests(
            bad_cuda_test="import no_such_package", good_cuda_test=TESTS.replace("1, 2", "1, 1")
        )
        self.assertEqual(findings.failure, "1 of 4 tests failed", findings.tables[0].rows)
        reasons = [row[2] for row in findings.tables[0].rows if row[1] == "failed"]
        self.assertEqual(reasons, ["ModuleNotFoundError: No module named 'no_such_package'"])

    def test_compilation_is_timed_to_the_end_of_the_first_step(self) -> None:
        machine = FakeMachine()

        def builder(building: float, step: float) -> Callable[..., Action]:
            def build(task: PretrainTask, device: torch.device) -> Action:
                self.assertTrue(task.compute.compile)
                machine.wait(building)
                return machine.action(step)

            return build

        with mock.patch.multiple(
            gpu_parts, jigsaw_step=builder(1, 20), supervised_step=builder(3, 40)
        ):
            (table,) = gpu_parts.compile_steps(TASK, machine.instruments).tables
        self.assertEqual(table.title, "Compilation, resnet18, montages of 32 pixels")
        self.assertEqual(table.rows, [("JigClu", 21), ("supervised", 43)])

    def test_steps_are_measured_in_every_precision_compiled_and_eager(self) -> None:
        with mock.patch.object(
            gpu_parts, "measure_steps", autospec=True, return_value=COSTS
        ) as measured:
            findings = gpu_parts.compare_steps(
                TASK, ("bfloat16", "float32"), 2, FakeMachine().instruments
            )
        _, variants, repetitions, _ = measured.call_args.args
        self.assertEqual(
            variants, [COMPILED, FULL, EAGER, Variant(compiled=False, arithmetic=FLOAT32)]
        )
        self.assertEqual(repetitions, 2)
        (table,) = findings.tables
        self.assertEqual(table.title, "Training step, resnet18, montages of 32 pixels")
        self.assertLen(table.rows, 8)
        self.assertLen(findings.targets, 3)

    def test_targets_are_shares_of_supervised_steps_and_a_rate(self) -> None:
        share = ": images/s, as a share of the supervised step's"
        full = "float32 (TF32 convolutions)"
        shares = [
            Target(f"resnet50, JigClu, compiled, bfloat16, channels last{share}", 0.8, 0.95),
            Target(f"resnet50, JigClu, eager, bfloat16, channels last{share}", 1.0, 0.95),
            Target(f"resnet50, JigClu, compiled, {full}, channels last{share}", 2.0, 0.95),
        ]
        what = "JigClu, resnet50, bfloat16: images/s, the target being that of an H100"
        self.assertEqual(
            gpu_parts.step_targets(WORKLOAD, COSTS), [*shares, Target(what, 8 / 2.5, 2500.0)]
        )
        # The rate is that of ResNet-50 in bfloat16.
        resnet18 = gpu_parts.step_targets(WORKLOAD._replace(encoder="resnet18"), COSTS)
        self.assertLen(resnet18, 3)
        only_full = gpu_parts.step_targets(WORKLOAD, COSTS._replace(steps=COSTS.steps[5:]))
        self.assertEqual(only_full, shares[2:])

    def test_every_part_measures_and_returns_tables(self) -> None:
        titles = {}
        with contextlib.ExitStack() as stack:
            for name, found in FOUND.items():
                patch = mock.patch.object(gpu_parts, name, autospec=True, return_value=found)
                stack.enter_context(patch)
            for name in ("jigsaw_step", "supervised_step"):
                stack.enter_context(mock.patch.object(gpu_parts, name, lambda *_: lambda: None))
            # There is no GPU here to ask.
            stack.enter_context(mock.patch.object(gpu_parts, "_half", lambda _: "bfloat16"))
            stack.enter_context(mock.patch.object(gpu_parts, "_batch_size", lambda *_: 8))
            stack.enter_context(mock.patch.object(gpu_parts, "describe", lambda _: WORKLOAD))
            for name, part in PARTS.items():
                if name != "tests":
                    findings = part(FakeMachine("cuda").instruments)
                    titles[name.split("-")[0]] = [table.title for table in findings.tables]
        resnet50 = "resnet50, montages of 224 pixels"
        self.assertEqual(
            titles,
            {
                "resnet50": [f"Training step, {resnet50}"],
                "resnet18": [f"Training step, {resnet50}"],
                "compile": [f"Compilation, {resnet50}"],
                "micro": ["Micro-batches of a batch of 8"],
                "clustering": ["Clustering loss"],
                "copies": ["Copies to the device", "End to end"],
                "training": ["Training on generated images"],
            },
        )

    def test_tasks_of_all_parts_are_valid(self) -> None:
        for encoder, patch_size in (("resnet50", 112), ("resnet18", 32), ("resnet18", 56)):
            task = gpu_parts.on_noise(encoder, patch_size, "bfloat16", 128)
            with_settings(task, device="cpu").check(self.folder)
            self.assertEqual((task.encoder, task.batch_size), (encoder, 128))
            self.assertEqual((task.compute.precision, task.compute.compile), ("bfloat16", True))
            self.assertEqual(jigsaw(task).patch_size, patch_size)
        task = gpu_parts.on_generated_images(200, "bfloat16", 2)
        with_settings(task, device="cpu").check(self.folder)
        self.assertEqual((task.batch_size, task.compute.precision), (128, "bfloat16"))
        (evaluator,) = task.evaluators
        self.assertIsInstance(evaluator, KnnEvaluator)
        self.assertEqual(evaluator.every, 0)
        # In proportion to the patch, as in the small recipes.
        self.assertAlmostEqual(color_augmentation(task).blur_sigma_max, 2 * 64 / 112)

    def test_batches_suit_the_memory_of_the_device(self) -> None:
        found = []
        for memory in (141e9, 85e9, 42e9, 25e9, 1e9):
            properties = mock.Mock(total_memory=memory)
            with mock.patch.object(torch.cuda, "get_device_properties", return_value=properties):
                found.append(gpu_parts._batch_size("resnet50", torch.device("cuda", 0)))
        self.assertEqual(found, [128, 128, 64, 32, 2])

    def test_a_part_writes_what_it_found(self) -> None:
        path = self.folder / "result.json"
        found = Findings([TABLE], [Target("share", 0.9, 0.95)], "1 of 2 tests failed")
        with mock.patch.dict(PARTS, {"tests": lambda _: found}):
            self.assertEqual(gpu_parts.main(["tests", str(path)]), 1)
        contents = json.loads(path.read_text())
        self.assertEqual(contents["tables"][0]["rows"][1], ["JigClu", 2600.0])
        self.assertStartsWith(contents["markdown"][0], "## Training step\n")
        self.assertEqual(contents["targets"], [{"what": "share", "measured": 0.9, "least": 0.95}])
        self.assertEqual(contents["failure"], "1 of 2 tests failed")

    def test_precisions_are_all_there_are(self) -> None:
        self.assertCountEqual(gpu_parts.PRECISIONS, PRECISIONS)


if __name__ == "__main__":
    absltest.main()
