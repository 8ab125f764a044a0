"""Tests of jigclu.tasks.benchmark.gpu_parts, on a CPU: what only CUDA itself can answer is left."""

import dataclasses
import functools
import json
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from absl.testing import absltest

from jigclu.system.machine import PRECISIONS
from jigclu.tasks.benchmark import gpu_parts, stepping
from jigclu.tasks.benchmark.gpu_parts import PARTS, Findings, Target
from jigclu.tasks.benchmark.tables import Table
from jigclu.tasks.pretrain import PretrainTask
from tests.small_tasks import PRETRAINING

CPU = torch.device("cpu")
TASK = PretrainTask(**PRETRAINING | {"small_stem": False, "batch_size": 2})
TESTS = """
import unittest
class FewTest(unittest.TestCase):
    def test_good(self): pass
    def test_bad(self): self.assertEqual(1, 2)
    @unittest.skip("needs two GPUs")
    def test_left_out(self): pass
"""
STEPS = Table(
    title="Training step",
    columns=("step", "images/s", "time of the supervised one's"),
    rows=[
        ("published", 500.0, None),
        ("JigClu, compiled, bfloat16, channels last", 2600.0, 1.25),
        ("JigClu, eager, bfloat16, channels last", 2000.0, 1.0),
        ("supervised, eager, bfloat16, channels last", 2000.0, None),
    ],
    note="",
    panels=(),
)


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
        rows = {row[0].rsplit(".", 1)[1]: row[1:] for row in findings.tables[0].rows}
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

    def test_compilation_is_timed(self) -> None:
        taken: list[tuple[str, bool]] = []

        def build(name: str) -> Any:
            return lambda task, device: lambda: taken.append((name, task.compile))

        with mock.patch.multiple(
            gpu_parts, jigsaw_step=build("JigClu"), supervised_step=build("supervised")
        ):
            table = gpu_parts.compile_steps(TASK, CPU).tables[0]
        self.assertEqual(taken, [("JigClu", True), ("supervised", True)])
        self.assertEqual([row[0] for row in table.rows], ["JigClu", "supervised"])

    def test_steps_are_measured_in_every_precision_compiled_and_eager(self) -> None:
        with mock.patch.object(gpu_parts, "measure_steps", return_value=STEPS) as measured:
            gpu_parts.measure(TASK, ("bfloat16", "float32"), 2, CPU)
        variants = measured.call_args.args[1]
        self.assertCountEqual(
            [(variant.compile, variant.precision) for variant in variants],
            [(c, p) for c in (True, False) for p in ("bfloat16", "float32")],
        )

    def test_steps_run_and_are_compared_with_the_targets(self) -> None:
        eager = functools.partial(stepping.variants_of, (False,))
        with (
            mock.patch.object(gpu_parts, "variants_of", lambda _, *rest: eager(*rest)),
            mock.patch.object(stepping, "matmul_rate", return_value=1e12),
        ):
            findings = gpu_parts.measure(TASK, ("float32",), 1, CPU)
        (table,), (target,) = findings.tables, findings.targets
        self.assertEqual(table.rows[0][0], "published")
        _, ours, theirs = (row[1] for row in table.rows)
        self.assertAlmostEqual(target.measured, ours / theirs)
        self.assertEqual(target.least, 0.95)

    def test_targets(self) -> None:
        share = ": images/s, as a share of the supervised step's"
        self.assertEqual(
            gpu_parts._step_targets(STEPS, "resnet50"),
            [
                Target(f"resnet50, JigClu, compiled, bfloat16, channels last{share}", 0.8, 0.95),
                Target(f"resnet50, JigClu, eager, bfloat16, channels last{share}", 1.0, 0.95),
                Target(
                    "JigClu, resnet50, bfloat16: images/s, the target being that of an H100",
                    2600.0,
                    2500.0,
                ),
            ],
        )
        self.assertLen(gpu_parts._step_targets(STEPS, "resnet18"), 2)

    def test_tasks_of_all_parts_are_valid(self) -> None:
        for encoder, patch_size in (("resnet50", 112), ("resnet18", 32), ("resnet18", 56)):
            task = gpu_parts.on_noise(encoder, patch_size, "bfloat16", 128)
            dataclasses.replace(task, device="cpu").check_values()
            self.assertEqual((task.batch_size, task.compile), (128, True))
        task = gpu_parts.on_generated_images(200, "bfloat16", 2)
        dataclasses.replace(task, device="cpu").check_values()
        # In proportion to the patch, as in the small recipes.
        self.assertAlmostEqual(task.augmentation.blur_sigma_max, 2 * 64 / 112)

    def test_batches_suit_the_memory_of_the_device(self) -> None:
        found = []
        for memory in (141e9, 85e9, 42e9, 25e9, 1e9):
            properties = mock.Mock(total_memory=memory)
            with mock.patch.object(torch.cuda, "get_device_properties", return_value=properties):
                found.append(gpu_parts._batch_size("resnet50", torch.device("cuda", 0)))
        self.assertEqual(found, [128, 128, 64, 32, 2])

    def test_a_part_writes_what_it_found(self) -> None:
        path = self.folder / "result.json"
        found = Findings([STEPS], [Target("share", 0.9, 0.95)], "1 of 2 tests failed")
        with mock.patch.dict(PARTS, {"tests": lambda device: found}):
            self.assertEqual(gpu_parts.main(["tests", str(path)]), 1)
        contents = json.loads(path.read_text())
        self.assertEqual(contents["tables"][0]["rows"][1][1], 2600.0)
        self.assertStartsWith(contents["markdown"][0], "## Training step\n")
        self.assertEqual(contents["targets"], [{"what": "share", "measured": 0.9, "least": 0.95}])
        self.assertEqual(contents["failure"], "1 of 2 tests failed")

    def test_precisions_are_all_there_are(self) -> None:
        self.assertCountEqual(gpu_parts.PRECISIONS, PRECISIONS)


if __name__ == "__main__":
    absltest.main()
