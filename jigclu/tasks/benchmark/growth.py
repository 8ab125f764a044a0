"""Time and memory of the clustering loss as the batch grows, compared with the published one."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from jigclu.ops import losses
from jigclu.tasks.benchmark import published
from jigclu.tasks.benchmark.instruments import Action, Instruments
from jigclu.tasks.benchmark.timing import Cost, measure_costs, show_rows
from jigclu.tasks.benchmark.workload import jigsaw
from jigclu.tasks.pretrain import PretrainTask

Loss = Callable[[Tensor], Tensor]

_MATRICES = 8  # Of logits, that a loss and its gradient hold at once, approximately.


class LossCost(NamedTuple):
    """Cost of value and gradient for a number of patches; None if left out."""

    patches: int
    ours: Cost | None
    published: Cost | None


def measure_loss(
    task: PretrainTask,
    patches: Sequence[int],
    longest: float,
    repetitions: int,
    instruments: Instruments,
) -> list[LossCost]:
    """Measures value and gradient of the clustering loss, and of the published one.

    Losses that would not fit into memory are left out.

    Args:
      task: defines the grid, the channels and the temperatures.
      patches: growing numbers of patches of the global batch, multiples of grid**2.
      longest: seconds; a loss expected to take longer, from the size before, is left out.
      repetitions: >= 1; a single one if more than half of `longest` is expected.
      instruments: of the device.
    """
    measured = {"ours": _our_loss(task), "published": _published_loss(task)}
    expected = dict.fromkeys(measured, 0.0)
    before = patches[0]
    found = []
    for _, count in show_rows({f"{count:,} patches": count for count in patches}):
        growth = (count / before) ** 2
        expected = {name: seconds * growth for name, seconds in expected.items()}
        embeddings = _random_embeddings(task, count, instruments.device)
        actions: dict[str, Action] = {
            name: functools.partial(_compute_gradient, loss, embeddings)
            for name, loss in measured.items()
            if expected[name] <= longest and _loss_bytes(name, count) <= instruments.free_memory()
        }
        often = repetitions if max(expected.values()) <= longest / 2 else 1
        costs = measure_costs(actions, often, instruments)
        expected |= {name: cost.seconds.median for name, cost in costs.items()}
        found.append(LossCost(count, costs.get("ours"), costs.get("published")))
        before = count
    return found


def _random_embeddings(task: PretrainTask, patches: int, device: torch.device) -> Tensor:
    method = jigsaw(task)
    shape = (patches // method.grid**2, method.grid**2, method.embedding_channels)
    return functional.normalize(torch.randn(shape, device=device), dim=2).requires_grad_()


def _loss_bytes(name: str, patches: int) -> int:
    """Returns the bytes that a loss needs, approximately: float32 matrices [anchors, patches]."""
    anchors = patches if name == "published" else min(patches, losses.ANCHORS_AT_ONCE)
    return 4 * _MATRICES * anchors * patches


def _compute_gradient(loss: Loss, embeddings: Tensor) -> None:
    torch.autograd.grad(loss(embeddings), embeddings)


def _our_loss(task: PretrainTask) -> Loss:
    method = jigsaw(task)
    return lambda embeddings: losses.clustering_loss(
        embeddings, 0, len(embeddings), method.temperature, method.base_temperature
    )


def _published_loss(task: PretrainTask) -> Loss:
    method = jigsaw(task)

    def loss(embeddings: Tensor) -> Tensor:
        flat = embeddings.flatten(0, 1)
        image = torch.arange(len(flat), device=flat.device) // method.grid**2
        return published.clustering_loss(flat, image, method.temperature, method.base_temperature)

    return loss
