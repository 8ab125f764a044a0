"""Steps never wait for the device: no tensor of a step is read by the host."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from absl.testing import absltest, parameterized
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from jigclu.methods.classification import ClassificationInputs, ClassifierForward
from jigclu.methods.forward import Forward, MethodForward
from jigclu.methods.method import Method
from jigclu.models.classifier import Classifier
from jigclu.ops import optim
from jigclu.ops.probes import initial_probes
from jigclu.training.averaged_encoder import AveragedEncoder
from jigclu.training.probe_step import ProbeStep, initial_state
from jigclu.training.step import TrainingStep
from tests.samples import (
    ADAMW,
    BYOL,
    EXTENDED,
    JIGSAW,
    MOCO,
    SIMCLR,
    SIMSIAM,
    TinyEncoder,
    method_inputs,
    noise,
)

# Methods of tensors that read values on the host.
_READS = {
    *("item", "tolist", "numpy", "cpu", "__float__", "__int__", "__bool__", "__index__"),
    *("__array__", "__contains__", "__format__", "__repr__", "nonzero", "unique"),
}
# Operations whose result has a size that only the host can know, or that return a number.
_OPERATIONS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal", "is_nonzero"}


class HostReadError(AssertionError):
    """A step read a tensor on the host."""


class _RejectReads(TorchFunctionMode):
    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if getattr(function, "__name__", "") in _READS:
            raise HostReadError(f"a step calls {function.__name__}")
        return function(*args, **(kwargs or {}))


class _RejectOperations(TorchDispatchMode):
    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = function.overloadpacket.__name__
        # A mask selects a number of elements that only the host can know.
        by_mask = name.startswith("index") and any(
            index is not None and index.dtype == torch.bool
            for index in (args[1] if isinstance(args[1], (list, tuple)) else ())
        )
        if name in _OPERATIONS or by_mask:
            raise HostReadError(f"a step runs {function}")
        return function(*args, **(kwargs or {}))


@contextmanager
def no_host_reads() -> Iterator[None]:
    """Raises HostReadError if the block reads a tensor on the host, as CUDA would have to wait."""
    with _RejectReads(), _RejectOperations():
        yield


LARS = optim.LARS(momentum=0.9, weight_decay=1e-4, trust_coefficient=0.001)


def build_step(forward: Forward, optimizer: optim.Optimizer = LARS) -> TrainingStep:
    scaling = optim.LossScaling(initial=8.0, growth=2.0, backoff=0.5, interval=2)
    return TrainingStep(forward, optimizer, scaling, False, torch.device("cpu"))


class GuardTest(parameterized.TestCase):
    """The guard sees what it is there to see."""

    @parameterized.parameters(
        lambda x: x.sum().item(),
        lambda x: x.tolist(),
        lambda x: float(x.sum()),
        lambda x: int(x.sum()),
        lambda x: bool(x.sum() > 0),
        lambda x: x.cpu(),
        lambda x: x.numpy(),
        lambda x: x[x > 0],
        lambda x: torch.nonzero(x),
        lambda x: torch.equal(x, x),
        lambda x: f"{x.sum():.2f}",
    )
    def test_reads_are_rejected(self, read: Callable[[Tensor], object]) -> None:
        with self.assertRaises(HostReadError), no_host_reads():
            read(torch.ones(3))

    def test_reads_in_a_backward_pass_are_rejected(self) -> None:
        value = torch.ones(3, requires_grad=True)
        value.register_hook(lambda gradient: gradient * gradient.sum().item())
        with self.assertRaises(HostReadError), no_host_reads():
            value.sum().backward()

    def test_arithmetic_is_accepted(self) -> None:
        with no_host_reads():
            torch.where(torch.ones(3) > 0, 1.0, 2.0).to("cpu", non_blocking=True).sum()


class HostSyncTest(parameterized.TestCase):
    @parameterized.product(
        method=[JIGSAW, EXTENDED, SIMCLR, MOCO, SIMSIAM, BYOL],
        precision=["float32", "float16"],
        micro_batch_size=[None, 2],
    )
    def test_steps_of_methods_never_read_tensors(
        self, method: Method, precision: str, micro_batch_size: int | None
    ) -> None:
        network: nn.Module = method.network(TinyEncoder())
        step = build_step(MethodForward(method, network, precision, True, micro_batch_size, 2))
        state = step.initial_state()
        for number in range(2):
            inputs = method_inputs(method, number)
            with no_host_reads():
                state, _, _ = step(state, inputs, 0.1)
        self.assertEqual(state.step, 2)

    @parameterized.parameters(
        LARS, ADAMW, optim.PerParameterRates(optimizer=ADAMW, factors=(1.0, 1.0, 1.0, 10.0))
    )
    def test_steps_of_classification_never_read_tensors(self, optimizer: optim.Optimizer) -> None:
        classifier = Classifier(TinyEncoder(), 3)
        mean, std = (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)
        step = build_step(ClassifierForward(classifier, mean, std, "float32", True), optimizer)
        inputs = ClassificationInputs(noise(4, 3, 16, 16), torch.tensor([0, 1, 2, 0]))
        with no_host_reads():
            state, _, _ = step(step.initial_state(), inputs, 0.1)
        self.assertEqual(state.step, 1)

    def test_averages_never_read_tensors(self) -> None:
        average = AveragedEncoder(TinyEncoder(), 0.999)
        with no_host_reads():
            average.update(0)

    def test_steps_of_probes_never_read_tensors(self) -> None:
        step = ProbeStep([(0.1, 0.0), (0.2, 0.1)], 0.9, torch.device("cpu"))
        state = initial_state(initial_probes(2, 3, 8), {})
        features, labels = torch.ones(4, 8), torch.tensor([0, 1, 2, 0])
        with no_host_reads():
            state, _ = step(state, features, labels, 4, 1.0)
        self.assertEqual(state.step, 1)


if __name__ == "__main__":
    absltest.main()
