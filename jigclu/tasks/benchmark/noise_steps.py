"""Training steps on random images, so that nothing is read, and the operations they take."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from jigclu.methods.classification import ClassificationInputs, ClassifierForward
from jigclu.methods.method import StepInputs
from jigclu.models.classifier import Classifier
from jigclu.tasks.benchmark.instruments import Action
from jigclu.tasks.benchmark.published import PublishedStep
from jigclu.tasks.benchmark.workload import describe, jigsaw
from jigclu.tasks.pretrain import PretrainTask
from jigclu.training.step import TrainingStep

_CLASSES = 1000  # Of the supervised step, as in ImageNet.


def random_inputs(task: PretrainTask, device: torch.device) -> StepInputs:
    """Returns the inputs of a step for a whole batch on one device, with patches of noise."""
    method = jigsaw(task)
    size = method.patch_size
    shape = (task.batch_size, method.crops_per_image, 3, size, size)
    crops = torch.randint(0, 256, shape, dtype=torch.uint8).to(device)
    return method.step_inputs(crops, task.seed, 0)


def jigsaw_step(task: PretrainTask, device: torch.device) -> Action:
    """Returns a pre-training step on noise, with a learning rate of 0."""
    return functools.partial(jigsaw_stepper(task, device), random_inputs(task, device))


def jigsaw_stepper(task: PretrainTask, device: torch.device) -> Callable[[StepInputs], None]:
    """Returns a function that takes a pre-training step with a learning rate of 0."""
    return _stepper(task.training_step(device, task.choose_machine(None)))


def supervised_step(task: PretrainTask, device: torch.device) -> Action:
    """Returns a classification step of the same encoder, on as many images as montages."""
    side, augmentation = describe(task).montage_size, task.method.augmentation
    machine = task.choose_machine(None)
    forward = ClassifierForward(
        _classifier(task),
        tuple(augmentation.mean),
        tuple(augmentation.std),
        machine.precision.value,
        machine.channels_last.value,
    )
    scaling = task.compute.loss_scaling
    step = TrainingStep(forward, task.optimizer, scaling, machine.compile.value, device)
    images = torch.randint(0, 256, (task.batch_size, 3, side, side), dtype=torch.uint8)
    labels = torch.randint(0, _CLASSES, (task.batch_size,))
    inputs = ClassificationInputs(images.to(device), labels.to(device))
    return functools.partial(_stepper(step), inputs)


def published_step(task: PretrainTask, device: torch.device) -> Action:
    """Returns a step in the published arithmetic, on patches that are already augmented."""
    method = jigsaw(task)
    step = PublishedStep(
        task.encoder,
        method.grid,
        method.embedding_channels,
        method.temperature,
        method.base_temperature,
        device,
    )
    inputs = random_inputs(task, device)
    patches = torch.randn(inputs.crops.shape, device=device)
    return lambda: step(patches, *inputs.targets)


def _classifier(task: PretrainTask) -> Classifier:
    return Classifier(task.new_encoder(), _CLASSES)


def _stepper(step: TrainingStep) -> Callable[[StepInputs | ClassificationInputs], None]:
    state = step.initial_state()

    def take(inputs: StepInputs | ClassificationInputs) -> None:
        nonlocal state
        state, _, _ = step(state, inputs, 0.0)

    return take


class Operations(NamedTuple):
    """Floating-point operations of the networks of a step, forward and backward."""

    jigclu: int
    supervised: int


def network_operations(task: PretrainTask) -> Operations:
    """Counts the operations of the networks of a step, without augmentation and losses."""
    side = describe(task).montage_size
    with torch.device("meta"):
        images = torch.empty(task.batch_size, 3, side, side)
        jigclu, classifier = task.network(), _classifier(task)
        return Operations(
            jigclu=_count_operations(lambda: sum(value.sum() for value in jigclu(images))),
            supervised=_count_operations(lambda: classifier(images).sum()),
        )


def _count_operations(loss: Callable[[], Tensor | int]) -> int:
    with FlopCounterMode(display=False) as counter:
        value = loss()
        assert isinstance(value, Tensor)
        value.backward()
    return int(counter.get_total_flops())


class NetworkSize(NamedTuple):
    """Values of the pre-training network: of its parameters, and of its running statistics."""

    parameters: int
    statistics: int


def network_size(task: PretrainTask) -> NetworkSize:
    """Counts the values of the pre-training network."""
    with torch.device("meta"):
        model = task.network()
    return NetworkSize(
        parameters=sum(value.numel() for value in model.parameters()),
        statistics=sum(value.numel() for value in model.buffers()),
    )
