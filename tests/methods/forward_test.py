"""Methods with state: a momentum teacher and a queue are trained, saved and equal on all ranks."""

from typing import Any, NamedTuple

import torch
from absl.testing import absltest
from torch import Tensor, nn

from jigclu.methods.forward import MethodForward
from jigclu.methods.simclr import SimClr
from jigclu.ops import optim
from jigclu.system import collectives
from jigclu.training.step import TrainingStep
from tests.ranks import run_on_ranks
from tests.samples import SIMCLR, TinyEncoder, method_inputs
from tests.small_tasks import TaskTestCase

MOMENTUM, QUEUE = 0.75, 32


class TeacherOutputs(NamedTuple):
    student: Tensor
    teacher: Tensor
    cosines: Tensor


class TeacherNetwork(nn.Module):
    """A student, a momentum teacher of its encoder, and a queue of the teacher's features."""

    queue: Tensor

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = TinyEncoder()
        self.teacher = TinyEncoder().requires_grad_(False)
        self.teacher.load_state_dict(self.encoder.state_dict())
        self.register_buffer("queue", torch.zeros(QUEUE, self.encoder.channels))

    def forward(self, images: Tensor) -> TeacherOutputs:
        with torch.no_grad():
            teacher = self.teacher(images).mean((2, 3))
        student = self.encoder(images).mean((2, 3))
        return TeacherOutputs(student, teacher, student @ self.queue.t())


class TeacherLosses(NamedTuple):
    loss: Tensor


class Teacher(SimClr):
    """Pulls the student's features to the teacher's, and away from those of the queue."""

    def losses(self, outputs: tuple[Tensor, ...], targets: tuple[Tensor, ...]) -> Any:
        student, teacher, cosines = outputs
        return TeacherLosses((student - teacher.detach()).square().mean() + cosines.mean())

    def update_state(
        self, network: nn.Module, outputs: tuple[Tensor, ...], step: int, total_steps: int
    ) -> None:
        assert isinstance(network, TeacherNetwork)
        keys = collectives.gather(outputs[1], dim=0)
        network.queue.copy_(torch.cat([keys, network.queue])[:QUEUE])
        for teacher, student in zip(
            network.teacher.parameters(), network.encoder.parameters(), strict=True
        ):
            teacher.lerp_(student, 1 - MOMENTUM)


def train_teacher(
    steps: int, use_compile: bool = False, micro_batch_size: int | None = None
) -> dict[str, dict[str, Tensor]]:
    torch._dynamo.reset()
    network = TeacherNetwork()
    method = Teacher(**{name: getattr(SIMCLR, name) for name in SIMCLR.__dataclass_fields__})
    forward = MethodForward(method, network, "float32", True, micro_batch_size, steps)
    step = TrainingStep(
        forward,
        optim.SGD(momentum=0.0, nesterov=False, weight_decay=0.0, decay_norms_and_biases=True),
        optim.LossScaling(initial=1.0, growth=2.0, backoff=0.5, interval=2),
        use_compile,
        torch.device("cpu"),
    )
    state = step.initial_state()
    for number in range(steps):
        state, _, _ = step(state, method_inputs(SIMCLR, number), 0.5)
    return {
        "parameters": {name: value.clone() for name, value in state.parameters.items()},
        "buffers": {name: value.clone() for name, value in state.buffers.items()},
    }


class MethodStateTest(TaskTestCase):
    def test_teacher_follows_the_student_by_its_momentum(self) -> None:
        before, after = train_teacher(2), train_teacher(3)
        self.assertNotIn("teacher.conv1.weight", after["parameters"])
        student = after["parameters"]["encoder.conv1.weight"]
        old = before["buffers"]["teacher.conv1.weight"]
        self.assertFalse(torch.equal(student, old))
        expected = MOMENTUM * old + (1 - MOMENTUM) * student
        torch.testing.assert_close(after["buffers"]["teacher.conv1.weight"], expected)

    def test_queue_holds_the_features_of_all_ranks(self) -> None:
        queue = train_teacher(3)["buffers"]["queue"]
        self.assertEqual(int((queue.abs().sum(1) > 0).sum()), 3 * 8)

    def test_state_is_the_same_on_two_ranks(self) -> None:
        alone = train_teacher(3)
        for rank in run_on_ranks(train_teacher, 2, 3):
            for name in ("parameters", "buffers"):
                self.assert_tensors_close(rank[name], alone[name], 1e-4)

    def test_compiled_state_equals_eager_state(self) -> None:
        eager, compiled = train_teacher(2), train_teacher(2, use_compile=True)
        for name in ("parameters", "buffers"):
            self.assert_tensors_close(compiled[name], eager[name], 1e-4)


if __name__ == "__main__":
    absltest.main()
