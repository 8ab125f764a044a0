"""Fine-tuning: an encoder and a classifier trained together, for transfer and few labels."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

from jigclu.methods.classification import ClassificationInputs, ClassifierForward
from jigclu.models.classifier import Classifier
from jigclu.models.encoder import encoder_tensors
from jigclu.ops.optim import Optimizer, PerParameterRates, check_learning_rate
from jigclu.system import progress, seeds, signals
from jigclu.system.errors import check
from jigclu.system.on_resume import Logged
from jigclu.tasks.supervised import (
    SupervisedTask,
    describe_accuracy,
    evaluate_probe,
    log_classification,
)
from jigclu.training.features import encode
from jigclu.training.initial_weights import load_into
from jigclu.training.loop import RunResult, train
from jigclu.training.monitor import Monitor
from jigclu.training.process import Process
from jigclu.training.state import TrainState
from jigclu.training.step import StepResult, TrainingStep


@dataclass(frozen=True, kw_only=True)
class FinetuneTask(SupervisedTask):
    """Settings of fine-tuning; gin/base/finetune.gin describes each of them.

    Attributes:
      optimizer: of encoder and classifier.
      learning_rate: peak of the schedule.
      head_learning_rate: peak for the classifier; None uses `learning_rate`.
    """

    title: ClassVar = "fine-tuning"

    optimizer: Optimizer
    learning_rate: Logged[float]
    head_learning_rate: Logged[float | None]

    def __post_init__(self) -> None:
        super().__post_init__()
        check_learning_rate(self.learning_rate)
        rate = self.head_learning_rate
        expected = "above 0, or None for that of the encoder"
        check(rate is None or 0 < rate < float("inf"), "head_learning_rate", rate, expected)

    def network(self) -> Classifier:
        """Builds the network with initial weights of the seed, the same on every rank."""
        with seeds.initial_weights(self.seed):
            return Classifier(self.new_encoder(), len(self.source.classes))

    def create_optimizer(self, network: Classifier) -> Optimizer:
        """Returns the optimizer, with the classifier's own learning rate if it has one."""
        if self.head_learning_rate is None:
            return self.optimizer
        ratio = self.head_learning_rate / self.learning_rate
        factors = tuple(
            ratio if name.startswith("fc.") else 1.0 for name, _ in network.named_parameters()
        )
        return PerParameterRates(optimizer=self.optimizer, factors=factors)

    def summary(self) -> list[str]:
        """Returns the lines of the plan that do not depend on the machine."""
        return [
            *super().summary(),
            f"trained: {self.encoder} and a classifier of {len(self.source.classes)} "
            f"classes, on images of {self.train_size}x{self.train_size} pixels",
        ]

    def run(
        self, workdir: Path, config: str, should_stop: Callable[[], bool] = signals.requested
    ) -> RunResult:
        """Fine-tunes and evaluates the network; for the arguments see `PretrainTask.run`."""
        with self.process(workdir, config) as process:
            with progress.status("building the network"):
                network = self.network()
                step = self._training_step(network, process)
            return train(
                self,
                process,
                state=step.initial_state(),
                initialize=partial(
                    load_into, tensors=encoder_tensors(network.encoder), encoder=self.encoder
                ),
                batches=partial(
                    self.labeled_batches, device=process.device, machine=process.machine
                ),
                prepare=lambda batch, step: batch,
                take_step=partial(self._take_step, step),
                evaluations=[self.evaluation(partial(self._evaluate, network, process))],
                pictures={"inputs": self.draw},
                summarize=lambda history: describe_accuracy(history, len(self.val)),
                should_stop=should_stop,
            )

    def _training_step(self, network: Classifier, process: Process) -> TrainingStep:
        machine = process.machine
        forward = ClassifierForward(
            network,
            self.eval_transform.mean,
            self.eval_transform.std,
            machine.precision.value,
            machine.channels_last.value,
        )
        return TrainingStep(
            forward,
            self.create_optimizer(network),
            self.compute.loss_scaling,
            machine.compile.value,
            process.device,
            self.schedule.bad_steps > 0,
        )

    def _take_step(
        self, step: TrainingStep, state: TrainState, inputs: ClassificationInputs, measured: bool
    ) -> StepResult:
        rate = self.learning_rate * self.learning_rate_factor(state.step)
        return step(state, inputs, rate, measured)

    def _evaluate(
        self, network: Classifier, process: Process, monitor: Monitor, step: int
    ) -> dict[str, float]:
        """Returns the accuracy on the images of val, over all ranks."""
        images = self.evaluation_images(self.val)
        batches = encode(network.encoder, images, self.feature_settings(process.machine))
        counts = evaluate_probe(
            ((features, batch.label) for features, batch in batches),
            network.fc,
            len(self.source.classes),
            process.device,
        )
        scores = log_classification(monitor, step, counts, self.source.classes)
        return {"top1": scores.top1, "top5": scores.top5}
