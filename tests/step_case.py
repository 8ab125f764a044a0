"""Training steps of small networks, and a test case that compares them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from jigclu.methods.forward import MethodForward
from jigclu.methods.method import Method, StepInputs
from jigclu.models.batch_norm import BatchNorm
from jigclu.models.jigclu import JigClu
from jigclu.ops import optim
from jigclu.training.step import TrainingStep
from tests.samples import (
    AUGMENTATION,
    BATCH,
    JIGSAW,
    method_inputs,
    small_model,
    tiny_network,
)
from tests.small_tasks import TaskTestCase

SCALING = optim.LossScaling(initial=1024.0, growth=2.0, backoff=0.5, interval=2)
SGD = optim.SGD(momentum=0.9, nesterov=False, weight_decay=1e-4, decay_norms_and_biases=True)
STEPS = 8  # Of the schedule; the tests take the first ones.


def pretrain_step(
    use_compile: bool = False,
    precision: str = "float32",
    micro_batch_size: int | None = None,
    norm_layer: type[nn.Module] = BatchNorm,
    build: Callable[[type[nn.Module]], nn.Module] = small_model,
    *,
    method: Method = JIGSAW,
    optimizer: optim.Optimizer = SGD,
    device: str = "cpu",
    skip_bad_steps: bool = False,
) -> TrainingStep:
    forward = MethodForward(method, build(norm_layer), precision, True, micro_batch_size, STEPS)
    return TrainingStep(
        forward, optimizer, SCALING, use_compile, torch.device(device), skip_bad_steps
    )


def double_model(norm_layer: type[nn.Module] = BatchNorm) -> JigClu:
    """Builds `small_model` in float64.

    Statistics of few values make gradients of float32's last bit, which is the processor's.
    """
    model = small_model(norm_layer).double()
    model.register_forward_pre_hook(lambda _, inputs: (inputs[0].double(),))
    return model


def train(
    count: int,
    use_compile: bool = False,
    *settings: Any,
    method: Method = JIGSAW,
    device: str = "cpu",
    **named: Any,
) -> dict[str, Any]:
    """Returns metrics of every step, a moment after the first, parameters and buffers at the end.

    After one step from zero the first moment is the averaged gradient (with SGD and decay), times
    a constant. Settings are those of `pretrain_step` after use_compile.
    """
    # Compilations of other tests would count here.
    torch._dynamo.reset()
    step = pretrain_step(use_compile, *settings, method=method, device=device, **named)
    state = step.initial_state()
    metrics, gradients = [], {}
    kinds: set[bool] = set()  # Of steps so far: with single patches, and with montages.
    for index in range(count):
        inputs = method_inputs(method, index, device)
        # Another learning rate and permutation at each step, neither of which may recompile.
        is_known, kinds = inputs.single in kinds, kinds | {inputs.single}
        with torch._dynamo.config.patch(error_on_recompile=is_known):
            state, values, _ = step(state, inputs, 0.03 / (index + 1))
            metrics.append({name: value.item() for name, value in values.items()})
            if index == 0:
                gradients = on_cpu(next(iter(state.moments.values())))
    breaks = sum(torch._dynamo.utils.counters["graph_break"].values())
    return {
        "metrics": metrics,
        "gradients": gradients,
        "parameters": on_cpu(state.parameters),
        "buffers": on_cpu(state.buffers),
        "graph_breaks": breaks,
    }


def train_tiny(method: Method, count: int = 3, **settings: Any) -> dict[str, Any]:
    """Trains a tiny network of a method."""
    return train(count, build=partial(tiny_network, method), method=method, **settings)


def on_cpu(values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.to("cpu", copy=True) for name, value in values.items()}


def explicit_losses(
    model: Callable[[Tensor], Any], inputs: StepInputs
) -> tuple[Tensor, Tensor, Tensor]:
    """The losses with the explicit mask of all pairs, as the method is published."""
    patches = AUGMENTATION(inputs.crops, inputs.augmentation)
    montages = [
        torch.cat([torch.cat([a, b], 2), torch.cat([c, d], 2)], 1)
        for a, b, c, d in patches.unflatten(0, (-1, 4))
    ]
    embeddings, logits, _ = model(torch.stack(montages))
    (permutation,) = inputs.targets
    image, patch = permutation % BATCH, permutation // BATCH
    alike = image[:, None] == image[None]
    not_self = ~torch.eye(len(image), dtype=torch.bool)
    cosines = functional.normalize(embeddings, dim=1) @ functional.normalize(embeddings, dim=1).T
    exponentials = (cosines / 0.3).exp() * not_self
    log_likelihood = cosines / 0.3 - exponentials.sum(1, keepdim=True).log()
    siblings = (alike & not_self).float()
    clustering = -0.3 / 0.07 * ((log_likelihood * siblings).sum(1) / siblings.sum(1)).mean()
    accuracy = (logits.argmax(1) == patch).float().mean()
    return clustering, functional.cross_entropy(logits, patch), accuracy


class StepTestCase(TaskTestCase):
    def assert_metrics_close(
        self, actual: list[dict[str, float]], expected: list[dict[str, float]], relative: float
    ) -> None:
        for ours, theirs in zip(actual, expected, strict=True):
            self.assertEqual(list(ours), list(theirs))
            for name, value in theirs.items():
                self.assertAlmostEqual(ours[name], value, delta=relative * abs(value), msg=name)

    def assert_tensors_equal(self, actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
        for name, value in expected.items():
            self.assertTrue(torch.equal(actual[name], value), name)
