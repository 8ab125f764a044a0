"""What each pure function of a step costs, by itself, eager and compiled."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from jigclu import collectives, losses
from jigclu.augment import augment
from jigclu.benchmark.stepping import COMPILED_AT_ONCE, random_inputs
from jigclu.benchmark.tables import Table
from jigclu.benchmark.timing import Action, interleaved
from jigclu.jigsaw import global_permutation, stitch_montages
from jigclu.objective import JigsawForward
from jigclu.pretrain import PretrainTask
from jigclu.update import update_where


class _Piece(NamedTuple):
    """A function, what it is called with, and whether it is followed by its gradient."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    with_gradient: bool


def measure_pieces(task: PretrainTask, repetitions: int, device: torch.device) -> Table:
    """Measures the pieces of a step in the task's precision and memory format.

    Args:
      task: whose step it is, on noise.
      repetitions: >= 1.
      device: on which to compute.
    """
    pieces = _pieces(task, device)
    actions: dict[str, Action] = {}
    for name, piece in pieces.items():
        actions[f"{name}, eager"] = _action(piece)
        compiled = torch.compile(piece.function, dynamic=False, fullgraph=True)
        actions[f"{name}, compiled"] = _action(piece._replace(function=compiled))
    with torch._dynamo.config.patch(recompile_limit=COMPILED_AT_ONCE):
        seconds = interleaved(actions, repetitions, device)
    rows = []
    for name in pieces:
        eager, compiled_seconds = seconds[f"{name}, eager"], seconds[f"{name}, compiled"]
        rows.append((name, 1e3 * eager, 1e3 * compiled_seconds, eager / compiled_seconds))
    layout = "channels last" if task.channels_last else "contiguous"
    return Table(
        title="Pieces of a step",
        columns=("piece", "eager, ms", "compiled, ms", "eager / compiled"),
        rows=rows,
        note=(
            f"{task.encoder}, {task.batch_size} images, {task.precision}, {layout}. "
            "The network and the clustering loss with their gradients. Whole steps compile "
            "all of them but the shuffle, and fuse them."
        ),
        panels=(("eager, ms",), ("compiled, ms",)),
    )


def _action(piece: _Piece) -> Action:
    def act() -> None:
        value = piece.function(*piece.arguments)
        if piece.with_gradient:
            value.backward()

    return act


def _pieces(task: PretrainTask, device: torch.device) -> dict[str, _Piece]:
    inputs = random_inputs(task, device)
    model = task.model().to(device)
    forward = JigsawForward(model, task.objective(), task.precision, task.channels_last, None)
    count = len(inputs.permutation)
    permutation = global_permutation(task.seed, 0, count)
    embeddings = functional.normalize(
        torch.randn(task.batch_size, task.grid**2, task.embedding_channels, device=device), dim=2
    ).requires_grad_()
    parameters = [parameter.detach() for parameter in model.parameters()]
    momenta = [torch.zeros_like(parameter) for parameter in parameters]
    rate, finite = torch.zeros((), device=device), torch.tensor(True, device=device)

    def network(montages: Tensor) -> Tensor:
        outputs = forward.apply_model(montages)
        return outputs.embeddings.sum() + outputs.location_logits.float().sum()

    return {
        "shuffle patches": _Piece(
            collectives.exchange_patches,
            (inputs.slots.unflatten(0, (-1, task.grid**2)), permutation),
            False,
        ),
        "augment": _Piece(augment, (inputs.slots, inputs.augmentation, task.augmentation), False),
        "stitch montages": _Piece(stitch_montages, (inputs.slots.float(), task.grid), False),
        "network": _Piece(network, (stitch_montages(inputs.slots.float() / 255, task.grid),), True),
        "clustering loss": _Piece(
            losses.clustering_loss,
            (embeddings, 0, task.batch_size, task.temperature, task.base_temperature),
            True,
        ),
        "update": _Piece(
            update_where,
            (finite, parameters, momenta, momenta, rate, task.optimizer),
            False,
        ),
    }
