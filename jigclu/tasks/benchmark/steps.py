"""Time and memory of whole training steps, in every kind of arithmetic."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from jigclu.system.machine import PRECISIONS
from jigclu.tasks.benchmark.instruments import Instruments
from jigclu.tasks.benchmark.noise_steps import (
    jigsaw_step,
    network_operations,
    published_step,
    supervised_step,
)
from jigclu.tasks.benchmark.timing import Cost, matmul_rate, measure_costs
from jigclu.tasks.benchmark.workload import Arithmetic, Variant, with_variant
from jigclu.tasks.pretrain import PretrainTask

PUBLISHED = Variant(False, Arithmetic("float32", False))


class StepCost(NamedTuple):
    """A measured step.

    kind: "published", "JigClu" or "supervised".
    operations: floating-point operations of its network.
    """

    kind: str
    variant: Variant
    cost: Cost
    operations: int


class StepCosts(NamedTuple):
    """Measured steps.

    matmul_rates: floating-point operations per second of a matrix product, by precision.
    tf32: whether float32 convolutions are computed in TF32.
    """

    steps: Sequence[StepCost]
    matmul_rates: dict[str, float]
    tf32: bool

    def supervised_twin(self, step: StepCost) -> StepCost | None:
        """Returns the supervised step to compare a step of JigClu with; None for other steps."""
        twins = [other for other in self.steps if other.kind == "supervised"]
        if step.kind != "JigClu":
            return None
        return next((twin for twin in twins if twin.variant == step.variant), None)


def measure_steps(
    task: PretrainTask, variants: Sequence[Variant], repetitions: int, instruments: Instruments
) -> StepCosts:
    """Measures steps on noise: one as published, and per variant JigClu's and a supervised one.

    Args:
      task: whose steps are taken.
      variants: of both kinds of steps.
      repetitions: >= 1.
      instruments: of the device.
    """
    builders = {"published": published_step, "JigClu": jigsaw_step, "supervised": supervised_step}
    # The published code has no small stem.
    kinds = [] if task.small_stem else [("published", PUBLISHED)]
    kinds += [(kind, variant) for variant in variants for kind in ("JigClu", "supervised")]
    actions = {
        f"{kind}, {variant}": builders[kind](with_variant(task, variant), instruments.device)
        for kind, variant in kinds
    }
    costs = measure_costs(actions, repetitions, instruments)
    jigclu, supervised = network_operations(task)
    precisions = sorted({variant.arithmetic.precision for _, variant in kinds})
    return StepCosts(
        steps=[
            StepCost(kind, variant, cost, supervised if kind == "supervised" else jigclu)
            for (kind, variant), cost in zip(kinds, costs.values(), strict=True)
        ],
        matmul_rates={
            name: matmul_rate(PRECISIONS[name], repetitions, instruments) for name in precisions
        },
        tf32=_uses_tf32(instruments.device),
    )


def _uses_tf32(device: torch.device) -> bool:
    return device.type == "cuda" and torch.backends.cudnn.allow_tf32
