"""Self-supervised pre-training, by any method."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from absl import logging
from torch import Tensor, nn

from jigclu.data.loader import Batch, crop_loader
from jigclu.data.prefetch import prefetch_to_device
from jigclu.methods.forward import MethodForward
from jigclu.methods.method import DrawsPredictions, Method, StepInputs
from jigclu.models.encoder import Encoder
from jigclu.ops.optim import Optimizer, check_learning_rate
from jigclu.system import collectives, progress, seeds, signals
from jigclu.system.device import launched_processes
from jigclu.system.errors import UserError, check
from jigclu.system.machine import PRECISIONS, Machine
from jigclu.system.on_resume import Free, Initial, Logged
from jigclu.training import online_probe
from jigclu.training.alarms import Alarms
from jigclu.training.averaged_encoder import AveragedEncoder
from jigclu.training.bad_samples import Unreadable, recording
from jigclu.training.evaluation_report import EvaluationReport
from jigclu.training.initial_weights import load_into
from jigclu.training.loop import Evaluation, RunResult, train
from jigclu.training.monitor import Monitor
from jigclu.training.online_probe import Labels, OnlineProbe, RunningProbe
from jigclu.training.process import Process
from jigclu.training.resume import History
from jigclu.training.state import TrainState
from jigclu.training.step import StepResult, TrainingStep
from jigclu.training.task import TrainingTask


class Evaluator(Protocol):
    """Scores the encoder during pre-training, such as `KnnEvaluator` or `ProbeEvaluator`."""

    @property
    def every(self) -> int:
        """Epochs between evaluations; 0 for none between the first and the last step."""

    def __call__(
        self, encoder: Encoder, precision: torch.dtype, report: EvaluationReport | None = None
    ) -> dict[str, float]:
        """Returns scores by name, each with `<name>_chance`, the score of guessing.

        Every rank calls it with the same encoder, whose mode stays as it was. The report may
        receive pictures.
        """


@dataclass(frozen=True, kw_only=True)
class PretrainTask(TrainingTask):
    """Settings of pre-training; gin/base/pretrain.gin describes each of them.

    Attributes:
      method: self-supervised method, such as `Jigsaw` or `Moco`.
      micro_batch_size: images per device that the network sees at once; None for all.
      optimizer: of the trainable parameters.
      learning_rate: peak of the schedule.
      average_momentum: of the average of the encoder, per step; 0 for none.
      evaluators: of the encoder or its average, each with its own period.
      online_probe: classifier that is trained alongside on labels of the source; None for none.
    """

    title: ClassVar = "pre-training"

    init_from: Initial[str | None]
    method: Method
    micro_batch_size: Logged[int | None]
    optimizer: Optimizer
    learning_rate: Logged[float]
    average_momentum: float
    evaluators: Free[tuple[Evaluator, ...]]
    online_probe: OnlineProbe | None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_learning_rate(self.learning_rate)
        momentum = self.average_momentum
        check(0 <= momentum < 1, "average_momentum", momentum, "in [0, 1), usually 0.999")
        if self.online_probe is not None and self.source.labels is None:
            raise UserError("source has no labels, which online_probe needs: bind it to None")

    def alarms(self) -> Alarms:
        """Returns what watches the measures of a new run."""
        return Alarms(self.total_steps, self.method.loss_may_rise)

    @property
    def references(self) -> dict[str, float]:
        """Chance levels and floors of losses and measures."""
        chance, floor = self.method.chance(self.batch_size), self.method.floor(self.batch_size)
        if self.online_probe is not None:
            counts = torch.tensor(self.source.labels).bincount()
            chance |= {
                online_probe.LOSS: math.log(len(self.source.classes)),
                online_probe.ACCURACY: counts.max().item() / len(self.source),
            }
        return {f"{name}_chance": value for name, value in chance.items()} | {
            f"{name}_floor": value for name, value in floor.items()
        }

    @property
    def memory_advice(self) -> str:
        """What to do if the device runs out of memory."""
        images = self.micro_batch_size or self.batch_size // launched_processes()
        smaller = [size for size in range(1, images) if images % size == 0]
        if not smaller:
            return super().memory_advice
        return (
            f"bind micro_batch_size = {smaller[-1]}, with which the same command resumes from the "
            "last checkpoint, if there is one; or use a smaller batch_size in another --workdir"
        )

    def network(self) -> nn.Module:
        """Builds the method's network with initial weights of the seed, the same on every rank."""
        with seeds.initial_weights(self.seed):
            return self.method.network(self.new_encoder())

    def training_step(self, device: torch.device, machine: Machine) -> TrainingStep:
        """Builds the network and the step that trains it."""
        forward = MethodForward(
            self.method,
            self.network(),
            machine.precision.value,
            machine.channels_last.value,
            self.micro_batch_size,
            self.schedule.whole_steps(self.steps_per_epoch),
        )
        return TrainingStep(
            forward,
            self.optimizer,
            self.compute.loss_scaling,
            machine.compile.value,
            device,
            self.schedule.bad_steps > 0,
        )

    def check(self, workdir: Path) -> None:
        """Raises UserError for settings that do not fit together; see `TrainingTask.check`."""
        super().check(workdir)
        size, local_batch = self.micro_batch_size, self.batch_size // launched_processes()
        if size is not None and (size < 1 or local_batch % size):
            raise UserError(
                f"micro_batch_size is {size}; it must divide the {local_batch} images per "
                "device, or be None for all at once"
            )
        with torch.device("meta"):
            encoder = self.new_encoder().eval()
        # With micro-batches, with gradients and without. 'auto' may compile.
        graphs = (1 if size is None else 2) if self.compute.compile is not False else 0
        self.method.check_run(encoder, self.schedule.epochs, self.batch_size, graphs)

    def summary(self) -> list[str]:
        """Returns the lines of the plan that do not depend on the machine."""
        return [*super().summary(), *self.details()]

    def details(self) -> list[str]:
        """Returns the lines of the plan about images per step and memory."""
        with torch.device("meta"):
            encoder = self.new_encoder()
            network = self.method.network(encoder)
        averaged = encoder.state_dict().values() if self.average_momentum > 0 else []
        parameters = _megabytes(value for value in network.parameters() if value.requires_grad)
        everything = _megabytes([*network.parameters(), *network.buffers(), *averaged])
        buffers = everything - parameters
        local_batch = self.batch_size // launched_processes()
        moments = [name.replace("_", " ") for name in self.optimizer.moment_names]
        parts = [f"{name} {parameters:.1f}, " for name in ("parameters", *moments)]
        return [
            f"{self.method.summary(local_batch)} per device",
            f"state: {len(parts) * parameters + buffers:.1f} MB per device ({''.join(parts)}"
            f"buffers {buffers:.1f})",
            f"gradients: {parameters:.1f} MB per device",
        ]

    def run(
        self, workdir: Path, config: str, should_stop: Callable[[], bool] = signals.requested
    ) -> RunResult:
        """Pre-trains to the last step, from the latest checkpoint of the workdir if it has one.

        Args:
          workdir: of the run, which must have passed `check`.
          config: all effective bindings, one per line.
          should_stop: see `loop.train`.

        Raises:
          UserError: an error that shows only in training, such as a loss that is not finite.
        """
        with self.process(workdir, config) as process, recording(workdir):
            with progress.status("building the network"):
                step = self.training_step(process.device, process.machine)
            encoder = step.network.encoder
            assert isinstance(encoder, Encoder)
            average = AveragedEncoder(encoder, self.average_momentum)
            state, reader = step.initial_state(), _Reader(self, process)
            probe = self._start_probe(encoder.channels, process.device)
            if probe is not None:
                state = state._replace(buffers=state.buffers | probe.tensors)
            initialize = partial(self._initialize, state.parameters | state.buffers, average)
            state = state._replace(buffers=state.buffers | average.tensors)
            return train(
                self,
                process,
                state=state,
                initialize=initialize,
                batches=reader.batches,
                prepare=self.prepare,
                take_step=partial(self._take_step, step, probe, average),
                evaluations=[
                    self._evaluation(item, average.encoder, process) for item in self.evaluators
                ],
                pictures=self._pictures(step, process),
                summarize=lambda history: [*reader.summary(), *_gains(history)],
                should_stop=should_stop,
            )

    def batches(self, start_step: int, device: torch.device, machine: Machine) -> Iterator[Batch]:
        """Yields this rank's crops for each step from start_step on, on the device."""
        loader = crop_loader(
            self.method.dataset(self.source, self.seed, self.batch_size),
            self.sampler(start_step),
            machine.workers.value,
            self.loading.prefetch,
            self.loading.timeout,
            machine.pin_memory.value,
        )
        return prefetch_to_device(loader, device)

    def prepare(self, batch: Batch, step: int) -> StepInputs:
        """Returns the inputs of a step, counted from 0."""
        return self.method.step_inputs(batch.crops, self.seed, step)

    def take_step(
        self,
        step: TrainingStep,
        state: TrainState,
        inputs: StepInputs,
        measured: bool = False,
        observe: Callable[[Any], dict[str, Tensor]] | None = None,
    ) -> StepResult:
        """Takes one step at the scheduled learning rate."""
        rate = self.learning_rate * self.learning_rate_factor(state.step)
        return step(state, inputs, rate, measured, observe)

    def _initialize(
        self, tensors: Mapping[str, Tensor], average: AveragedEncoder, init_from: str
    ) -> str:
        message = load_into(init_from, tensors, self.encoder)
        average.restart()
        return message

    def _start_probe(self, channels: int, device: torch.device) -> RunningProbe | None:
        if self.online_probe is None:
            return None
        of_images = torch.tensor(self.source.labels)
        labels = Labels(of_images, len(self.source.classes), self.global_batches)
        return RunningProbe(self.online_probe, labels, channels, self.seed, device)

    def _take_step(
        self,
        step: TrainingStep,
        probe: RunningProbe | None,
        average: AveragedEncoder,
        state: TrainState,
        inputs: StepInputs,
        measured: bool,
    ) -> StepResult:
        """Takes a step of the network, of the averaged encoder, and of the online probe if any."""
        observe = None
        if probe is not None:
            observe = partial(self._train_probe, probe, state.step, inputs)
        result = self.take_step(step, state, inputs, measured, observe)
        average.update(state.step)
        return result

    def _train_probe(
        self, probe: RunningProbe, step: int, inputs: StepInputs, outputs: tuple[Tensor, ...]
    ) -> dict[str, Tensor]:
        features, images = self.method.encoder_features(outputs, inputs.targets)
        return probe.train(step, features, images, len(features) * collectives.world_size())

    def _pictures(
        self, step: TrainingStep, process: Process
    ) -> dict[str, Callable[[StepInputs], Tensor]]:
        pictures: dict[str, Callable[[StepInputs], Tensor]] = {"inputs": self.method.draw}
        if isinstance(self.method, DrawsPredictions):
            draw = partial(self._draw_predictions, self.method, step.network, process)
            pictures["predictions"] = draw
        return pictures

    @torch.no_grad()
    def _draw_predictions(
        self, method: DrawsPredictions, network: nn.Module, process: Process, inputs: StepInputs
    ) -> Tensor:
        """Draws fixed images, which show what changes, in place of the inputs of a step."""
        del inputs
        dataset = self.method.dataset(self.source, self.seed, self.batch_size)
        precision = PRECISIONS[process.machine.precision.value]
        kind, enabled = process.device.type, precision != torch.float32

        def apply(images: Tensor, **options: bool) -> tuple[Tensor, ...]:
            with torch.autocast(kind, precision, enabled=enabled):
                outputs: tuple[Tensor, ...] = network(images, **options)
            return outputs

        network.eval()
        try:
            return method.draw_predictions(apply, dataset, self.seed, process.device)
        finally:
            network.train()

    def _evaluation(self, evaluator: Evaluator, encoder: Encoder, process: Process) -> Evaluation:
        precision = PRECISIONS[process.machine.precision.value]

        def evaluate(monitor: Monitor, at_step: int) -> dict[str, float]:
            return evaluator(encoder, precision, EvaluationReport(monitor, at_step))

        return Evaluation(self.epochs_to_steps(evaluator.every), True, evaluate)


class _Reader:
    """Reads the batches of a run, and reports unreadable images and those of one color once."""

    def __init__(self, task: PretrainTask, process: Process) -> None:
        self._task = task
        self._process = process
        self._unreadable = Unreadable(task.source, task.loading.most_unreadable)
        self._one_color: set[int] = set()

    def batches(self, start_step: int) -> Iterator[Batch]:
        """Yields this rank's crops for each step from start_step on.

        Raises:
          UserError: too many images are unreadable.
        """
        name, every = self._task.source.name, self._task.reporting.log_every
        batches = self._task.batches(start_step, self._process.device, self._process.machine)
        for step, batch in enumerate(batches, start_step):
            self._unreadable.add(batch.unreadable)
            # Ranks wait for each other and their devices, as they do for a log line.
            if collectives.world_size() == 1 or step == start_step or step % every == 0:
                self._unreadable.exchange()
            for index in sorted(set(batch.one_color) - self._one_color):
                logging.warning("all pixels have one color: %s", name(index))
            self._one_color.update(batch.one_color)
            yield batch

    def summary(self) -> list[str]:
        """Returns messages with the numbers of images that any rank found, if any."""
        self._unreadable.exchange()
        counts = {
            "unreadable images were skipped": len(self._unreadable),
            "images have only one color": self._count(self._one_color),
        }
        return [
            f"{count} {what}; the warnings name them" for what, count in counts.items() if count
        ]

    def _count(self, indices: set[int]) -> int:
        """Returns the number of images that are in the sets of any ranks."""
        found = torch.zeros(len(self._task.source), dtype=torch.int32)
        found[torch.tensor(sorted(indices), dtype=torch.int64)] = 1
        return int(collectives.sum_over_ranks(found.to(self._process.device)).count_nonzero())


def _gains(history: History) -> list[str]:
    """Returns one line per score that compares the first evaluation with the last."""
    if len(history) < 2:
        return []
    (first_step, first), (last_step, last) = history[0], history[-1]
    return [
        f"{name}: {first[name]:.1%} at step {first_step}, {last[name]:.1%} at step {last_step}, "
        f"chance {last[f'{name}_chance']:.1%}"
        for name in last
        if name in first and f"{name}_chance" in last
    ]


def _megabytes(tensors: Iterable[Tensor]) -> float:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 1e6
