"""What each pure function of a step costs, by itself, eager and compiled."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from jigclu.methods.jigsaw import JigsawForward
from jigclu.ops import losses
from jigclu.ops.augment import augment
from jigclu.ops.jigsaw import global_permutation, stitch_montages
from jigclu.ops.optim import update_where
from jigclu.system import collectives
from jigclu.tasks.benchmark.stepping import Variant, random_inputs
from jigclu.tasks.benchmark.tables import Table, megabytes
from jigclu.tasks.benchmark.timing import Action, first_calls, interleaved
from jigclu.tasks.pretrain import PretrainTask


class _Piece(NamedTuple):
    """A function, what it is called with, and whether it is followed by its gradient."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    with_gradient: bool


def measure_pieces(
    task: PretrainTask, variants: list[Variant], repetitions: int, device: torch.device
) -> Table:
    """Measures the pieces of a step; the network in every precision and memory format.

    Args:
      task: whose step it is, on noise.
      variants: kinds of arithmetic; each piece is measured eager and compiled in any case.
      repetitions: >= 1.
      device: on which to compute.
    """
    pieces = _pieces(task, variants, device)
    actions: dict[str, Action] = {}
    for name, piece in pieces.items():
        compiled = torch.compile(piece.function, dynamic=False, fullgraph=True)
        actions[f"{name}, eager"] = _action(piece)
        actions[f"{name}, compiled"] = _action(piece._replace(function=compiled))
    memory = first_calls(actions, device)
    seconds = interleaved(actions, repetitions, device)
    rows = []
    for name in pieces:
        both = f"{name}, eager", f"{name}, compiled"
        slow, fast = (seconds[key].median for key in both)
        rate = task.batch_size / fast
        needed = (megabytes(memory[key]) for key in both)
        rows.append((name, 1e3 * slow, 1e3 * fast, slow / fast, rate, *needed))
    return Table(
        title="Pieces of a step",
        columns=(
            *("piece", "eager, ms", "compiled, ms", "eager / compiled"),
            *("images/s, compiled", "memory eager, MB", "memory compiled, MB"),
        ),
        rows=rows,
        note=(
            f"{task.encoder}, {task.batch_size} images. The network and the clustering loss with "
            "their gradients; the update without the norm of the gradients and the copy to where "
            "parameters are. A compiled step fuses all of them but the shuffle and the update."
        ),
        panels=(("eager, ms",), ("compiled, ms",)),
    )


def _action(piece: _Piece) -> Action:
    def act() -> None:
        value = piece.function(*piece.arguments)
        if piece.with_gradient:
            value.backward()

    return act


def _pieces(task: PretrainTask, variants: list[Variant], device: torch.device) -> dict[str, _Piece]:
    inputs = random_inputs(task, device)
    count = len(inputs.permutation)
    permutation = global_permutation(task.seed, 0, count)
    embeddings = functional.normalize(
        torch.randn(task.batch_size, task.grid**2, task.embedding_channels, device=device), dim=2
    ).requires_grad_()
    parameters = [value.detach() for value in task.model().to(device).parameters()]
    momenta = [torch.zeros_like(parameter) for parameter in parameters]
    rate, finite = torch.zeros((), device=device), torch.tensor(True, device=device)

    montages = stitch_montages(inputs.slots.float() / 255, task.grid)
    networks = {
        f"network, {variant.arithmetic}": _Piece(_network(task, variant, device), (montages,), True)
        for variant in variants
    }
    return {
        "shuffle patches": _Piece(
            collectives.exchange_patches,
            (inputs.slots.unflatten(0, (-1, task.grid**2)), permutation),
            False,
        ),
        "augment": _Piece(augment, (inputs.slots, inputs.augmentation, task.augmentation), False),
        "stitch montages": _Piece(stitch_montages, (inputs.slots.float(), task.grid), False),
        **networks,
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


def _network(
    task: PretrainTask, variant: Variant, device: torch.device
) -> Callable[[Tensor], Tensor]:
    model = task.model().to(device)
    forward = JigsawForward(model, task.objective(), variant.precision, variant.channels_last, None)

    def network(montages: Tensor) -> Tensor:
        outputs = forward.apply_model(montages)
        return outputs.embeddings.sum() + outputs.location_logits.float().sum()

    return network
