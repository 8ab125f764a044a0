"""A training step of several linear probes at once, on any number of ranks."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from jigclu.ops import probes
from jigclu.ops.probes import Probes
from jigclu.system import collectives
from jigclu.training.state import TrainState


def to_probes(state: TrainState) -> Probes:
    """Returns the probes of a state."""
    return Probes(state.parameters["fc.weight"], state.parameters["fc.bias"])


def initial_state(initial: Probes, buffers: Mapping[str, Tensor]) -> TrainState:
    """Returns the state before the first step.

    Args:
      initial: probes, on the device on which to train.
      buffers: tensors to keep in checkpoints, such as those of the encoder.
    """
    parameters = {"fc.weight": initial.weight, "fc.bias": initial.bias}
    return TrainState(
        step=0,
        parameters=parameters,
        buffers=dict(buffers),
        moments={"momentum": {name: torch.zeros_like(value) for name, value in parameters.items()}},
        updates=torch.zeros((), dtype=torch.int64),
        loss_scale=torch.ones(()),
        good_steps=torch.zeros((), dtype=torch.int64),
    )


class ProbeStep:
    """Trains every probe with its own learning rate and weight decay by SGD with momentum."""

    def __init__(
        self, settings: Sequence[tuple[float, float]], momentum: float, device: torch.device
    ) -> None:
        """Keeps the settings on the device.

        Args:
          settings: learning rate and weight decay of each probe.
          momentum: of all probes, in [0, 1).
          device: of features and probes.
        """
        rates, decays = zip(*settings, strict=True)
        self._learning_rates = torch.tensor(rates, device=device)
        self._weight_decays = torch.tensor(decays, device=device)
        self._momentum = momentum

    def __call__(
        self,
        state: TrainState,
        features: Tensor,
        labels: Tensor,
        batch_size: int,
        factor: float,
    ) -> tuple[TrainState, dict[str, Tensor]]:
        """Takes one step; parameters and momentum change in place.

        Args:
          state: of `initial_state` or an earlier step.
          features: float32 [local_batch, channels] of this rank; the batch may be empty.
          labels: int64 [local_batch].
          batch_size: images of the global batch.
          factor: of all learning rates.

        Returns:
          The next state, and the loss and accuracy of the best probe, float32 [], over the
          global batch.
        """
        current = to_probes(state)
        momenta = Probes(*state.moments["momentum"].values())
        trained = Probes(*(value.detach().requires_grad_() for value in current))
        logits = probes.probe_logits(trained, features)
        losses = probes.probe_losses(logits, labels).sum(1) / batch_size
        gradients = torch.autograd.grad(losses.sum(), trained)
        with torch.no_grad():
            correct = (logits.argmax(2) == labels).sum(1) / batch_size
            summed = Probes(*map(collectives.sum_over_ranks, gradients))
            metrics = collectives.sum_over_ranks(torch.stack([losses.detach(), correct]))
            moved, new_momenta = probes.step(
                current,
                summed,
                momenta,
                self._learning_rates * factor,
                self._weight_decays,
                self._momentum,
            )
            for old, new in zip((*current, *momenta), (*moved, *new_momenta), strict=True):
                old.copy_(new)
        # Probes with a large learning rate may diverge, which a sweep is meant to find out.
        loss = metrics[0].nan_to_num(nan=torch.inf).min()
        return state._replace(step=state.step + 1), {"loss": loss, "accuracy": metrics[1].max()}
