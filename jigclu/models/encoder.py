"""Encoders, up to the last feature map: torchvision's ResNets and timm's convolutional networks."""

import difflib
import functools
import re
from collections.abc import Callable
from typing import Any

import torchvision
from torch import Tensor, nn

from jigclu.models import timm_networks
from jigclu.models.batch_norm import BatchNorm
from jigclu.models.convolution import use_products
from jigclu.system.errors import UserError, check

_FAMILY = torchvision.models.resnet
# Families of transformers, which people look for among the encoders.
_TRANSFORMER = re.compile("vit|deit|beit|dino|swin|mixer|former", re.IGNORECASE)


def encoder_names() -> list[str]:
    """Returns the names of torchvision that `create_encoder` accepts."""
    names = torchvision.models.list_models(module=torchvision.models)
    return [
        name
        for name in names
        if torchvision.models.get_model_builder(name).__module__ == _FAMILY.__name__
    ]


def is_of_timm(name: str) -> bool:
    """Returns whether an encoder is a network of timm."""
    return name.startswith(timm_networks.PREFIX)


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

        A small stem divides by 8 instead, and each dilated stage divides by half as much.
        """
        for child in self.children():
            images = child(images)
        return images


class TimmEncoder(Encoder):
    """A network of timm without its head, with timm's parameter names.

    Its class also derives from the network's class, whose methods compute the feature map.
    """

    forward_features: Callable[[Tensor], Tensor]

    @staticmethod
    def adopt(network: Any, channels: int) -> "TimmEncoder":
        """Turns a network of `timm_networks.create_network` into an encoder, in place."""
        network.__class__ = _derive(network.__class__)
        assert isinstance(network, TimmEncoder)
        network.channels = channels
        return network

    def forward(self, images: Tensor) -> Tensor:
        """Maps [batch, 3, height, width] to [batch, channels, rows, columns]."""
        return self.forward_features(images)


@functools.cache
def _derive(network_class: Any) -> type:
    """Returns one class per class of networks, so that compiled code is found again."""
    return type("TimmEncoder", (TimmEncoder, network_class), {})


def encoder_tensors(encoder: nn.Module) -> dict[str, Tensor]:
    """Returns parameters and buffers of an encoder under the names of `weights.read_weights`."""
    return {f"encoder.{name}": value for name, value in encoder.state_dict().items()}


def create_encoder(name: str, small_stem: bool, dilated_stages: int = 0) -> Encoder:
    """Builds an encoder with random weights and batch normalization over all ranks.

    Args:
      name: one of torchvision's ResNet family: resnet18 to resnet152, resnext, wide_resnet. Or a
        convolutional network of timm: 'timm/convnext_tiny'; see `timm_networks.create_network`.
      small_stem: use a 3x3 first convolution of stride 1 and no max-pooling, for images of
        CIFAR's size (SimCLR, Chen et al., ICML 2020, appendix B.9); only ResNets of torchvision.
      dilated_stages: number of last stages, 0 to 2, that dilate their convolutions instead of
        halving the map; only ResNets of torchvision. Shapes and names of the weights are the same.

    Raises:
      UserError: the name is unknown, dilated_stages is out of range, or the network cannot be
        built as an encoder.
    """
    if is_of_timm(name):
        return _create_timm_encoder(name, small_stem, dilated_stages)
    if name not in encoder_names():
        raise _unknown(name)
    basic = has_basic_blocks(name)
    expected = f"0 for {name}, whose blocks torchvision cannot dilate" if basic else "0, 1 or 2"
    valid = (0,) if basic else (0, 1, 2)
    check(dilated_stages in valid, "dilated_stages", dilated_stages, expected)
    dilation = [dilated_stages >= number for number in (3, 2, 1)]
    resnet = torchvision.models.get_model(
        name, weights=None, norm_layer=BatchNorm, replace_stride_with_dilation=dilation
    )
    if small_stem:
        resnet.conv1 = nn.Conv2d(3, resnet.conv1.out_channels, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(resnet.conv1.weight, mode="fan_out", nonlinearity="relu")
        resnet.maxpool = nn.Identity()
    use_products(resnet)
    return Encoder(resnet)


def _create_timm_encoder(name: str, small_stem: bool, dilated_stages: int) -> TimmEncoder:
    network, channels = timm_networks.create_network(name.removeprefix(timm_networks.PREFIX))
    if small_stem:
        raise UserError(
            f"small_stem is True, which only ResNets of torchvision can have; encoder is {name!r}: "
            "bind small_stem = False"
        )
    expected = f"0 for {name}: only ResNets of torchvision dilate their stages"
    check(dilated_stages == 0, "dilated_stages", dilated_stages, expected)
    return TimmEncoder.adopt(network, channels)


def _unknown(name: str) -> UserError:
    kinds = (
        "encoders are convolutional networks: any of timm, such as 'timm/convnext_tiny', and of "
        f"torchvision {', '.join(encoder_names())}"
    )
    if _TRANSFORMER.search(name):
        return UserError(f"encoder {name!r} is a transformer, which cannot be an encoder; {kinds}")
    near = difflib.get_close_matches(name, encoder_names(), 1)
    if timm_networks.exists(name):
        near = [timm_networks.PREFIX + name]
    if not near:
        return UserError(f"encoder {name!r} is unknown; {kinds}")
    return UserError(f"encoder {name!r} is unknown; did you mean {near[0]!r}? E{kinds[1:]}")
