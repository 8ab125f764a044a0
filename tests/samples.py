"""Small things for tests: images in memory, a network, the inputs of its steps."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torchvision.models import resnet

from jigclu.data.decode import Reduction, UnreadableImageError, at_full_size
from jigclu.data.transform import EvalTransform
from jigclu.methods.byol import Byol
from jigclu.methods.jigsaw import Jigsaw
from jigclu.methods.method import Method, StepInputs
from jigclu.methods.moco import Moco
from jigclu.methods.simclr import SimClr
from jigclu.methods.simsiam import SimSiam
from jigclu.methods.two_views import TwoViews
from jigclu.models.batch_norm import BatchNorm
from jigclu.models.encoder import Encoder
from jigclu.models.jigclu import JigClu
from jigclu.ops import augment, optim
from jigclu.system import collectives
from jigclu.system.to_device import to_device
from jigclu.tasks.export_formats import Description

BATCH, GRID, SIZE = 4, 2, 32
ADAMW = optim.AdamW(
    beta1=0.9, beta2=0.999, epsilon=1e-8, weight_decay=0.05, decay_norms_and_biases=False
)
AUGMENTATION = augment.ColorAugmentation(
    brightness=0.4,
    contrast=0.4,
    saturation=0.4,
    hue=0.1,
    jitter_probability=0.8,
    grayscale_probability=0.2,
    blur_probability=0.5,
    blur_sigma_min=0.1,
    blur_sigma_max=0.6,
    flip_probability=0.5,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)


def small_encoder(norm_layer: type[nn.Module] = BatchNorm) -> Encoder:
    """Builds the encoder of `small_model`, with the same weights every time."""
    torch.manual_seed(0)
    return Encoder(resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1], norm_layer=norm_layer))


def small_model(norm_layer: type[nn.Module] = BatchNorm) -> JigClu:
    """Builds one block a stage: every kind of layer of the real ones."""
    return JigClu(small_encoder(norm_layer), GRID, pooling_map=None, embedding_channels=16)


class TinyEncoder(Encoder):
    """A convolution, batch normalization and ReLU: what compiles in seconds."""

    def __init__(self, norm_layer: type[nn.Module] = BatchNorm, channels: int = 8) -> None:
        nn.Module.__init__(self)
        self.channels = channels
        self.conv1 = nn.Conv2d(3, self.channels, 5, stride=4, padding=2, bias=False)
        self.bn1 = norm_layer(self.channels)
        self.relu = nn.ReLU()


def tiny_model(norm_layer: type[nn.Module] = BatchNorm) -> JigClu:
    """Builds the smallest network that has every part of a step."""
    torch.manual_seed(0)
    return JigClu(TinyEncoder(norm_layer), GRID, pooling_map=8, embedding_channels=16)


def tiny_network(method: Method, norm_layer: type[nn.Module] = BatchNorm) -> nn.Module:
    """Builds the network of a method with `TinyEncoder`, with the same weights every time."""
    torch.manual_seed(0)
    return method.network(TinyEncoder(norm_layer))


JIGSAW = Jigsaw(
    grid=GRID,
    cross_ratio=0.3,
    patch_size=SIZE,
    smaller_patches=(),
    crop_scale=(0.2, 1.0),
    crop_ratio=(0.75, 4 / 3),
    scaled_decoding=True,
    augmentation=AUGMENTATION,
    siblings="anywhere",
    single_every=0,
    pooling_map=None,
    projection_layers=2,
    projection_norm=False,
    embedding_channels=16,
    temperature=0.3,
    base_temperature=0.07,
    clustering_weight=1.0,
    location_weight=1.0,
    queue_size=0,
)
# Settings that change the published method. The queue holds two batches, and the patches of
# steps 0 and 3 are encoded one by one.
EXTENDED = dataclasses.replace(
    JIGSAW,
    siblings="apart",
    single_every=3,
    projection_layers=1,
    queue_size=2 * BATCH * GRID**2,
)
VIEWS: dict[str, Any] = {
    "view_size": 2 * SIZE,  # Pixels, as those of montages.
    "crop_scale": (0.2, 1.0),
    "crop_ratio": (0.75, 4 / 3),
    "scaled_decoding": True,
    "augmentation": AUGMENTATION,
}
SIMCLR = SimClr(**VIEWS, embedding_channels=16, temperature=0.5)
MOCO = Moco(**VIEWS, embedding_channels=16, temperature=0.2, queue_size=3 * BATCH, momentum=0.75)
SIMSIAM = SimSiam(**VIEWS, embedding_channels=16, prediction_channels=8)
BYOL = Byol(**VIEWS, hidden_channels=32, embedding_channels=16, momentum=0.75)


def method_inputs(method: Method, step: int, device: str = "cpu") -> StepInputs:
    """Returns this rank's inputs of a step; the global batch is a function of the step."""
    generator = torch.Generator().manual_seed(step)
    size = method.view_size if isinstance(method, TwoViews) else SIZE
    shape = (BATCH, method.crops_per_image, 3, size, size)
    crops = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    local = BATCH // collectives.world_size()
    own = crops[collectives.rank() * local :][:local]
    return method.step_inputs(to_device(own, device), 0, step)


def jigsaw_inputs(step: int, device: str = "cpu") -> StepInputs:
    """Returns this rank's inputs of a step of jigsaw clustering."""
    return method_inputs(JIGSAW, step, device)


class MemorySource:
    """Images by number; those that are None cannot be read."""

    def __init__(self, images: list[Tensor | None], labels: list[int] | None = None) -> None:
        self.classes: list[str] = []
        self.labels = labels
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def fingerprint(self, deep: bool) -> str:
        return "memory"

    def read(self, index: int, reduction: Reduction = at_full_size) -> Tensor:
        del reduction
        image = self._images[index]
        if image is None:
            raise UnreadableImageError("unreadable on purpose")
        return image

    def name(self, index: int) -> str:
        return f"memory {index}"


def eval_transform(resize: int, crop: int) -> EvalTransform:
    """Returns a preprocessing whose channels differ in mean and deviation."""
    return EvalTransform(resize=resize, crop=crop, mean=(0.5, 0.4, 0.3), std=(0.25, 0.2, 0.3))


# Of an exported ResNet-18.
DESCRIPTION = Description("resnet18", False, eval_transform(resize=40, crop=32))


def noise(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator())


def published_checkpoint(arch: str, channels: int) -> dict[str, Any]:
    """Makes a file of the published code, of random weights: JigClu_200e.pth, model_best.pth.tar.

    Args:
      arch: of torchvision.
      channels: of its features.
    """
    heads = {
        "fc_clu.0.weight": (channels, channels),
        "fc_clu.0.bias": (channels,),
        "fc_clu.2.weight": (128, channels),
        "fc_clu.2.bias": (128,),
        "fc_loc.weight": (4, channels),
        "fc_loc.bias": (4,),
    }
    encoder = torchvision.models.get_model(arch, weights=None).state_dict()
    shapes = {key: value.shape for key, value in encoder.items() if not key.startswith("fc.")}
    random = torch.Generator().manual_seed(0)
    state = {
        f"module.encoder.{key}": torch.tensor(1_000_000)
        if key.endswith("num_batches_tracked")
        else torch.rand(shape, generator=random)
        for key, shape in (shapes | heads).items()
    }
    trained = [key for key in state if key.endswith(("weight", "bias"))]
    group = {"lr": 0.0, "momentum": 0.9, "dampening": 0, "weight_decay": 1e-4, "nesterov": False}
    return {
        "epoch": 200,
        "arch": arch,
        "state_dict": state,
        "optimizer": {
            "state": {
                number: {"momentum_buffer": torch.zeros_like(state[key])}
                for number, key in enumerate(trained)
            },
            "param_groups": [group | {"params": list(range(len(trained)))}],
        },
    }


def write_image_tree(root: Path) -> None:
    """Writes 7 images of two classes, of sides from 20 to 50 pixels."""
    random = np.random.default_rng(0)
    for number in range(7):
        folder = root / ("cat", "dog")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        height, width = 20 + 5 * number, 50 - 5 * number
        pixels = random.integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).resize((width, height)).save(folder / f"{number}.png")
