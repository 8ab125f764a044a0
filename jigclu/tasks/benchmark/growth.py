"""How the clustering loss grows with the batch, and what ranks exchange with their number."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from jigclu.ops import losses
from jigclu.tasks.benchmark import published
from jigclu.tasks.benchmark.tables import Table, megabytes
from jigclu.tasks.benchmark.timing import (
    Action,
    Seconds,
    each_row,
    free_memory,
    interleaved,
    peak_memory,
)
from jigclu.tasks.pretrain import PretrainTask

Loss = Callable[[Tensor], Tensor]

_MATRICES = 8  # Of logits, that a loss and its gradient hold at once, about.


def measure_loss(
    task: PretrainTask,
    patches: tuple[int, ...],
    longest: float,
    repetitions: int,
    device: torch.device,
) -> Table:
    """Measures value and gradient of the clustering loss, beside the published one's.

    Args:
      task: of the grid, the channels and the temperatures.
      patches: growing numbers of patches of the global batch, multiples of grid**2.
      longest: seconds; what would take longer, judged by the one before, is left out.
      repetitions: >= 1; one where half of `longest` is expected.
      device: on which to compute.
    """
    probe_losses = {"ours": _ours(task), "published": _theirs(task)}
    expected = dict.fromkeys(probe_losses, 0.0)
    rows = []
    counts = zip((patches[0], *patches), patches, strict=False)
    for _, (before, count) in each_row({f"{pair[1]:,} patches": pair for pair in counts}):
        shape = (count // task.grid**2, task.grid**2, task.embedding_channels)
        embeddings = functional.normalize(torch.randn(shape, device=device), dim=2)
        embeddings.requires_grad_()
        growth = (count / before) ** 2
        expected = {name: seconds * growth for name, seconds in expected.items()}
        actions: dict[str, Action] = {
            name: functools.partial(_gradient, loss, embeddings)
            for name, loss in probe_losses.items()
            if expected[name] <= longest and _held(name, count) <= free_memory(device)
        }
        often = repetitions if max(expected.values()) <= longest / 2 else 1
        seconds = interleaved(actions, often, device)
        memory = {name: peak_memory(action, device) for name, action in actions.items()}
        expected |= {name: timed.median for name, timed in seconds.items()}
        rows.append(
            (float(count), *_cells("ours", seconds, memory), *_cells("published", seconds, memory))
        )
    return Table(
        title="Clustering loss",
        columns=("patches", "s", "MB", "s, published", "MB, published"),
        rows=rows,
        note=(
            f"Value and gradient, float32, {task.embedding_channels} channels, eager. Left out: "
            f"what would take longer than {longest:g} s, and what would not fit into memory."
        ),
        panels=(("s", "s, published"), ("MB", "MB, published")),
    )


def _cells(
    name: str, seconds: dict[str, Seconds], memory: dict[str, int | None]
) -> tuple[float | None, float | None]:
    return (seconds[name].median if name in seconds else None, megabytes(memory.get(name)))


def _held(name: str, count: int) -> int:
    """Returns the bytes that a loss needs, about: matrices of float32 over anchors and patches."""
    anchors = count if name == "published" else min(count, losses.ANCHORS_AT_ONCE)
    return 4 * _MATRICES * anchors * count


def _gradient(loss: Loss, embeddings: Tensor) -> None:
    torch.autograd.grad(loss(embeddings), embeddings)


def _ours(task: PretrainTask) -> Loss:
    return lambda embeddings: losses.clustering_loss(
        embeddings, 0, len(embeddings), task.temperature, task.base_temperature
    )


def _theirs(task: PretrainTask) -> Loss:
    def loss(embeddings: Tensor) -> Tensor:
        flat = embeddings.flatten(0, 1)
        image = torch.arange(len(flat), device=flat.device) // task.grid**2
        return published.clustering_loss(flat, image, task.temperature, task.base_temperature)

    return loss


def bytes_received(task: PretrainTask, ranks: int) -> dict[str, float]:
    """Returns the bytes that a rank gets from others in a step, of each kind, as expected.

    Every rank has batch_size / ranks images. A ring is assumed for sums: a tensor comes by
    twice, but for a rank's own share.

    Args:
      task: of the batch, the patches and the network.
      ranks: >= 1.
    """
    with torch.device("meta"):
        model = task.model()
    parameters = sum(value.numel() for value in model.parameters())
    statistics = sum(value.numel() for value in model.buffers())
    slots = task.batch_size * task.grid**2
    others = (ranks - 1) / ranks
    embeddings = 4 * slots * task.embedding_channels * others
    return {
        # A patch shows on any rank alike; its bytes move once.
        "patches": slots / ranks * 3 * task.patch_size**2 * others,
        # To every rank, and their gradients back.
        "embeddings": 2 * embeddings,
        # Means and variances of every rank, in float32, and their gradients back.
        "statistics": 2 * 4 * statistics * (ranks - 1),
        "gradients": 2 * 4 * parameters * others,
    }


def published_patches_received(task: PretrainTask, ranks: int) -> float:
    """Returns the bytes of patches that a rank gets in the published code: all, in float32."""
    slots = task.batch_size * task.grid**2
    return 4.0 * slots * 3 * task.patch_size**2 * (ranks - 1) / ranks


def exchanged(task: PretrainTask, ranks: tuple[int, ...]) -> Table:
    """Computes what ranks exchange; nothing is measured."""
    rows = []
    for count in ranks:
        received = {kind: value / 1e6 for kind, value in bytes_received(task, count).items()}
        theirs = published_patches_received(task, count) / 1e6
        total = sum(received.values())
        rows.append(
            (float(count), *received.values(), total, theirs, total - received["patches"] + theirs)
        )
    kinds = tuple(f"{kind}, MB" for kind in bytes_received(task, 1))
    return Table(
        title="Bytes that a rank receives in a step",
        columns=("ranks", *kinds, "all, MB", "published: patches, MB", "published: all, MB"),
        rows=rows,
        note=(
            f"Computed, not measured: {task.batch_size} images of all ranks together, without "
            "micro_batch_size. The published code sends every patch to every rank, in float32; "
            "the rest is taken to be alike."
        ),
        panels=(("patches, MB", "published: patches, MB"),),
    )
