"""Training an encoder and a classifier together: semi-supervised learning and transfer."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from jigclu.methods.classification import ClassificationInputs, ClassifierForward
from jigclu.models.classifier import Classifier
from jigclu.models.encoder import encoder_tensors
from jigclu.models.weights import load_into
from jigclu.ops.optim import LossScaling, Optimizer, PerParameterRates, check_learning_rate
from jigclu.system import seeds
from jigclu.system.errors import UserError
from jigclu.tasks.supervised import SupervisedTask, evaluate_probe, log_classification
from jigclu.training.features import encode
from jigclu.training.loop import RunContext, TrainingRun
from jigclu.training.step import TrainingStep


@dataclass(frozen=True, kw_only=True)
class FinetuneTask(SupervisedTask):
    """Everything that defines a run of fine-tuning; what a field means stands in gin/base."""

    optimizer: Optimizer
    learning_rate: float
    head_learning_rate: float | None
    loss_scaling: LossScaling

    def model(self) -> Classifier:
        """Builds the network with initial weights of the seed: the same on every rank."""
        with seeds.initial_weights(self.seed):
            return Classifier(self.new_encoder(), len(self.source.classes))

    def rates(self, model: Classifier) -> Optimizer:
        """Returns the optimizer, with the head's own learning rate where it has one."""
        if self.head_learning_rate is None:
            return self.optimizer
        ratio = self.head_learning_rate / self.learning_rate
        factors = tuple(
            ratio if name.startswith("fc.") else 1.0 for name, _ in model.named_parameters()
        )
        return PerParameterRates(optimizer=self.optimizer, factors=factors)

    def check_values(self) -> None:
        """Raises UserError for a field out of range."""
        super().check_values()
        check_learning_rate(self.learning_rate)
        if self.head_learning_rate is not None and not 0 < self.head_learning_rate < float("inf"):
            raise UserError(
                f"head_learning_rate is {self.head_learning_rate}; it must be above 0, or None "
                "for that of the encoder"
            )

    def plan_details(self) -> list[str]:
        """Returns the images to score on, and what is trained."""
        return [
            f"validation: {len(self.val):,} images",
            f"trained: {self.encoder} and a classifier of {len(self.source.classes)} classes, "
            f"images of {self.train_size}x{self.train_size} pixels",
        ]

    def begin(self, context: RunContext) -> "FinetuneRun":
        """Returns the run of this process, in the state before its first step."""
        return FinetuneRun(self, context)


class FinetuneRun(TrainingRun):
    """One process of a run of fine-tuning."""

    def __init__(self, task: FinetuneTask, context: RunContext) -> None:
        """As `TrainingRun`; builds the network and its step."""
        self.task = task
        self.model = task.model()
        machine = context.machine
        forward = ClassifierForward(
            self.model,
            task.mean,
            task.std,
            machine.precision.value,
            machine.channels_last.value,
        )
        self.step = TrainingStep(
            forward,
            task.rates(self.model),
            task.loss_scaling,
            machine.compile.value,
            context.device,
        )
        super().__init__(task, context, self.step.initial_state())

    def begin_with(self, path: Path) -> str:
        """Takes the encoder of a file; the classifier is new. Returns what to tell of it."""
        return load_into(path, encoder_tensors(self.model.encoder))

    def inputs(self) -> Iterator[tuple[ClassificationInputs, float]]:
        """Yields the inputs of every step left, and the seconds waited for them."""
        return self.task.labeled_batches(self.state.step, self.device, self.context.machine)

    def take_step(self, inputs: ClassificationInputs) -> dict[str, Tensor]:
        """Moves the state on by one step; returns its metrics."""
        rate = self.task.learning_rate * self.task.schedule_at(self.state.step)
        self.state, metrics = self.step(self.state, inputs, rate)
        return metrics

    def score(self) -> dict[str, float]:
        """Returns the accuracy on the images of val, all ranks together."""
        task = self.task
        batches = encode(
            self.model.encoder,
            task.plain_images(task.val),
            task.feature_settings(self.context.machine),
        )
        counts = evaluate_probe(
            ((features, batch.label) for features, batch in batches),
            self.model.fc,
            len(task.val.classes),
            self.device,
        )
        found = log_classification(self.monitor, self.state.step, counts, task.val.classes)
        return {"top1": found.top1, "top5": found.top5}

    def conclude(self) -> None:
        """Tells the accuracy after the last step."""
        if self.scores:
            step, score = self.scores[-1]
            self.monitor.message(
                f"top-1 {score['top1']:.2%}, top-5 {score['top5']:.2%} "
                f"of {len(self.task.val):,} images of val, after {step} steps"
            )
