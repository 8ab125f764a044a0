"""Linear evaluation: linear classifiers (probes) on the features of a frozen encoder."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from jigclu.data.sources import Source
from jigclu.data.subsets import HeldOut
from jigclu.methods.classification import ClassificationInputs
from jigclu.models.encoder import Encoder, encoder_tensors
from jigclu.ops import probes
from jigclu.ops.optim import check_momentum
from jigclu.ops.probes import Probes
from jigclu.system import collectives, progress, seeds, signals
from jigclu.system.errors import check
from jigclu.tasks.feature_cache import FeatureCache
from jigclu.tasks.feature_source import CachedFeatures, EncodedFeatures, FeatureSource
from jigclu.tasks.supervised import (
    SupervisedTask,
    describe_accuracy,
    evaluate_probe,
    log_classification,
)
from jigclu.training.initial_weights import load_into
from jigclu.training.loop import RunResult, train
from jigclu.training.monitor import Monitor
from jigclu.training.probe_step import ProbeStep, initial_state, to_probes
from jigclu.training.process import Process
from jigclu.training.resume import History, Recipe
from jigclu.training.state import TrainState
from jigclu.training.step import StepResult


@dataclass(frozen=True, kw_only=True)
class LinearTask(SupervisedTask):
    """Settings of linear evaluation; gin/base/linear.gin describes each of them.

    Every pair of a learning rate and a weight decay trains its own probe, all in one pass over
    the data. Several probes are compared on held-out training images; only the best one is
    evaluated on val.

    Attributes:
      learning_rates: of the probes.
      weight_decays: of the probes.
      momentum: of all probes.
      held_out: share of each class that is held out to compare several probes.
      cache: features on disk; None encodes all images in every epoch.
    """

    title: ClassVar = "linear-evaluation"

    learning_rates: tuple[float, ...]
    weight_decays: tuple[float, ...]
    momentum: float
    held_out: float
    cache: FeatureCache | None

    def __post_init__(self) -> None:
        probes.probe_settings(self.learning_rates, self.weight_decays)
        check(0 < self.held_out < 1, "held_out", self.held_out, "above 0 and below 1")
        check_momentum(self.momentum)
        super().__post_init__()

    @property
    def settings(self) -> list[tuple[float, float]]:
        """Learning rate and weight decay of each probe."""
        return probes.probe_settings(self.learning_rates, self.weight_decays)

    @property
    def can_compile(self) -> bool:
        """Whether there is an encoder to compile: with a cache it runs only once."""
        return self.cache is None

    def divergence_advice(self, precision: str) -> str:
        """Returns what to do if the loss of every probe is not finite."""
        del precision
        return "lower learning_rates, and use another --workdir"

    def finite_tensors(self, state: TrainState) -> dict[str, Tensor]:
        """Returns the tensors that must be finite: of several probes, some may diverge."""
        return state.tensors if len(self.settings) == 1 else state.buffers

    def recipe(self) -> Recipe:
        """Returns what a resumed run must share with its checkpoint."""
        recipe = super().recipe()
        if self.cache is None or self.cache.views:
            return recipe
        # Without views, the probes learn from the evaluation crops.
        crop = {
            f"eval_transform.{name}": getattr(self.eval_transform, name)
            for name in ("resize", "crop")
        }
        settings = recipe.settings | {name: repr(value) for name, value in crop.items()}
        rules = {name: rule for name, rule in recipe.rules.items() if name not in crop}
        return recipe._replace(settings=settings, rules=rules)

    @cached_property
    def training_source(self) -> Source:
        """Training images: all of the source, without the held-out ones of several probes."""
        if len(self.settings) == 1:
            return self.source
        return HeldOut(self.source, self.held_out, self.seed, "train")

    @cached_property
    def comparison_source(self) -> Source:
        """Held-out training images, on which several probes are compared."""
        return HeldOut(self.source, self.held_out, self.seed, "held_out")

    def summary(self) -> list[str]:
        """Returns the lines of the plan that do not depend on the machine."""
        return [
            *super().summary(),
            f"trained: {len(self.settings)} probes of {len(self.source.classes)} classes on "
            f"a frozen {self.encoder}",
        ]

    def run(
        self, workdir: Path, config: str, should_stop: Callable[[], bool] = signals.requested
    ) -> RunResult:
        """Trains and evaluates the probes; for the arguments see `PretrainTask.run`."""
        with self.process(workdir, config) as process:
            with progress.status("building the network"):
                encoder, initial = self._build(process)
            features = self._features(encoder, process)
            state = initial_state(initial, encoder_tensors(encoder))
            evaluate = partial(self._evaluate, features, to_probes(state), process.device)
            return train(
                self,
                process,
                state=state,
                initialize=partial(
                    load_into, tensors=encoder_tensors(encoder), encoder=self.encoder
                ),
                batches=features.training_batches,
                prepare=lambda batch, step: batch,
                take_step=partial(
                    self._take_step,
                    features,
                    ProbeStep(self.settings, self.momentum, process.device),
                ),
                evaluations=[self.evaluation(evaluate)],
                pictures={"inputs": self.draw} if self.cache is None else {},
                summarize=self._summarize,
                should_stop=should_stop,
            )

    def _build(self, process: Process) -> tuple[Encoder, Probes]:
        """Returns the encoder and the probes with initial weights of the seed."""
        with seeds.initial_weights(self.seed):
            encoder = self.new_encoder()
            classes = len(self.source.classes)
            initial = probes.initial_probes(len(self.settings), classes, encoder.channels)
        encoder = encoder.to(process.device).eval()
        if process.machine.channels_last.value:
            encoder = encoder.to(memory_format=torch.channels_last)
        return encoder, Probes(*(value.to(process.device) for value in initial))

    def _features(self, encoder: Encoder, process: Process) -> FeatureSource:
        if self.cache is None:
            return EncodedFeatures(self, encoder, process)
        return CachedFeatures(self, encoder, process, self.cache)

    def _take_step(
        self,
        features: FeatureSource,
        step: ProbeStep,
        state: TrainState,
        inputs: ClassificationInputs,
        measured: bool,
    ) -> StepResult:
        factor = self.learning_rate_factor(state.step)
        state, metrics = step(
            state, features.features(inputs), inputs.labels, self.batch_size, factor
        )
        rate = torch.full((), factor, device=inputs.labels.device)
        return StepResult(state, metrics | {"learning_rate_factor": rate}, {})

    def _evaluate(
        self,
        features: FeatureSource,
        trained: Probes,
        device: torch.device,
        monitor: Monitor,
        step: int,
    ) -> dict[str, float]:
        """Returns the accuracy on val of the probe that is best on held-out images."""
        best, selection = 0, {}
        if len(self.settings) > 1:
            accuracy = compare(trained, features, self.comparison_source, device)
            best = int(accuracy.argmax())
            rate, decay = self.settings[best]
            selection = {"held_out_top1": accuracy[best].item()}
            selection |= {"best_learning_rate": rate, "best_weight_decay": decay}
        chosen = Probes(*(value[best : best + 1] for value in trained))
        counts = evaluate_probe(
            features.evaluation_batches(self.val),
            lambda batch: probes.probe_logits(chosen, batch)[0],
            len(self.source.classes),
            device,
        )
        scores = log_classification(monitor, step, counts, self.source.classes)
        return {"top1": scores.top1, "top5": scores.top5} | selection

    def _summarize(self, history: History) -> list[str]:
        selection, advice = "", []
        if history and "held_out_top1" in history[-1][1]:
            scores = history[-1][1]
            advice = self._advise(scores["best_learning_rate"])
            selection = (
                f", with learning rate {scores['best_learning_rate']:g} and weight decay "
                f"{scores['best_weight_decay']:g}, the best of {len(self.settings)} probes on "
                f"{len(self.comparison_source):,} held-out training images"
            )
        return [*describe_accuracy(history, len(self.val), selection), *advice]

    def _advise(self, best: float) -> list[str]:
        """Returns a line if the best learning rate may lie beyond those of the sweep."""
        rates = self.learning_rates
        if len(rates) < 2 or min(rates) < best < max(rates):
            return []
        end, wanted = ("lowest", "lower") if best == min(rates) else ("highest", "higher")
        return [
            f"the best learning rate is the {end} of the sweep, {best:g}: add {wanted} ones to "
            "linear.learning_rates, and use another --workdir"
        ]


@torch.no_grad()
def compare(
    trained: Probes, features: FeatureSource, source: Source, device: torch.device
) -> Tensor:
    """Returns the accuracy of each probe on the images of a source, float32 [probes]."""
    correct = torch.zeros(len(trained.weight), device=device)
    for batch, labels in features.evaluation_batches(source):
        correct += (probes.probe_logits(trained, batch).argmax(2) == labels).sum(1)
    return collectives.sum_over_ranks(correct) / len(source)
