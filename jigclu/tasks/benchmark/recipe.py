"""The published pre-training recipe without gin, for machines that do not have gin.

Chen et al., CVPR 2021, and the code published with it. The values are those of
gin/pretrain_r50.gin, which states their units and sources; a test compares the two.
"""

import dataclasses
from typing import Any

from jigclu.data.sources import Source
from jigclu.methods.jigsaw import Jigsaw
from jigclu.ops import optim, schedules
from jigclu.ops.augment import ColorAugmentation
from jigclu.tasks.pretrain import PretrainTask
from jigclu.training.settings import (
    Compute,
    Loading,
    Reporting,
    Saving,
    Schedule,
    with_settings,
)

_AUGMENTATION = ColorAugmentation(
    brightness=0.4,
    contrast=0.4,
    saturation=0.4,
    hue=0.1,
    jitter_probability=0.8,
    grayscale_probability=0.2,
    blur_probability=0.5,
    blur_sigma_min=0.1,
    blur_sigma_max=2.0,
    flip_probability=0.5,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)
_METHOD = Jigsaw(
    grid=2,
    cross_ratio=0.3,
    patch_size=112,
    smaller_patches=(),
    crop_scale=(0.2, 1.0),
    crop_ratio=(0.75, 4 / 3),
    scaled_decoding=True,
    augmentation=_AUGMENTATION,
    siblings="anywhere",
    single_every=0,
    pooling_map=8,
    projection_layers=2,
    projection_norm=False,
    embedding_channels=128,
    temperature=0.3,
    base_temperature=0.07,
    clustering_weight=1.0,
    location_weight=1.0,
    queue_size=0,
)


def published_recipe(source: Source, batch_size: int = 256) -> PretrainTask:
    """Returns the published pre-training of ResNet-50 on a source.

    Args:
      source: of at least `batch_size` images.
      batch_size: images per step; the published value suits ImageNet.
    """
    return PretrainTask(
        seed=0,
        source=source,
        batch_size=batch_size,
        micro_batch_size=None,
        method=_METHOD,
        encoder="resnet50",
        small_stem=False,
        optimizer=optim.SGD(
            momentum=0.9, nesterov=False, weight_decay=1e-4, decay_norms_and_biases=True
        ),
        learning_rate=0.03,
        schedule=Schedule(
            epochs=200,
            warmup_epochs=0,
            decay=schedules.CosineDecay(),
            per_epoch=True,
            stop_after_steps=None,
            bad_steps=0,
        ),
        compute=Compute(
            device="auto",
            precision="float32",
            compile="auto",
            channels_last="auto",
            loss_scaling=optim.LossScaling(initial=65536.0, growth=2.0, backoff=0.5, interval=2000),
            rank_timeout=900,
        ),
        loading=Loading(workers="auto", prefetch=2, timeout=600, most_unreadable=0.2),
        init_from=None,
        resume_from=None,
        saving=Saving(every=1000, keep_last=2, keep_every=0),
        reporting=Reporting(log_every=50, picture_every=5000),
        average_momentum=0.0,
        evaluators=(),
        online_probe=None,
    )


def with_patch_size(task: PretrainTask, patch_size: int, **changes: Any) -> PretrainTask:
    """Returns the published recipe for patches of another size, with the blur in proportion."""
    sigma = _AUGMENTATION.blur_sigma_max * patch_size / _METHOD.patch_size
    augmentation = dataclasses.replace(_AUGMENTATION, blur_sigma_max=sigma)
    method = dataclasses.replace(_METHOD, patch_size=patch_size, augmentation=augmentation)
    return with_settings(task, method=method, **changes)
