"""The parts of `make gpu-check`, each of which runs in its own process.

    python -m jigclu.tasks.benchmark.gpu_parts NAME RESULT

measures one part and writes its findings to the file RESULT.
"""

import jigclu.system.compile_cache  # noqa: F401  # isort: skip  # Before torch is imported.
import dataclasses
import functools
import importlib
import json
import sys
import unittest
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from jigclu.data.procedural import ProceduralImages
from jigclu.data.transform import EvalTransform
from jigclu.ops import schedules
from jigclu.system import files
from jigclu.system.cores import available_cores
from jigclu.system.machine import choose_precision
from jigclu.tasks.benchmark.copies import measure_copies
from jigclu.tasks.benchmark.end_to_end import measure_end_to_end
from jigclu.tasks.benchmark.gpu_check import PRECISIONS
from jigclu.tasks.benchmark.growth import measure_loss
from jigclu.tasks.benchmark.instruments import Action, Instruments, device_instruments
from jigclu.tasks.benchmark.micro_batches import measure_micro_batches
from jigclu.tasks.benchmark.noise_steps import jigsaw_step, supervised_step
from jigclu.tasks.benchmark.recipe import published_recipe, with_patch_size
from jigclu.tasks.benchmark.report import Table, markdown
from jigclu.tasks.benchmark.short_training import measure_training
from jigclu.tasks.benchmark.steps import StepCosts, measure_steps
from jigclu.tasks.benchmark.tables import (
    compilation_table,
    copies_table,
    end_to_end_table,
    loss_table,
    micro_batch_table,
    step_name,
    step_table,
    training_table,
)
from jigclu.tasks.benchmark.timing import time_call
from jigclu.tasks.benchmark.workload import (
    RECOMPILATIONS,
    Workload,
    all_arithmetics,
    all_variants,
    describe,
    with_compilation,
)
from jigclu.tasks.pretrain import PretrainTask
from jigclu.training.knn_evaluator import KnnEvaluator
from jigclu.training.settings import Loading

TESTS = Path(__file__).resolve().parents[3] / "tests"
_MEMORY = 80  # GB of device memory for which the batch sizes below are meant.
_IMAGES = {"resnet50": 128, "resnet18": 256}
_PATCHES = (1024, 4096, 16384, 65536)  # Of the global batch, in the clustering loss.
_LONGEST = 2.0  # Seconds; larger clustering losses are left out.
_TRAINING_SECONDS = 120.0
_SHARE = 0.95  # Target: JigClu's images/s as a share of the supervised step's.
_RESNET50_RATE = 2500.0  # Target: images/s in bfloat16 on an H100.


class Target(NamedTuple):
    """A measured figure, and the least that is wanted."""

    what: str
    measured: float
    least: float


class Findings(NamedTuple):
    """The results of a part.

    failure: one line, why the part failed although it has results; empty if it passed.
    """

    tables: Sequence[Table]
    targets: Sequence[Target] = ()
    failure: str = ""


def run_tests(folder: Path) -> Findings:
    """Runs all tests that need CUDA, in this process.

    Args:
      folder: package of the tests; only files `*_cuda_test.py` are run.
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


def compile_steps(task: PretrainTask, instruments: Instruments) -> Findings:
    """Compiles the steps that `compare_steps` times later, which fills the compilation cache."""
    task = with_compilation(task, True)
    seconds = {
        name: _time_first_step(build, task, instruments)
        for name, build in (("JigClu", jigsaw_step), ("supervised", supervised_step))
    }
    return Findings([compilation_table(describe(task), seconds)])


def _time_first_step(
    build: Callable[[PretrainTask, torch.device], Action],
    task: PretrainTask,
    instruments: Instruments,
) -> float:
    return time_call(lambda: build(task, instruments.device)(), instruments)


def compare_steps(
    task: PretrainTask, precisions: Sequence[str], repetitions: int, instruments: Instruments
) -> Findings:
    """Measures steps of JigClu, of classification and as published, compiled and eager."""
    variants = all_variants((True, False), all_arithmetics(precisions, (True,)))
    costs = measure_steps(task, variants, repetitions, instruments)
    workload = describe(task)
    table = step_table(workload, costs)
    table = table._replace(title=f"Training step, {workload.network}")
    return Findings([table], step_targets(workload, costs))


def step_targets(workload: Workload, costs: StepCosts) -> list[Target]:
    """Returns the targets of JigClu's steps beside what was measured."""
    encoder, targets, rates = workload.encoder, [], []
    for step in costs.steps:
        twin, seconds = costs.supervised_twin(step), step.cost.seconds.median
        if twin is not None:
            name = step_name(step, costs.tf32)
            what = f"{encoder}, {name}: images/s, as a share of the supervised step's"
            targets.append(Target(what, twin.cost.seconds.median / seconds, _SHARE))
            if step.variant.arithmetic.precision == "bfloat16":
                rates.append(workload.batch_size / seconds)
    if encoder == "resnet50" and rates:
        what = "JigClu, resnet50, bfloat16: images/s, the target being that of an H100"
        targets.append(Target(what, max(rates), _RESNET50_RATE))
    return targets


def on_noise(encoder: str, patch_size: int, precision: str, images: int) -> PretrainTask:
    """Returns the published recipe for an encoder and a patch size; no image is read."""
    source = ProceduralImages(images=images, size=2 * patch_size, seed=0, split="train")
    return with_patch_size(
        published_recipe(source, images),
        patch_size,
        encoder=encoder,
        precision=precision,
        compile=True,
        device="cuda",
    )


def on_generated_images(images: int, precision: str, workers: int) -> PretrainTask:
    """Returns a run on generated images, as in gin/demo.gin, that only the clock ends."""
    train, val = (
        ProceduralImages(images=count, size=96, seed=0, split=split)
        for count, split in ((images, "train"), (images // 10, "val"))
    )
    task = published_recipe(train, batch_size=128)
    augmentation = task.method.augmentation
    evaluator = KnnEvaluator(
        every=0,
        bank=ProceduralImages(images=images // 5, size=96, seed=0, split="train"),
        queries=val,
        eval_transform=EvalTransform(
            resize=96, crop=96, mean=tuple(augmentation.mean), std=tuple(augmentation.std)
        ),
        neighbors=20,
        temperature=0.07,
        batch_size=256,
        skip_unreadable=False,
        loading=Loading(workers=workers, prefetch=2, timeout=600, most_unreadable=0.0),
    )
    return with_patch_size(
        task,
        64,
        encoder="resnet18",
        epochs=10**6,
        # Constant, because the last epoch to decay to is not known.
        decay=schedules.StepDecay(milestones=(), factor=1.0),
        warmup_epochs=1,
        learning_rate=0.1,
        device="cuda",
        precision=precision,
        compile=False,
        workers=workers,
        picture_every=0,
        evaluators=(evaluator,),
    )


def _batch_size(encoder: str, device: torch.device) -> int:
    """Returns the batch size for the memory of a device: a power of two, at least 2."""
    memory = torch.cuda.get_device_properties(device).total_memory / 1e9
    share = min(1.0, memory / _MEMORY)
    return max(2, 2 ** int(_IMAGES[encoder] * share).bit_length() // 2)


def _half(device: torch.device) -> str:
    """Returns the half precision that a device uses by default."""
    return choose_precision("auto", device, None).value


def _noise_task(
    encoder: str, patch_size: int, precision: str, device: torch.device
) -> PretrainTask:
    return on_noise(encoder, patch_size, precision, _batch_size(encoder, device))


def _copies(instruments: Instruments) -> Findings:
    device = instruments.device
    task = _noise_task("resnet50", 112, _half(device), device)
    images = ProceduralImages(images=20_000, size=96, seed=0, split="train")
    reading = dataclasses.replace(task, source=images)
    copies = measure_copies(task, 2, instruments)
    run = measure_end_to_end(reading, 20, 1, instruments)
    return Findings(
        [copies_table(describe(task), copies), end_to_end_table(describe(reading), run)]
    )


def _micro_batches(instruments: Instruments) -> Findings:
    task = with_compilation(on_noise("resnet50", 112, "float32", 256), False)
    precisions = (_half(instruments.device), "float32")
    costs = measure_micro_batches(task, (None, 64, 32), precisions, 1, instruments)
    return Findings([micro_batch_table(describe(task), costs)])


def _loss(instruments: Instruments) -> Findings:
    task = on_noise("resnet50", 112, "float32", 256)
    costs = measure_loss(task, _PATCHES, _LONGEST, 3, instruments)
    return Findings([loss_table(describe(task), costs, _LONGEST)])


def _training(instruments: Instruments) -> Findings:
    workers = max(1, available_cores() // 4)
    task = on_generated_images(20_000, _half(instruments.device), workers)
    training = measure_training(task, _TRAINING_SECONDS, instruments)
    return Findings([training_table(describe(task), training)])


def _resnet18(patch_size: int, instruments: Instruments) -> Findings:
    task = _noise_task("resnet18", patch_size, "float32", instruments.device)
    return compare_steps(task, PRECISIONS, 2, instruments)


def _resnet50(precision: str, instruments: Instruments) -> Findings:
    task = _noise_task("resnet50", 112, precision, instruments.device)
    return compare_steps(task, (precision,), 2, instruments)


def _compile(encoder: str, patch_size: int, precision: str, instruments: Instruments) -> Findings:
    return compile_steps(
        _noise_task(encoder, patch_size, precision, instruments.device), instruments
    )


PARTS: dict[str, Callable[[Instruments], Findings]] = {
    "tests": lambda _: run_tests(TESTS),
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
    """Writes findings as JSON: tables (as data and as Markdown), targets and failure."""
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
    with torch._dynamo.config.patch(recompile_limit=RECOMPILATIONS):
        findings = PARTS[name](device_instruments(torch.device("cuda", 0)))
    write_findings(findings, Path(path))
    return 1 if findings.failure else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
