"""What a training step costs: its pieces, and the whole of it in every kind of arithmetic."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from jigclu.methods.classification import ClassificationInputs, ClassifierForward
from jigclu.methods.jigsaw import StepInputs
from jigclu.models.classifier import Classifier
from jigclu.ops import augment, jigsaw
from jigclu.system.machine import PRECISIONS
from jigclu.tasks.benchmark.published import PublishedStep
from jigclu.tasks.benchmark.tables import Table, megabytes, spread
from jigclu.tasks.benchmark.timing import Action, Seconds, first_calls, interleaved, matmul_rate
from jigclu.tasks.pretrain import PretrainTask
from jigclu.training.step import TrainingStep

_CLASSES = 1000  # Of the supervised step, as in ImageNet.


class Variant(NamedTuple):
    """A kind of arithmetic; the fields are those of a training task."""

    compile: bool
    precision: str
    channels_last: bool

    @property
    def arithmetic(self) -> str:
        """Precision and memory format, as tables name them."""
        return f"{self.precision}, {'channels last' if self.channels_last else 'contiguous'}"

    def __str__(self) -> str:
        return f"{'compiled' if self.compile else 'eager'}, {self.arithmetic}"


def random_inputs(task: PretrainTask, device: torch.device) -> StepInputs:
    """Returns what a step takes, of patches of noise, for a whole batch on one device."""
    count = task.batch_size * task.grid**2
    size = task.patch_size
    permutation = jigsaw.global_permutation(task.seed, 0, count)
    drawn = augment.draw_augmentation(task.augmentation, task.seed, 0, count)
    return StepInputs(
        slots=torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8).to(device),
        augmentation=augment.select_rows(drawn, permutation, device),
        permutation=permutation.to(device),
    )


def jigsaw_step(task: PretrainTask, device: torch.device) -> Action:
    """Returns a step of pre-training on noise; its learning rate is 0."""
    return functools.partial(jigsaw_stepper(task, device), random_inputs(task, device))


def jigsaw_stepper(task: PretrainTask, device: torch.device) -> Callable[[StepInputs], None]:
    """Returns a function that takes a step of pre-training; its learning rate is 0."""
    return _stepper(task.training_step(task.model(), device, task.choose_machine(None)))


def supervised_step(task: PretrainTask, device: torch.device) -> Action:
    """Returns a step of plain classification: the same encoder, as many images as montages."""
    side = task.grid * task.patch_size
    machine = task.choose_machine(None)
    forward = ClassifierForward(
        _classifier(task),
        tuple(task.augmentation.mean),
        tuple(task.augmentation.std),
        machine.precision.value,
        machine.channels_last.value,
    )
    step = TrainingStep(forward, task.optimizer, task.loss_scaling, machine.compile.value, device)
    images = torch.randint(0, 256, (task.batch_size, 3, side, side), dtype=torch.uint8)
    labels = torch.randint(0, _CLASSES, (task.batch_size,))
    inputs = ClassificationInputs(images.to(device), labels.to(device))
    return functools.partial(_stepper(step), inputs)


def published_step(task: PretrainTask, device: torch.device) -> Action:
    """Returns a step in the published arithmetic, on patches that are augmented already."""
    step = PublishedStep(
        task.encoder,
        task.grid,
        task.embedding_channels,
        task.temperature,
        task.base_temperature,
        device,
    )
    inputs = random_inputs(task, device)
    patches = torch.randn(inputs.slots.shape, device=device)
    return lambda: step(patches, inputs.permutation)


def _classifier(task: PretrainTask) -> Classifier:
    return Classifier(task.model().encoder, _CLASSES)


def _stepper(step: TrainingStep) -> Callable[[StepInputs | ClassificationInputs], None]:
    state = step.initial_state()

    def take(inputs: StepInputs | ClassificationInputs) -> None:
        nonlocal state
        state, _ = step(state, inputs, 0.0)

    return take


def network_operations(task: PretrainTask) -> tuple[int, int]:
    """Counts the floating-point operations of the networks of a step, forward and backward.

    Returns:
      Of pre-training and of plain classification; those of augmentation and losses are left out.
    """
    side = task.grid * task.patch_size
    with torch.device("meta"):
        images = torch.empty(task.batch_size, 3, side, side)
        jigclu, classifier = task.model(), _classifier(task)
        return (
            _operations(lambda: sum(value.sum() for value in jigclu(images))),
            _operations(lambda: classifier(images).sum()),
        )


def _operations(loss: Callable[[], Tensor | int]) -> int:
    with FlopCounterMode(display=False) as counter:
        value = loss()
        assert isinstance(value, Tensor)
        value.backward()
    return int(counter.get_total_flops())


def measure_steps(
    task: PretrainTask, variants: list[Variant], repetitions: int, device: torch.device
) -> Table:
    """Measures whole steps of pre-training and of classification, and a published one.

    Args:
      task: whose steps are taken, on noise.
      variants: kinds of arithmetic.
      repetitions: >= 1.
      device: on which to compute.
    """
    actions = _steps(task, variants, device)
    memory = first_calls(actions, device)
    seconds = interleaved(actions, repetitions, device)
    precisions = {"float32", *(variant.precision for variant in variants)}
    peak = {name: matmul_rate(device, PRECISIONS[name], repetitions) for name in precisions}
    rates = ", ".join(f"{name} {rate / 1e12:.3g}" for name, rate in sorted(peak.items()))
    return Table(
        title="Training step",
        columns=(
            "step",
            "images/s",
            "least to most",
            "against the first",
            "time of the supervised one's",
            "memory, MB",
            "% of the product's rate",
        ),
        rows=[
            (_in_full(str(name), device), *cells)
            for name, *cells in _rows(task, seconds, memory, peak)
        ],
        note=(
            f"{task.encoder}, {task.batch_size} images (montages) of "
            f"{task.grid * task.patch_size} pixels. Memory is what a step needs beyond parameters "
            "and momentum. The last column is the arithmetic of the network, forward and backward, "
            f"against that of a large matrix product of its precision: {rates} TFLOP/s. Steps of "
            "JigClu augment; the published one gets its patches augmented."
        ),
        panels=(("images/s",), ("memory, MB",)),
    )


def _in_full(name: str, device: torch.device) -> str:
    """Returns a step's name that says whether float32 is TF32, torch's default on a GPU."""
    if device.type != "cuda" or not torch.backends.cudnn.allow_tf32:
        return name
    if name == "published":
        return "published, float32 (TF32 convolutions)"
    return name.replace("float32", "float32 (TF32 convolutions)")


def _steps(task: PretrainTask, variants: list[Variant], device: torch.device) -> dict[str, Action]:
    # A small stem was not published.
    steps = {} if task.small_stem else {"published": published_step(task, device)}
    for variant in variants:
        of_variant = dataclasses.replace(task, **variant._asdict())
        steps[f"JigClu, {variant}"] = jigsaw_step(of_variant, device)
        steps[f"supervised, {variant}"] = supervised_step(of_variant, device)
    return steps


def _rows(
    task: PretrainTask,
    seconds: Mapping[str, Seconds],
    memory: Mapping[str, int | None],
    peak: Mapping[str, float],
) -> list[tuple[str | float | None, ...]]:
    """Returns a row a step: of its seconds, its bytes, and its share of the peak of arithmetic."""
    jigclu, supervised = network_operations(task)
    first = next(iter(seconds.values())).median
    rows: list[tuple[str | float | None, ...]] = []
    for name, taken in seconds.items():
        kind, *arithmetic = name.split(", ")
        precision = arithmetic[1] if arithmetic else "float32"
        operations = supervised if kind == "supervised" else jigclu
        twin = seconds.get(", ".join(["supervised", *arithmetic]))
        rows.append(
            (
                name,
                task.batch_size / taken.median,
                spread(taken, task.batch_size),
                first / taken.median,
                taken.median / twin.median if kind == "JigClu" and twin else None,
                megabytes(memory[name]),
                100 * operations / taken.median / peak[precision],
            )
        )
    return rows


def variants_of(
    compile: tuple[bool, ...], precisions: tuple[str, ...], channels_last: tuple[bool, ...]
) -> list[Variant]:
    """Returns all combinations."""
    return [Variant(*chosen) for chosen in itertools.product(compile, precisions, channels_last)]
