"""Jigsaw clustering (Chen et al., CVPR 2021): images are cut into patches and found again.

    images             patches            montages           losses

    +---+---+          A0 A2              +----+----+        cluster: A0 A1 A2 A3 | B0 B1 B2 B3
    | A     |    cut   A1 A3    shuffle   | B1 | A2 |
    +       +   ---->  B0 B2   -------->  +----+----+  --->  locate:  B1 -> 1, A2 -> 2, ...
    | B     |          B1 B3    stitch    | A0 | B3 |
    +---+---+                             +----+----+

The encoder sees every montage once. The clustering loss (section 3.2, equation 2) pulls the
patches of an image together; the location loss (equation 3) asks where in its image each
patch lay.

Some settings change the published method. `siblings` keeps the patches of an image in one montage,
or in different ones. `single_every` encodes patches one by one in some steps, so that the encoder
also sees images without neighbors, in as many pixels. `projection_layers` and `projection_norm`
change the head of the clustering branch. `queue_size` adds embeddings of earlier batches to the
negatives of the clustering loss, as in MoCo (He et al., CVPR 2020, section 3.2).
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from jigclu.data.crops import CropDataset
from jigclu.data.sampler import epoch_order
from jigclu.data.sources import Source
from jigclu.methods.method import Network, StepInputs
from jigclu.models.embedding_queue import check_queue_size, replace_oldest
from jigclu.models.encoder import Encoder
from jigclu.models.jigclu import JigClu, QueuedJigClu
from jigclu.ops import health, jigsaw, jigsaw_picture, losses, metrics, schedules
from jigclu.ops.augment import Augmentation, draw_augmentation, select_rows
from jigclu.ops.crops import check_crop, jigsaw_crops
from jigclu.ops.pictures import SHOWN, image_grid, to_pixels
from jigclu.system import collectives
from jigclu.system.errors import UserError, check
from jigclu.system.to_device import to_device


class JigsawLosses(NamedTuple):
    """Scalars float32 [] of one rank: means over its slots."""

    loss: Tensor
    clustering_loss: Tensor
    location_loss: Tensor
    location_accuracy: Tensor


@dataclass(frozen=True, kw_only=True)
class Jigsaw:
    """The method and its hyperparameters; gin/base/jigsaw.gin binds the published values.

    Attributes:
      grid: patches per side of an image and of a montage, >= 2.
      cross_ratio: share of a side, beyond 1 / grid, that a patch's region spans, in [0, 0.5].
      patch_size: side of a patch in pixels.
      smaller_patches: (epoch, pixels) pairs: before that epoch patches have that side.
      crop_scale: least and most share of the region's area that a patch shows.
      crop_ratio: least and most width / height of the crop.
      scaled_decoding: whether large JPEG images are shrunk while decoding.
      augmentation: of each patch.
      siblings: "anywhere" (as published), "apart" or "together": how the patches of an image are
        distributed among montages, see `ops.jigsaw.arrange_patches`.
      single_every: period in steps, from step 0 on, of the steps that encode patches one by one
        instead of in montages; 1 for all steps, 0 for none, as published.
      pooling_map: side to which feature maps are resized before pooling; None: not resized.
      projection_layers: linear layers of the clustering branch, ReLU between them; published 2.
      projection_norm: whether batch normalization over all ranks precedes each ReLU of the
        clustering branch; published False.
      embedding_channels: of the clustering branch.
      temperature: of cosines in the clustering loss.
      base_temperature: the clustering loss is multiplied by temperature / base_temperature.
      clustering_weight: factor of the clustering loss.
      location_weight: factor of the location loss.
      queue_size: number of embeddings of earlier batches that are further negatives of the
        clustering loss, a multiple of the patches per step; 0 for none, as published.
    """

    grid: int
    cross_ratio: float
    patch_size: int
    smaller_patches: tuple[tuple[int, int], ...]
    crop_scale: tuple[float, float]
    crop_ratio: tuple[float, float]
    scaled_decoding: bool
    augmentation: Augmentation
    siblings: str
    single_every: int
    pooling_map: int | None
    projection_layers: int
    projection_norm: bool
    embedding_channels: int
    temperature: float
    base_temperature: float
    clustering_weight: float
    location_weight: float
    queue_size: int

    def __post_init__(self) -> None:
        jigsaw.check_grid(self.grid, self.cross_ratio)
        check(self.patch_size >= 1, "patch_size", self.patch_size, "1 pixel or more")
        check_crop(self.crop_scale, self.crop_ratio)
        jigsaw.check_siblings(self.siblings)
        check(self.single_every >= 0, "single_every", self.single_every, "0 or more steps")
        jigsaw.check_pooling_map(self.pooling_map, self.grid)
        layers, norm = self.projection_layers, self.projection_norm
        check(layers >= 1, "projection_layers", layers, "1 or more")
        check(layers > 1 or not norm, "projection_norm", norm, "False if projection_layers is 1")
        channels = self.embedding_channels
        check(channels >= 1, "embedding_channels", channels, "1 or more")
        for name in ("temperature", "base_temperature"):
            value = getattr(self, name)
            check(0 < value < math.inf, name, value, "above 0, and finite")
        for name in ("clustering_weight", "location_weight"):
            value = getattr(self, name)
            check(0 <= value < math.inf, name, value, "0 or more, and finite")
        weights = max(self.clustering_weight, self.location_weight)
        check(weights > 0, "location_weight", weights, "above 0 if clustering_weight is 0")
        check(self.queue_size >= 0, "queue_size", self.queue_size, "0 or more")

    @property
    def crops_per_image(self) -> int:
        """Number of patches of an image."""
        return self.grid**2

    @property
    def loss_may_rise(self) -> bool:
        """Whether there is a queue, which is empty at first: each step then adds negatives."""
        return self.queue_size > 0

    def check_run(self, encoder: Encoder, epochs: float, batch_size: int, graphs: int) -> None:
        """Raises UserError if patches, batch, epochs and encoder do not fit together."""
        self._check_batch(batch_size)
        schedules.check_patch_sizes(self.patch_size, self.smaller_patches, epochs)
        self._check_graphs(graphs)
        if self.single_every != 1:
            self._check_montages(encoder)

    def _check_graphs(self, graphs: int) -> None:
        """Raises UserError if torch.compile would make more graphs than it keeps."""
        graphs *= 2 if self.single_every > 1 else 1
        sizes = len(self.smaller_patches)
        # torch keeps this many compilations of a function, and fails at the next one.
        limit = torch._dynamo.config.recompile_limit
        if (sizes + 1) * graphs > limit:
            times = {1: "once", 2: "twice"}.get(graphs, f"{graphs} times")
            raise UserError(
                f"smaller_patches has {sizes} sizes, each of which is compiled {times}; use at "
                f"most {limit // graphs - 1}, or bind compute.compile = False"
            )

    def _check_montages(self, encoder: Encoder) -> None:
        """Raises UserError if the encoder's map of a montage has fewer positions than patches."""
        least = schedules.patch_size_at(0, self.patch_size, self.smaller_patches)
        side = self.grid * least
        maps = encoder(torch.empty(1, 3, side, side, device="meta"))
        if maps.shape[-1] < self.grid:
            raise UserError(
                f"patch_size is {least}; the encoder turns montages of {side} pixels into "
                f"{maps.shape[-1]}x{maps.shape[-1]} features, too few to tell "
                f"{self.grid}x{self.grid} patches apart: use larger patches, or a ResNet with "
                "pretrain.small_stem = True"
            )

    def _check_batch(self, batch_size: int) -> None:
        """Raises UserError if there are too few images, or if batches do not fill the queue."""
        check_queue_size(self.queue_size, batch_size * self.grid**2, "batch_size * grid**2")
        if self.siblings == "apart" and batch_size < self.grid**2:
            raise UserError(
                f"siblings is 'apart', but batch_size is {batch_size}: each montage shows patches "
                f"of {self.grid**2} different images, so use a batch_size of {self.grid**2} or "
                "more, or bind siblings = 'anywhere'"
            )

    def summary(self, images: int) -> str:
        """Returns one line of the plan: number and size of montages or of single patches."""
        patches, size = images * self.grid**2, self.patch_size
        if self.single_every == 1:
            return f"single patches: {patches} of {size}x{size} pixels"
        side = self.grid * size
        montages = f"montages: {images} of {side}x{side} pixels"
        if self.single_every == 0:
            return montages
        single = f"{patches} single patches of {size}x{size}"
        return f"{montages} (one step in {self.single_every}: {single})"

    def dataset(self, source: Source, seed: int, batch_size: int) -> CropDataset:
        """Returns the images of a source, cut into patches (section 3.1)."""
        return CropDataset(
            source=source,
            seed=seed,
            batch_size=batch_size,
            draw=partial(
                jigsaw_crops,
                grid=self.grid,
                cross_ratio=self.cross_ratio,
                scale=self.crop_scale,
                ratio=self.crop_ratio,
            ),
            size=self.patch_size,
            smaller_sizes=self.smaller_patches,
            least_side=self.grid,
            scaled_decoding=self.scaled_decoding,
        )

    def network(self, encoder: Encoder) -> JigClu:
        """Adds the clustering head, the location head and perhaps a queue to an encoder."""
        settings = (
            self.grid,
            self.pooling_map,
            self.embedding_channels,
            self.projection_layers,
            self.projection_norm,
        )
        if self.queue_size == 0:
            return JigClu(encoder, *settings)
        return QueuedJigClu(encoder, *settings, self.queue_size, self.temperature)

    def step_inputs(self, crops: Tensor, seed: int, step: int) -> StepInputs:
        """Shuffles the patches of all ranks into the slots of this rank's montages.

        Slot s of the global batch shows patch permutation[s]; the permutation, int64
        [batch * grid**2], is the only target.
        """
        own, images = len(crops) * self.grid**2, len(crops) * collectives.world_size()
        permutation = jigsaw.arrange_patches(self.siblings, seed, step, images, self.grid)
        rows = permutation[collectives.rank() * own :][:own]
        drawn = draw_augmentation(self.augmentation, seed, step, len(permutation))
        return StepInputs(
            crops=collectives.exchange_patches(crops, permutation),
            augmentation=select_rows(drawn, rows, crops.device),
            targets=(to_device(permutation, crops.device),),
            single=self.single_every > 0 and step % self.single_every == 0,
        )

    def network_inputs(self, crops: Tensor) -> Tensor:
        """Stitches patches into montages, in the order of slots."""
        return jigsaw.stitch_montages(crops, self.grid)

    def losses(self, outputs: tuple[Tensor, ...], targets: tuple[Tensor, ...]) -> JigsawLosses:
        """Returns the two losses of this rank's slots, and their weighted sum (section 3.2).

        Args:
          outputs: `Outputs` or `QueuedOutputs` of this rank's slots.
          targets: the permutation, int64 [batch * grid**2].
        """
        embeddings, location_logits, _, *queue_sums = outputs
        (permutation,) = targets
        pieces, slots = self.grid**2, len(embeddings)
        own = collectives.rank() * slots
        # The anchors of a rank are the patches of its images, which montages of all ranks show.
        by_image = [
            losses.embeddings_by_image(
                collectives.gather_with_gradient(values), permutation, self.grid
            )
            for values in (embeddings, *queue_sums)
        ]
        clustering = losses.clustering_loss(
            by_image[0],
            own // pieces,
            slots // pieces,
            self.temperature,
            self.base_temperature,
            *by_image[1:],
        )
        location, accuracy = losses.location_loss(
            location_logits.float(),
            jigsaw.patch_locations(permutation[own : own + slots], len(permutation) // pieces),
        )
        loss = self.clustering_weight * clustering + self.location_weight * location
        return JigsawLosses(loss, clustering, location, accuracy)

    def measures(
        self, outputs: tuple[Tensor, ...], targets: tuple[Tensor, ...]
    ) -> dict[str, Tensor]:
        """Returns the health of embeddings and features, and which places are mistaken.

        Args:
          outputs: see `losses`.
          targets: see `losses`.
        """
        embeddings, location_logits, features = (
            collectives.gather(values, dim=0) for values in outputs[:3]
        )
        (permutation,) = targets
        by_image = losses.embeddings_by_image(embeddings, permutation, self.grid)
        places = jigsaw.patch_locations(permutation, len(by_image))
        counts = metrics.add(
            metrics.no_counts(self.grid**2, places.device), location_logits, places
        )
        return {**health.measure(by_image, features), "location_confusion": counts.confusion}

    def encoder_features(
        self, outputs: tuple[Tensor, ...], targets: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor]:
        """Returns the pooled features of this rank's slots, and the image of each."""
        features, (permutation,) = outputs[2], targets
        own = collectives.rank() * len(features)
        images = len(permutation) // self.grid**2
        return features, permutation[own : own + len(features)] % images

    def update_state(
        self, network: nn.Module, outputs: tuple[Tensor, ...], step: int, total_steps: int
    ) -> None:
        """Replaces the oldest embeddings of the queue, if there is one, by those of this step."""
        if isinstance(network, QueuedJigClu):
            replace_oldest(network.queue, outputs[0], step)

    def chance(self, batch_size: int) -> dict[str, float]:
        """Returns losses and accuracy if all embeddings and all location logits are equal.

        The clustering loss is that of a full queue.
        """
        others = batch_size * self.grid**2 - 1 + self.queue_size
        clustering = self.temperature / self.base_temperature * math.log(others)
        location = math.log(self.grid**2)
        return {
            "loss": self.clustering_weight * clustering + self.location_weight * location,
            "clustering_loss": clustering,
            "location_loss": location,
            "location_accuracy": 1 / self.grid**2,
            "retrieval": health.chance_retrieval(batch_size, self.grid**2),
        }

    def floor(self, batch_size: int) -> dict[str, float]:
        """Returns the losses if equal embeddings of an image are as far as possible from others.

        The queue counts as the patches of further images.
        """
        images, patches = batch_size + self.queue_size // self.grid**2, self.grid**2
        least = losses.least_clustering_loss(
            images, patches, self.temperature, self.base_temperature
        )
        return {"loss": self.clustering_weight * least, "clustering_loss": least}

    def draw(self, inputs: StepInputs) -> Tensor:
        """Draws the first montages, or patches if they are single: uint8 [3, height, width]."""
        rows = slice(SHOWN if inputs.single else SHOWN * self.grid**2)
        drawn = tuple(values[rows] for values in inputs.augmentation)
        patches = self.augmentation(inputs.crops[rows], drawn)
        images = patches if inputs.single else self.network_inputs(patches)
        return image_grid(images, self.augmentation.mean, self.augmentation.std)

    def draw_predictions(
        self, network: Network, dataset: CropDataset, seed: int, device: torch.device
    ) -> Tensor:
        """Draws a jigsaw of a few images, and which image and place each patch is assigned to.

        A patch is assigned to the image of its nearest other patch; for the arguments see
        `DrawsPredictions`.
        """
        order = epoch_order(seed, 0, len(dataset))
        cuts = [dataset.cut(index) for index in order[: jigsaw_picture.IMAGES].tolist()]
        images = len(cuts)
        patches = torch.stack([cut.crops for cut in cuts])
        # Mixed whatever `siblings` is, because a puzzle of one image shows little.
        permutation = jigsaw.global_permutation(seed, 0, images * self.grid**2)
        rows = permutation % images * self.grid**2 + permutation // images
        drawn = draw_augmentation(self.augmentation, seed, 0, len(permutation))
        slots = self.augmentation(
            patches.flatten(0, 1)[rows].to(device), select_rows(drawn, permutation, device)
        )
        single = self.single_every == 1
        outputs = network(slots, single=True) if single else network(self.network_inputs(slots))
        embeddings, location_logits = (value.float().cpu() for value in outputs[:2])
        return jigsaw_picture.jigsaw_picture(
            [cut.image for cut in cuts],
            [cut.boxes for cut in cuts],
            patches,
            to_pixels(slots, self.augmentation.mean, self.augmentation.std).cpu(),
            rows,
            assigned=rows[health.nearest_others(embeddings)] // self.grid**2,
            places=location_logits.argmax(1),
            single=single,
        )
