"""The parts of `make gpu-check`, each of which runs in a process of its own.

    python -m jigclu.tasks.benchmark.gpu_parts NAME RESULT

measures one part and writes what it finds to the file RESULT.
"""

import jigclu.system.compile_cache  # noqa: F401  # isort: skip  # Before torch is imported.
import dataclasses
import functools
import importlib
import json
import sys
import time
import unittest
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from jigclu.data.procedural import ProceduralImages
from jigclu.ops import schedules
from jigclu.system import files
from jigclu.system.cores import available_cores
from jigclu.system.machine import choose_precision
from jigclu.tasks.benchmark.end_to_end import measure_copies, measure_end_to_end
from jigclu.tasks.benchmark.gpu_check import PRECISIONS
from jigclu.tasks.benchmark.growth import measure_loss
from jigclu.tasks.benchmark.micro_batches import measure_micro_batches
from jigclu.tasks.benchmark.recipe import published_recipe, with_patch_size
from jigclu.tasks.benchmark.short_training import measure_training
from jigclu.tasks.benchmark.stepping import jigsaw_step, measure_steps, supervised_step, variants_of
from jigclu.tasks.benchmark.tables import Table, markdown
from jigclu.tasks.benchmark.timing import synchronize
from jigclu.tasks.pretrain import PretrainTask
from jigclu.training.knn_evaluator import KnnEvaluation

TESTS = Path(__file__).resolve().parents[3] / "tests"
_MEMORY = 80  # GB of device memory for which the batch sizes below are meant.
_IMAGES = {"resnet50": 128, "resnet18": 256}
_PATCHES = (1024, 4096, 16384, 65536)  # Of the global batch, in the clustering loss.
_TRAINING_SECONDS = 120.0
_COMPILED = 128  # Every kind of arithmetic compiles the same functions once more.
_SHARE = 0.95  # Of a supervised step's images/s, the least that JigClu is to reach.
_RESNET50_RATE = 2500.0  # Images/s in bfloat16, the least on an H100.


class Target(NamedTuple):
    """A figure beside the least that is wanted."""

    what: str
    measured: float
    least: float


class Findings(NamedTuple):
    """What a part found. failure: one line, why the part failed all the same; empty if not."""

    tables: Sequence[Table]
    targets: Sequence[Target] = ()
    failure: str = ""


def run_tests(folder: Path) -> Findings:
    """Runs all tests that need CUDA, in this process.

    Args:
      folder: package of the tests; those in files `*_cuda_test.py` are run.
    """
    sys.path.insert(0, str(folder.parent))
    importlib.import_module(f"{folder.name}.conftest")
    suite = unittest.TestLoader().discover(str(folder), "*_cuda_test.py", str(folder.parent))
    outcomes = {test.id(): ("passed", "") for test in _all_tests(suite)}
    result = unittest.TextTestRunner(verbosity=2).run(suite)
    outcomes |= {test.id(): ("skipped", reason) for test, reason in result.skipped}
    failures = [*result.failures, *result.errors]
    outcomes |= {test.id(): ("failed", text.rstrip().splitlines()[-1]) for test, text in failures}
    return Findings(
        tables=[
            Table(
                title="Tests that need CUDA",
                columns=("test", "outcome", "reason"),
                rows=[(name, *outcome) for name, outcome in outcomes.items()],
                note=f"{result.testsRun} tests were started.",
                panels=(),
            )
        ],
        failure=f"{len(failures)} of {len(outcomes)} tests failed" if failures else "",
    )


def _all_tests(suite: unittest.TestSuite) -> list[unittest.TestCase]:
    tests: list[unittest.TestCase] = []
    for item in suite:
        tests += _all_tests(item) if isinstance(item, unittest.TestSuite) else [item]
    return tests


def compile_steps(task: PretrainTask, device: torch.device) -> Findings:
    """Compiles the steps that `measure` times later, and so fills the compilation cache."""
    task = dataclasses.replace(task, compile=True)
    rows = []
    for name, build in (("JigClu", jigsaw_step), ("supervised", supervised_step)):
        began = time.perf_counter()
        build(task, device)()
        synchronize(device)
        rows.append((name, time.perf_counter() - began))
    return Findings(
        [
            Table(
                title=f"Compilation, {_description(task)}",
                columns=("step", "s"),
                rows=rows,
                note="To the end of the first step, while other parts run on the same machine.",
                panels=(),
            )
        ]
    )


def measure(
    task: PretrainTask, precisions: Sequence[str], repetitions: int, device: torch.device
) -> Findings:
    """Measures steps of JigClu, of classification and as published, compiled and eager."""
    variants = variants_of((True, False), tuple(precisions), (True,))
    table = measure_steps(task, variants, repetitions, device)
    table = table._replace(title=f"Training step, {_description(task)}")
    return Findings([table], _step_targets(table, task.encoder))


def _step_targets(table: Table, encoder: str) -> list[Target]:
    rate = table.columns.index("images/s")
    ratio = table.columns.index("time of the supervised one's")
    rows = [row for row in table.rows if row[ratio]]
    targets = [
        Target(
            f"{encoder}, {row[0]}: images/s, as a share of the supervised step's",
            1 / row[ratio],
            _SHARE,
        )
        for row in rows
    ]
    rates = [row[rate] for row in rows if "bfloat16" in row[0]]
    if encoder == "resnet50" and rates:
        what = "JigClu, resnet50, bfloat16: images/s, the target being that of an H100"
        targets.append(Target(what, max(rates), _RESNET50_RATE))
    return targets


def _description(task: PretrainTask) -> str:
    return f"{task.encoder}, montages of {task.grid * task.patch_size} pixels"


def on_noise(encoder: str, patch_size: int, precision: str, images: int) -> PretrainTask:
    """Returns the published recipe for an encoder and a patch size; its images are never read."""
    source = ProceduralImages(images=images, size=2 * patch_size, seed=0, split="train")
    return with_patch_size(
        published_recipe(source),
        patch_size,
        encoder=encoder,
        precision=precision,
        compile=True,
        batch_size=images,
        device="cuda",
    )


def on_generated_images(images: int, precision: str, workers: int) -> PretrainTask:
    """Returns a run on generated images like gin/demo.gin's, which is stopped by the clock."""
    train, val = (
        ProceduralImages(images=count, size=96, seed=0, split=split)
        for count, split in ((images, "train"), (images // 10, "val"))
    )
    task = published_recipe(train)
    evaluation = KnnEvaluation(
        bank=ProceduralImages(images=images // 5, size=96, seed=0, split="train"),
        queries=val,
        resize=96,
        crop=96,
        mean=tuple(task.augmentation.mean),
        std=tuple(task.augmentation.std),
        neighbors=20,
        temperature=0.07,
        batch_size=256,
        workers=workers,
    )
    return with_patch_size(
        task,
        64,
        encoder="resnet18",
        batch_size=128,
        epochs=10**6,
        # Constant: the end is a matter of time, so there is no last epoch to decay to.
        decay=schedules.StepDecay(milestones=(), factor=1.0),
        warmup_epochs=1,
        learning_rate=0.1,
        device="cuda",
        precision=precision,
        compile=False,
        workers=workers,
        picture_every=0,
        evaluation=evaluation,
    )


def _batch_size(encoder: str, device: torch.device) -> int:
    """Returns the batch that suits the memory of a device: a power of two, at least 2."""
    memory = torch.cuda.get_device_properties(device).total_memory / 1e9
    share = min(1.0, memory / _MEMORY)
    return max(2, 2 ** int(_IMAGES[encoder] * share).bit_length() // 2)


def _half(device: torch.device) -> str:
    """Returns the half precision in which a device trains by default."""
    return choose_precision("auto", device, None).value


def _noise_task(
    encoder: str, patch_size: int, precision: str, device: torch.device
) -> PretrainTask:
    return on_noise(encoder, patch_size, precision, _batch_size(encoder, device))


def _copies(device: torch.device) -> Findings:
    task = _noise_task("resnet50", 112, _half(device), device)
    images = ProceduralImages(images=20_000, size=96, seed=0, split="train")
    reading = dataclasses.replace(task, source=images)
    return Findings(
        [measure_copies(task, 2, device), measure_end_to_end(reading, 20, 1, device)],
    )


def _micro_batches(device: torch.device) -> Findings:
    task = dataclasses.replace(on_noise("resnet50", 112, "float32", 256), compile=False)
    sizes, precisions = (None, 64, 32), (_half(device), "float32")
    return Findings([measure_micro_batches(task, sizes, precisions, 1, device)])


def _loss(device: torch.device) -> Findings:
    task = on_noise("resnet50", 112, "float32", 256)
    return Findings([measure_loss(task, _PATCHES, 2.0, 3, device)])


def _training(device: torch.device) -> Findings:
    task = on_generated_images(20_000, _half(device), max(1, available_cores() // 4))
    return Findings([measure_training(task, _TRAINING_SECONDS, device)])


def _resnet18(patch_size: int, device: torch.device) -> Findings:
    task = _noise_task("resnet18", patch_size, "float32", device)
    return measure(task, PRECISIONS, 2, device)


def _resnet50(precision: str, device: torch.device) -> Findings:
    task = _noise_task("resnet50", 112, precision, device)
    return measure(task, (precision,), 2, device)


def _compile(encoder: str, patch_size: int, precision: str, device: torch.device) -> Findings:
    return compile_steps(_noise_task(encoder, patch_size, precision, device), device)


PARTS: dict[str, Callable[[torch.device], Findings]] = {
    "tests": lambda device: run_tests(TESTS),
    **{f"resnet50-224-{name}": functools.partial(_resnet50, name) for name in PRECISIONS},
    **{f"resnet18-{2 * size}": functools.partial(_resnet18, size) for size in (32, 56)},
    **{
        f"compile-{encoder}-{2 * size}-{name}": functools.partial(_compile, encoder, size, name)
        for encoder, size in (("resnet50", 112), ("resnet18", 32), ("resnet18", 56))
        for name in PRECISIONS
    },
    "micro-batches": _micro_batches,
    "clustering-loss": _loss,
    "copies": _copies,
    "training": _training,
}


def write_findings(findings: Findings, path: Path) -> None:
    """Writes what a part found as JSON: tables (as data and as Markdown), targets, failure."""
    contents = {
        "tables": [table._asdict() for table in findings.tables],
        "markdown": [markdown(table) for table in findings.tables],
        "targets": [target._asdict() for target in findings.targets],
        "failure": findings.failure,
    }
    files.write_file(path, json.dumps(contents, indent=1).encode())


def main(arguments: Sequence[str]) -> int:
    """Runs one part on the first GPU; returns the exit status, 1 if it failed."""
    name, path = arguments
    torch.backends.cudnn.benchmark = True  # As in training.
    with torch._dynamo.config.patch(recompile_limit=_COMPILED):
        findings = PARTS[name](torch.device("cuda", 0))
    write_findings(findings, Path(path))
    return 1 if findings.failure else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
