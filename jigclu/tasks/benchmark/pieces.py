"""Time and memory of each pure function of a step, eager and compiled."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from jigclu.methods.forward import MethodForward
from jigclu.ops import losses
from jigclu.ops.jigsaw import global_permutation, stitch_montages
from jigclu.ops.optim import update_where
from jigclu.system import collectives
from jigclu.tasks.benchmark.instruments import Action, Instruments
from jigclu.tasks.benchmark.noise_steps import random_inputs
from jigclu.tasks.benchmark.timing import Cost, measure_costs
from jigclu.tasks.benchmark.workload import Arithmetic, jigsaw
from jigclu.tasks.pretrain import PretrainTask


class Piece(NamedTuple):
    """A function, its arguments, and whether its gradient is computed as well."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    with_gradient: bool


class PieceCost(NamedTuple):
    """A measured function."""

    name: str
    eager: Cost
    compiled: Cost


def measure_pieces(
    task: PretrainTask,
    arithmetics: Sequence[Arithmetic],
    repetitions: int,
    instruments: Instruments,
) -> list[PieceCost]:
    """Measures the pieces of a step on noise.

    Args:
      task: whose step it is.
      arithmetics: of the network, each a piece.
      repetitions: >= 1.
      instruments: of the device.
    """
    pieces = step_pieces(task, arithmetics, instruments.device)
    actions: dict[str, Action] = {}
    for name, piece in pieces.items():
        compiled = torch.compile(piece.function, dynamic=False, fullgraph=True)
        actions[f"{name}, eager"] = _call(piece)
        actions[f"{name}, compiled"] = _call(piece._replace(function=compiled))
    costs = measure_costs(actions, repetitions, instruments)
    return [PieceCost(name, costs[f"{name}, eager"], costs[f"{name}, compiled"]) for name in pieces]


def _call(piece: Piece) -> Action:
    def act() -> None:
        value = piece.function(*piece.arguments)
        if piece.with_gradient:
            value.backward()

    return act


def step_pieces(
    task: PretrainTask, arithmetics: Sequence[Arithmetic], device: torch.device
) -> dict[str, Piece]:
    """Returns the pieces of a step, by name, on noise."""
    inputs = random_inputs(task, device)
    method = jigsaw(task)
    permutation = global_permutation(task.seed, 0, len(inputs.crops))
    embeddings = functional.normalize(
        torch.randn(task.batch_size, method.grid**2, method.embedding_channels, device=device),
        dim=2,
    ).requires_grad_()
    parameters = [value.detach() for value in task.network().to(device).parameters()]
    gradients = [torch.zeros_like(parameter) for parameter in parameters]
    moments = {name: list(gradients) for name in task.optimizer.moment_names}
    updates = torch.tensor(0, device=device)
    rate, finite = torch.zeros((), device=device), torch.tensor(True, device=device)

    montages = stitch_montages(inputs.crops.float() / 255, method.grid)
    networks = {
        f"network, {arithmetic}": Piece(_network(task, arithmetic, device), (montages,), True)
        for arithmetic in arithmetics
    }
    return {
        "shuffle patches": Piece(
            collectives.exchange_patches,
            (inputs.crops.unflatten(0, (-1, method.grid**2)), permutation),
            False,
        ),
        "augment": Piece(method.augmentation, (inputs.crops, inputs.augmentation), False),
        "stitch montages": Piece(stitch_montages, (inputs.crops.float(), method.grid), False),
        **networks,
        "clustering loss": Piece(
            losses.clustering_loss,
            (embeddings, 0, task.batch_size, method.temperature, method.base_temperature),
            True,
        ),
        "update": Piece(
            update_where,
            (finite, parameters, gradients, moments, updates, rate, task.optimizer),
            False,
        ),
    }


def _network(
    task: PretrainTask, arithmetic: Arithmetic, device: torch.device
) -> Callable[[Tensor], Tensor]:
    forward = MethodForward(
        task.method, task.network().to(device), *arithmetic, None, total_steps=1
    )

    def network(montages: Tensor) -> Tensor:
        outputs = forward.apply_network(montages)
        return outputs.embeddings.sum() + outputs.location_logits.float().sum()

    return network
