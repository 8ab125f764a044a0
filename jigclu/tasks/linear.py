"""Linear evaluation: classifiers on the features of a frozen encoder."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jigclu.data.images import EpochView
from jigclu.data.sources import Source, digest
from jigclu.data.subsets import HeldOut, label_array
from jigclu.methods.classification import ClassificationInputs
from jigclu.models.encoder import encoder_tensors
from jigclu.models.weights import load_into
from jigclu.ops import probes
from jigclu.ops.optim import check_momentum
from jigclu.ops.probes import Probes
from jigclu.system import collectives, seeds
from jigclu.system.errors import check
from jigclu.tasks.feature_cache import FeatureCache
from jigclu.tasks.supervised import SupervisedTask, evaluate_probe, log_classification
from jigclu.training.features import encode, encode_batch, rank_indices
from jigclu.training.loop import RunContext, TrainingRun, timed
from jigclu.training.state import TrainState


@dataclass(frozen=True, kw_only=True)
class LinearTask(SupervisedTask):
    """Everything that defines a linear evaluation; what a field means stands in gin/base.

    Every pair of learning_rates and weight_decays trains a classifier of its own,
    side by side. Several are compared on a part of the source that none of
    them learns from, a share held_out; only the best one meets val.
    """

    learning_rates: tuple[float, ...]
    weight_decays: tuple[float, ...]
    momentum: float
    held_out: float
    cache: FeatureCache | None

    @property
    def pairs(self) -> list[tuple[float, float]]:
        """The learning rate and weight decay of each classifier."""
        return probes.probe_settings(self.learning_rates, self.weight_decays)

    @property
    def compilable(self) -> bool:
        """Whether there is anything for torch.compile to do: not if features are cached."""
        return self.cache is None

    @cached_property
    def training_source(self) -> Source:
        """What is learned from: all of the source, or with several classifiers a part."""
        if len(self.pairs) == 1:
            return self.source
        return HeldOut(self.source, self.held_out, self.seed, "train")

    @cached_property
    def comparison_source(self) -> Source:
        """What several classifiers are compared on."""
        return HeldOut(self.source, self.held_out, self.seed, "held_out")

    def check_values(self) -> None:
        """Raises UserError for a field out of range."""
        if len(self.pairs) > 1:
            check(0 < self.held_out < 1, "held_out", self.held_out, "in (0, 1)")
        super().check_values()
        check_momentum(self.momentum)
        if self.cache is not None:
            self.cache.check()

    def plan_details(self) -> list[str]:
        """Returns the images to score on, and what is trained."""
        return [
            f"validation: {len(self.val):,} images",
            f"trained: {len(self.pairs)} classifiers of {len(self.source.classes)} classes "
            f"on {self.encoder}, frozen",
        ]

    def begin(self, context: RunContext) -> "LinearRun":
        """Returns the run of this process, in the state before its first step."""
        return LinearRun(self, context)


class LinearRun(TrainingRun):
    """One process of a linear evaluation."""

    def __init__(self, task: LinearTask, context: RunContext) -> None:
        """As `TrainingRun`; builds the encoder and the classifiers."""
        self.task = task
        self.settings = task.feature_settings(context.machine)
        self.classes = len(task.source.classes)
        with seeds.initial_weights(task.seed):
            encoder = task.new_encoder()
            begun = probes.initial_probes(len(task.pairs), self.classes, encoder.channels)
        self.encoder = encoder.to(context.device).eval()
        if context.machine.channels_last.value:
            self.encoder = self.encoder.to(memory_format=torch.channels_last)
        rates, decays = zip(*task.pairs, strict=True)
        self.learning_rates = torch.tensor(rates, device=context.device)
        self.weight_decays = torch.tensor(decays, device=context.device)
        self.heads = Probes(*(value.to(context.device) for value in begun))
        self.momenta = Probes(*map(torch.zeros_like, self.heads))
        self.encode = (
            torch.compile(encode_batch, fullgraph=True, dynamic=False)
            if context.machine.compile.value
            else encode_batch
        )
        self._files: dict[tuple[int, int | None], NDArray[np.float16]] = {}
        super().__init__(task, context, self._state())

    def _state(self) -> TrainState:
        names = ("fc.weight", "fc.bias")
        return TrainState(
            step=0,
            parameters=dict(zip(names, self.heads, strict=True)),
            # With the encoder in it a checkpoint goes on without the file it came from.
            buffers=encoder_tensors(self.encoder),
            momentum=dict(zip(names, self.momenta, strict=True)),
            loss_scale=torch.ones(()),
            good_steps=torch.zeros((), dtype=torch.int64),
        )

    def begin_with(self, path: Path) -> str:
        """Takes the encoder of a file; returns what to tell of it."""
        return load_into(path, encoder_tensors(self.encoder))

    def inputs(self) -> Iterator[tuple[ClassificationInputs, float]]:
        """Yields images, or features where they are cached, and labels of every step left."""
        if self.task.cache is None:
            return self.task.labeled_batches(self.state.step, self.device, self.context.machine)
        return timed(self._cached_batches(self.task.cache))

    def _cached_batches(self, cache: FeatureCache) -> Iterator[ClassificationInputs]:
        labels = torch.from_numpy(label_array(self.task.training_source))
        for batch in self.task.sampler(self.state.step):
            indices = np.array([index for _, index in batch])
            view = batch[0][0] % cache.views if cache.views else None
            features = torch.from_numpy(
                self._cached(cache, self.task.training_source, view)[indices]
            )
            yield ClassificationInputs(
                features.to(self.device, torch.float32), labels[indices].to(self.device)
            )

    def _cached(self, cache: FeatureCache, source: Source, view: int | None) -> NDArray[np.float16]:
        """Returns the features of a source: of one augmented view, or None, as it is scored."""
        task = self.task
        plain = (task.resize, task.crop)
        drawn = (
            task.seed,
            task.train_size,
            task.crop_scale,
            task.crop_ratio,
            task.flip_probability,
        )
        # By identity: every step asks, and a fingerprint reads all names of the source.
        key = (id(source), view)
        if key not in self._files:
            images = task.plain_images(source)
            shown = images if view is None else EpochView(task.training_images(), view)
            about = digest(source.fingerprint(deep=True), view, plain if view is None else drawn)
            self._files[key] = cache.features(self.encoder, shown, about, self.settings)
        return self._files[key]

    def take_step(self, inputs: ClassificationInputs) -> dict[str, Tensor]:
        """Moves every classifier on by one step; returns the metrics of the best one."""
        features, labels = inputs
        if self.task.cache is None:
            with torch.no_grad():
                features = self.encode(self.encoder, features, self.settings)
        factor = self.task.schedule_at(self.state.step)
        wanted = Probes(*(value.requires_grad_() for value in self.heads))
        logits = probes.probe_logits(wanted, features)
        losses = probes.probe_losses(logits, labels)
        gradients = torch.autograd.grad(losses.sum(), wanted)
        with torch.no_grad():
            metrics = torch.stack([losses, (logits.argmax(2) == labels).float().mean(1)])
            metrics = collectives.mean_over_ranks(metrics)
            moved = probes.step(
                self.heads,
                Probes(*map(collectives.mean_over_ranks, gradients)),
                self.momenta,
                self.learning_rates * factor,
                self.weight_decays,
                self.task.momentum,
            )
            for old, new in zip((*self.heads, *self.momenta), (*moved[0], *moved[1]), strict=True):
                old.copy_(new)
        self.state = self.state._replace(step=self.state.step + 1)
        # A classifier of a large rate may diverge: that is what a sweep is there to show.
        return {
            "loss": metrics[0].nan_to_num(nan=torch.inf).min(),
            "accuracy": metrics[1].max(),
            "learning_rate_factor": torch.full((), factor, device=self.device),
        }

    def _batches(self, source: Source) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields features and labels of this rank's share of a source, as it is scored."""
        if self.task.cache is None:
            for features, batch in encode(
                self.encoder, self.task.plain_images(source), self.settings
            ):
                yield features, batch.label.to(self.device)
            return
        file, labels = self._cached(self.task.cache, source, None), label_array(source)
        own = np.array(rank_indices(len(source)), np.int64)
        for first in range(0, len(own), self.task.val_batch_size):
            indices = own[first : first + self.task.val_batch_size]
            yield (
                torch.from_numpy(file[indices]).to(self.device, torch.float32),
                torch.from_numpy(labels[indices]).to(self.device),
            )

    def score(self) -> dict[str, float]:
        """Returns the accuracy on val of the classifier that is best on what was held out."""
        task = self.task
        best, compared = 0, {}
        if len(task.pairs) > 1:
            accuracy = self._compare()
            best = int(accuracy.argmax())
            rate, decay = task.pairs[best]
            compared = {"held_out_top1": accuracy[best].item()}
            compared |= {"best_learning_rate": rate, "best_weight_decay": decay}
        head = Probes(*(value[best : best + 1].detach() for value in self.heads))
        counts = evaluate_probe(
            self._batches(task.val),
            lambda features: probes.probe_logits(head, features)[0],
            self.classes,
            self.device,
        )
        found = log_classification(self.monitor, self.state.step, counts, task.val.classes)
        return {"top1": found.top1, "top5": found.top5} | compared

    @torch.no_grad()
    def _compare(self) -> Tensor:
        """Returns the accuracy of each classifier on what was held out: float32 [heads]."""
        right = torch.zeros(len(self.task.pairs), device=self.device)
        for features, labels in self._batches(self.task.comparison_source):
            right += (probes.probe_logits(self.heads, features).argmax(2) == labels).sum(1)
        return collectives.sum_over_ranks(right) / len(self.task.comparison_source)

    def conclude(self) -> None:
        """Tells the accuracy after the last step."""
        if not self.scores:
            return
        step, score = self.scores[-1]
        chosen = ""
        if "held_out_top1" in score:
            chosen = (
                f", by learning rate {score['best_learning_rate']:g} and weight decay "
                f"{score['best_weight_decay']:g}, best of {len(self.task.pairs)} on "
                f"{len(self.task.comparison_source):,} held-out training images"
            )
        self.monitor.message(
            f"top-1 {score['top1']:.2%}, top-5 {score['top5']:.2%} "
            f"of {len(self.task.val):,} images of val, after {step} steps{chosen}"
        )
