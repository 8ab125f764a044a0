"""Encoders: torchvision's ResNet family, up to the last feature map."""

import difflib

import torchvision
from torch import Tensor, nn

from jigclu.models.batch_norm import BatchNorm
from jigclu.system.errors import UserError

_FAMILY = torchvision.models.resnet


def encoder_names() -> list[str]:
    """Returns the names that `create_encoder` accepts."""
    names = torchvision.models.list_models(module=torchvision.models)
    return [
        name
        for name in names
        if torchvision.models.get_model_builder(name).__module__ == _FAMILY.__name__
    ]


def has_basic_blocks(name: str) -> bool:
    """Returns whether an encoder consists of basic instead of bottleneck blocks."""
    return name in ("resnet18", "resnet34")


class Encoder(nn.Module):
    """A ResNet without pooling and classifier, with torchvision's parameter names."""

    def __init__(self, resnet: torchvision.models.ResNet) -> None:
        super().__init__()
        self.channels = resnet.fc.in_features
        for name, child in resnet.named_children():
            if name not in ("avgpool", "fc"):
                self.add_module(name, child)

    def forward(self, images: Tensor) -> Tensor:
        """Maps [batch, 3, height, width] to [batch, channels, height / 32, width / 32].

        A small stem divides by 8 instead.
        """
        for child in self.children():
            images = child(images)
        return images


def encoder_tensors(encoder: nn.Module) -> dict[str, Tensor]:
    """Returns parameters and buffers of an encoder under the names of `weights.read_weights`."""
    return {f"encoder.{name}": value for name, value in encoder.state_dict().items()}


def create_encoder(name: str, small_stem: bool) -> Encoder:
    """Builds an encoder with random weights and batch normalization over all ranks.

    Args:
      name: one of torchvision's ResNet family: resnet18 to resnet152, resnext, wide_resnet.
      small_stem: use a 3x3 first convolution of stride 1 and no max-pooling, for images of
        CIFAR's size (SimCLR, Chen et al., ICML 2020, appendix B.9).

    Raises:
      UserError: an unknown name.
    """
    if name not in encoder_names():
        near = difflib.get_close_matches(name, encoder_names(), 1, 0.0)[0]
        raise UserError(
            f"encoder {name!r} is unknown; did you mean {near!r}? "
            f"Known: {', '.join(encoder_names())}"
        )
    resnet = torchvision.models.get_model(name, weights=None, norm_layer=BatchNorm)
    if small_stem:
        resnet.conv1 = nn.Conv2d(3, resnet.conv1.out_channels, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(resnet.conv1.weight, mode="fan_out", nonlinearity="relu")
        resnet.maxpool = nn.Identity()
    return Encoder(resnet)
