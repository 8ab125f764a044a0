"""Rules that choose a pre-training recipe from a folder of images and the machine.

`choose_images` looks at the folder and chooses what to train and evaluate on; `choose_training`
chooses the rest from a few facts. A choice is a binding with its reason. Whatever the user binds
is not chosen, and the choices after it follow from it.

[P] is Chen et al., CVPR 2021, with its published code; all else is a choice of this project.
"""

import itertools
import os
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import numpy as np

from jigclu.data.decode import UnreadableImageError, read_size
from jigclu.data.folders import find_splits, scan_folder
from jigclu.data.image_files import ImageFiles, ImageWalk, require_folder
from jigclu.data.sources import Source
from jigclu.data.subsets import check_labeled
from jigclu.models.encoder import is_of_timm
from jigclu.models.weights import Architecture
from jigclu.system.errors import UserError

_HELD_OUT = 0.1  # Share of each class, at least one image; gin/pretrain_folder.gin binds it, too.
_MOST_HELD_OUT = 0.2  # Share of all images, which small classes may exceed.
_NEIGHBORS = 20
_SAMPLE = 100  # Images whose size is read.

_EPOCHS, _BATCH_SIZE = 200, 256  # [P]
# For that batch, by optimizer: [P], and those of gin/base/convnext.gin and gin/base/lars.gin.
_LEARNING_RATES = {"sgd": 0.03, "adamw": 2.5e-4, "lars": 0.3}
_LEAST_STEPS = 5_000
_LEAST_BATCH_SIZE = 32
_RESNET50_IMAGES = 10_000
_MOST_SIZE = 224  # Pixels [P].
_SMALL_STEM_SIZE = 64  # Pixels, which the standard stem would turn into 2x2 positions.
# Enlarged to 128 pixels for the standard stem, small images cost a third of what they cost with
# the small stem; those of up to 48 pixels are too small for that, and cheap.
_CPU_SIZE, _CPU_LARGE = 128, 48
_CPU_SMALL_SIZE = 32
_CPU_BATCH_SIZE = 64
_CPU_STEPS = 10_000  # An evening.
# Memory of a training step in 16 bits, bytes per image of 224 pixels (docs/recipes.md).
_STEP_MEMORY = {"resnet18": 22e6, "resnet50": 70e6}
_OTHER_STEP_MEMORY = 200e6
_FLOAT32 = 1.5  # Times that memory, on a CPU.
_MEMORY_SHARE = 0.8


class Choice(NamedTuple):
    """A binding that the user left to the rules: its name, its value in gin's syntax, and why."""

    name: str
    value: str
    reason: str


# ---- What to train and evaluate on -----------------------------------------------------

# Values of pretrain.source and pretrain.evaluators for the images of the folder.
_ALL, _TRAIN_PART = SOURCES = ("@open_folder()", "@train_part/HeldOut()")
KNN = "(@knn_evaluator(),)"
# Bindings that depend on where the folder is.
PLACES = ("open_folder.root", "val/open_folder.root")


def choose_images(root: str, evaluates: bool) -> list[Choice]:
    """Chooses the training images of a folder, and an evaluation if they have classes.

    Args:
      root: folder with images in any arrangement.
      evaluates: whether to choose an evaluation.

    Raises:
      UserError: root is missing or contains no images.
    """
    root = require_folder(root)
    splits = [folder for folder in find_splits(root, "train") if _has_images(folder)]
    folder = splits[0] if len(splits) == 1 else root
    images = scan_folder(folder)
    classes = f", {len(images.classes)} class folders" if images.classes else ""
    chosen = Choice("open_folder.root", repr(folder), f"{len(images):,} images{classes}")
    if not evaluates:
        return [chosen, Choice("pretrain.source", _ALL, "all of these images")]
    return [chosen, *_choose_evaluation(images, root if folder != root else None)]


def _has_images(folder: str) -> bool:
    walk = ImageWalk(folder)
    return any(itertools.chain(walk.images(""), walk.linked_images()))


def _choose_evaluation(images: ImageFiles, root: str | None) -> list[Choice]:
    """Chooses the source and its kNN evaluation.

    Args:
      images: for training.
      root: folder with evaluation images beside them, or None.
    """
    all_images = Choice("pretrain.source", _ALL, "all of these images")
    none = "the log compares losses, location accuracy and retrieval with chance"
    if images.labels is None or len(images.classes) < 2:
        return [all_images, Choice("pretrain.evaluators", "()", f"no class folders: {none}")]
    split = _find_val(images, root) if root is not None else None
    if split is not None:
        return [
            all_images,
            Choice("val/open_folder.root", repr(split), "images of the same classes"),
            *_knn(_ALL, "@val/open_folder()", len(images) // len(images.classes)),
        ]
    counts = np.bincount(images.labels)
    held_out = int(np.maximum(1, np.rint(counts * _HELD_OUT)).sum())
    if counts.min() < 2 or held_out > _MOST_HELD_OUT * len(images):
        reason = f"classes are too small to hold out images: {none}"
        return [all_images, Choice("pretrain.evaluators", "()", reason)]
    rest = len(images) - held_out
    return [
        Choice("pretrain.source", _TRAIN_PART, f"{held_out:,} images are held out for evaluation"),
        *_knn(_TRAIN_PART, "@held_out/HeldOut()", rest // len(images.classes)),
    ]


def _find_val(images: ImageFiles, root: str) -> str | None:
    """Returns the folder of evaluation images with the classes of the training images."""
    for folder in [*find_splits(root, "val"), *find_splits(root, "test")]:
        try:
            check_labeled(images, scan_folder(folder), "training images", folder)
        except UserError:
            continue
        return folder
    return None


def _knn(bank: str, queries: str, images_per_class: int) -> list[Choice]:
    neighbors = max(1, min(_NEIGHBORS, images_per_class))
    return [
        Choice("pretrain.evaluators", KNN, "there are class folders"),
        Choice("knn_evaluator.bank", bank, "the training images"),
        Choice("knn_evaluator.queries", queries, "images that are not trained on"),
        Choice("knn_evaluator.neighbors", repr(neighbors), f"{images_per_class} images per class"),
    ]


# ---- How to train ----------------------------------------------------------------------


class Facts(NamedTuple):
    """Facts from which the training follows.

    images: number of training images.
    side: typical shorter side of an image, pixels.
    on_gpu: whether GPUs train.
    memory: of the smallest device, bytes.
    processes: number of processes that train together.
    weights: encoder of the initial weights; None for random ones.
    """

    images: int
    side: int
    on_gpu: bool
    memory: float
    processes: int
    weights: Architecture | None


def typical_side(source: Source) -> int:
    """Returns the median of the shorter sides of an evenly spread sample of images, in pixels.

    Raises:
      UserError: none of them can be read.
    """
    sides, unreadable = [], ""
    count = min(len(source), _SAMPLE)
    for index in np.linspace(0, len(source) - 1, count).round().astype(int).tolist():
        try:
            sides.append(min(_read_size(source, index)))
        except UnreadableImageError as error:
            unreadable = f"{source.name(index)} ({error})"
    if not sides:
        raise UserError(
            f"none of {count} images can be read, the last one is {unreadable}: check that the "
            "files are images and were copied completely"
        )
    return int(np.median(sides))


def _read_size(source: Source, index: int) -> tuple[int, int]:
    """Returns height and width in pixels; of a file only reads the header."""
    name = source.name(index)
    if os.path.isfile(name):
        return read_size(name)
    _, height, width = source.read(index).shape
    return height, width


def choose_training(facts: Facts, known: Mapping[str, Any], left: Collection[str]) -> list[Choice]:
    """Applies the rules in their order.

    Args:
      facts: of images and machine.
      known: values of other bindings, by name.
      left: names of the bindings that are left to the rules.

    Raises:
      UserError: there is only one image.
    """
    if facts.images < 2:
        raise UserError(
            "there is 1 image to train on: use 2 or more, because patches are compared with those "
            "of other images"
        )
    values, choices = dict(known), []
    for name, rule in RULES.items():
        if name in left:
            values[name], reason = rule(facts, values)
            choices.append(Choice(name, repr(values[name]), reason))
    return choices


# Returns a value and the reason for it, from facts and the values of earlier rules.
Rule = Callable[[Facts, Mapping[str, Any]], tuple[Any, str]]


def _size(facts: Facts, values: Mapping[str, Any]) -> tuple[int, str]:
    side = f"the shorter side of images typically has {facts.side} pixels"
    if facts.on_gpu:
        size = min(max(facts.side // 32 * 32, 32), _MOST_SIZE)
        reason = f"{side}; a multiple of 32, at most {_MOST_SIZE}"
    else:
        size = _CPU_SIZE if facts.side > _CPU_LARGE else _CPU_SMALL_SIZE
        reason = f"{side}; a CPU trains"
    small = _known_stem(facts, values)
    if small is None or small == (size <= _SMALL_STEM_SIZE):
        return size, reason
    return _SMALL_STEM_SIZE, f"{side}; the encoder has a {'small' if small else 'standard'} stem"


def _known_stem(facts: Facts, values: Mapping[str, Any]) -> bool | None:
    """Returns whether the stem is small, if that does not follow from the images."""
    if facts.weights is not None:
        return facts.weights.small_stem
    if is_of_timm(values.get("pretrain.encoder", "")):
        return False
    bound = values.get("pretrain.small_stem")
    return bound if isinstance(bound, bool) else None


def _encoder(facts: Facts, values: Mapping[str, Any]) -> tuple[str, str]:
    if facts.weights is not None:
        return facts.weights.encoder, "as in the initial weights"
    if not facts.on_gpu:
        return "resnet18", "a CPU trains"
    if values["SIZE"] <= _SMALL_STEM_SIZE:
        return "resnet18", "images are small"
    if facts.images < _RESNET50_IMAGES:
        return "resnet18", f"there are fewer than {_RESNET50_IMAGES:,} images"
    return "resnet50", f"there are {_RESNET50_IMAGES:,} images or more"


def _small_stem(facts: Facts, values: Mapping[str, Any]) -> tuple[bool, str]:
    if facts.weights is not None:
        return facts.weights.small_stem, "as in the initial weights"
    if is_of_timm(values["pretrain.encoder"]):
        return False, "only ResNets of torchvision can have a small stem"
    if values["SIZE"] <= _SMALL_STEM_SIZE:
        return True, f"montages have {_SMALL_STEM_SIZE} pixels or fewer"
    return False, f"montages have more than {_SMALL_STEM_SIZE} pixels"


def _pooling_map(facts: Facts, values: Mapping[str, Any]) -> tuple[int | None, str]:
    positions = values["SIZE"] // (8 if values["pretrain.small_stem"] is True else 32)
    if positions % 2:
        return 8, "published; the map's side may be odd"
    return None, f"the map has {positions}x{positions} positions, an even number"


def _batch_size(facts: Facts, values: Mapping[str, Any]) -> tuple[int, str]:
    images = facts.images
    fitting = int(_MEMORY_SHARE * facts.memory / _step_memory(facts, values)) * facts.processes
    some = max(images // 4, min(images, _LEAST_BATCH_SIZE))
    limits = {
        "published": _BATCH_SIZE,
        f"a power of two, at most {some} of {images:,} images": some,
        f"a power of two that fits into {facts.memory / 1e9:.0f} GB of memory": fitting,
    }
    if not facts.on_gpu:
        limits["a CPU takes more steps instead"] = _CPU_BATCH_SIZE
    reason = min(limits, key=lambda name: limits[name])
    size = max(2, 2 ** (max(limits[reason], 1).bit_length() - 1))
    # Each process gets the same number of images.
    return max(size // facts.processes, 1) * facts.processes, reason


def _step_memory(facts: Facts, values: Mapping[str, Any]) -> float:
    """Returns the memory of a step, bytes per image."""
    # The small stem halves a side twice less.
    side = values["SIZE"] * (4 if values["pretrain.small_stem"] is True else 1)
    memory = _STEP_MEMORY.get(values["pretrain.encoder"], _OTHER_STEP_MEMORY)
    return memory * (side / _MOST_SIZE) ** 2 * (1 if facts.on_gpu else _FLOAT32)


def _learning_rate(facts: Facts, values: Mapping[str, Any]) -> tuple[float, str]:
    optimizer = values["pretrain.optimizer"].strip("@()").rpartition("/")[2]
    if optimizer not in _LEARNING_RATES:
        known = ", ".join(f"@{name}()" for name in _LEARNING_RATES)
        raise UserError(
            f"pretrain.learning_rate is left to the rules, which know those of {known}, but "
            f"pretrain.optimizer is @{optimizer}(): bind pretrain.learning_rate"
        )
    usual = _LEARNING_RATES[optimizer]
    rate = usual * values["pretrain.batch_size"] / _BATCH_SIZE
    return float(f"{rate:.6g}"), f"{usual} for {_BATCH_SIZE} images by {optimizer}, in proportion"


def _epochs(facts: Facts, values: Mapping[str, Any]) -> tuple[int, str]:
    # The task rejects a bound batch of no images.
    steps = max(1, facts.images // max(1, values["pretrain.batch_size"]))
    least = -(-_LEAST_STEPS // steps)
    if least > _EPOCHS:
        return least, f"{_LEAST_STEPS:,} steps"
    if not facts.on_gpu and steps * _EPOCHS > _CPU_STEPS:
        return max(1, _CPU_STEPS // steps), f"about {_CPU_STEPS:,} steps, because a CPU trains"
    return _EPOCHS, "published"


def _warmup_epochs(facts: Facts, values: Mapping[str, Any]) -> tuple[float, str]:
    return values["schedule.epochs"] / 20, "a twentieth of the epochs"


def _knn_every(facts: Facts, values: Mapping[str, Any]) -> tuple[int, str]:
    return values["schedule.epochs"] // 10, "a tenth of the epochs; 0: before and after training"


RULES: dict[str, Rule] = {
    "SIZE": _size,
    "pretrain.encoder": _encoder,
    "pretrain.small_stem": _small_stem,
    "jigsaw.pooling_map": _pooling_map,
    "pretrain.batch_size": _batch_size,
    "pretrain.learning_rate": _learning_rate,
    "schedule.epochs": _epochs,
    "schedule.warmup_epochs": _warmup_epochs,
    "knn_evaluator.every": _knn_every,
}
# All bindings that can be left to the rules.
NAMES = (
    "pretrain.source",
    *PLACES,
    "pretrain.evaluators",
    "knn_evaluator.bank",
    "knn_evaluator.queries",
    "knn_evaluator.neighbors",
    *RULES,
)
