"""How the clustering loss grows with the batch, and what ranks exchange with their number."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from jigclu import losses
from jigclu.benchmark import published
from jigclu.benchmark.tables import Table
from jigclu.benchmark.timing import free_memory, interleaved, peak_memory
from jigclu.pretrain import PretrainTask

# Matrices of all pairs that the published loss holds at once, about.
_MATRICES = 8


def measure_loss(
    task: PretrainTask, patches: tuple[int, ...], longest: float, device: torch.device
) -> Table:
    """Measures value and gradient of the clustering loss, beside the published one's.

    Args:
      task: of the grid, the channels and the temperatures.
      patches: growing numbers of patches of the global batch, multiples of grid**2.
      longest: seconds; what would take longer, judged by the one before, is left out.
      device: on which to compute.
    """

    def ours(embeddings: Tensor) -> Tensor:
        return losses.clustering_loss(
            embeddings, 0, len(embeddings), task.temperature, task.base_temperature
        )

    def theirs(embeddings: Tensor) -> Tensor:
        flat = embeddings.flatten(0, 1)
        image = torch.arange(len(flat), device=device) // task.grid**2
        return published.clustering_loss(flat, image, task.temperature, task.base_temperature)

    rows = []
    columns = [(_Measured(ours, longest, 0), "ours"), (_Measured(theirs, longest, _MATRICES), "")]
    for count in patches:
        shape = (count // task.grid**2, task.grid**2, task.embedding_channels)
        embeddings = functional.normalize(torch.randn(shape, device=device), dim=2)
        cells = [measured(embeddings, device) for measured, _ in columns]
        rows.append((float(count), *cells[0], *cells[1]))
    return Table(
        title="Clustering loss",
        columns=("patches", "s", "MB", "s, published", "MB, published"),
        rows=rows,
        note=(
            f"Value and gradient, float32, {task.embedding_channels} channels, eager. Left out: "
            f"what would take longer than {longest:g} s, and matrices that do not fit."
        ),
        panels=(("s", "s, published"), ("MB", "MB, published")),
    )


class _Measured:
    """Seconds and MB of a loss and its gradient, while they are expected to be few enough."""

    def __init__(self, loss: Callable[[Tensor], Tensor], longest: float, matrices: int) -> None:
        self._loss = loss
        self._longest = longest
        self._matrices = matrices
        self._last: tuple[int, float] | None = None

    def __call__(
        self, embeddings: Tensor, device: torch.device
    ) -> tuple[float | None, float | None]:
        count = embeddings.shape[0] * embeddings.shape[1]
        if self._last is not None:
            before, seconds = self._last
            if seconds * (count / before) ** 2 > self._longest:
                return None, None
        if 4 * count**2 * self._matrices > free_memory(device):
            return None, None
        embeddings = embeddings.clone().requires_grad_()

        def act() -> None:
            self._loss(embeddings).backward()

        memory = peak_memory(act, device)
        taken = interleaved({"loss": act}, 1, device)["loss"]
        self._last = count, taken
        return taken, None if memory is None else memory / 1e6


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


def published_images_received(task: PretrainTask, ranks: int) -> float:
    """Returns the bytes of images that a rank gets in the published code: all, in float32."""
    slots = task.batch_size * task.grid**2
    return 4.0 * slots * 3 * task.patch_size**2 * (ranks - 1) / ranks


def exchanged(task: PretrainTask, ranks: tuple[int, ...]) -> Table:
    """Computes what ranks exchange; nothing is measured."""
    rows = []
    for count in ranks:
        received = {kind: value / 1e6 for kind, value in bytes_received(task, count).items()}
        theirs = published_images_received(task, count) / 1e6
        rows.append((float(count), *received.values(), sum(received.values()), theirs))
    kinds = tuple(f"{kind}, MB" for kind in bytes_received(task, 1))
    return Table(
        title="Bytes that a rank receives in a step",
        columns=("ranks", *kinds, "all, MB", "published: images, MB"),
        rows=rows,
        note=(
            f"Computed, not measured: {task.batch_size} images of all ranks together. The "
            "published code sends every patch to every rank, in float32."
        ),
        panels=(("patches, MB", "published: images, MB"),),
    )
