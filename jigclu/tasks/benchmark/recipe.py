"""The published recipe of pre-training without gin, for machines that do not have it.

Chen et al., CVPR 2021, and the code published with it. The values are those of
gin/pretrain_r50.gin, where each has its unit and source; a test compares the two.
"""

import dataclasses
from typing import Any

from jigclu.data.sources import Source
from jigclu.ops import optim, schedules
from jigclu.ops.augment import AugmentationSettings
from jigclu.tasks.pretrain import PretrainTask

_AUGMENTATION = AugmentationSettings(
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
_PATCH_SIZE = 112


def published_recipe(source: Source) -> PretrainTask:
    """Returns the published pre-training of ResNet-50 on a source."""
    return PretrainTask(
        seed=0,
        source=source,
        batch_size=256,
        micro_batch_size=None,
        epochs=200,
        stop_after_steps=None,
        grid=2,
        cross_ratio=0.3,
        patch_size=_PATCH_SIZE,
        smaller_patches=(),
        crop_scale=(0.2, 1.0),
        crop_ratio=(0.75, 4 / 3),
        scaled_decoding=True,
        augmentation=_AUGMENTATION,
        encoder="resnet50",
        small_stem=False,
        pooling_map=8,
        embedding_channels=128,
        temperature=0.3,
        base_temperature=0.07,
        clustering_weight=1.0,
        location_weight=1.0,
        optimizer=optim.SGD(momentum=0.9, weight_decay=1e-4),
        learning_rate=0.03,
        warmup_epochs=0,
        decay=schedules.CosineDecay(),
        per_epoch=True,
        device="auto",
        precision="float32",
        compile="auto",
        channels_last="auto",
        loss_scaling=optim.LossScaling(initial=65536.0, growth=2.0, backoff=0.5, interval=2000),
        workers="auto",
        prefetch=2,
        init_from=None,
        resume_from=None,
        log_every=50,
        picture_every=5000,
        checkpoint_every=1000,
        keep_last=2,
        keep_every=0,
        evaluation=None,
        evaluate_every=0,
    )


def with_patch_size(task: PretrainTask, patch_size: int, **changes: Any) -> PretrainTask:
    """Returns a published recipe for patches of another size, blurred in proportion."""
    sigma = _AUGMENTATION.blur_sigma_max * patch_size / _PATCH_SIZE
    return dataclasses.replace(
        task,
        patch_size=patch_size,
        augmentation=dataclasses.replace(task.augmentation, blur_sigma_max=sigma),
        **changes,
    )
