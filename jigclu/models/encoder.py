"""Encoders: torchvision's ResNet family, up to the last feature map."""

import difflib

import torchvision
from torch import Tensor, nn

from jigclu.models.batch_norm import BatchNorm
from jigclu.system.errors import UserError, check

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

        A small stem divides by 8 instead, and each dilated stage divides by half as much.
        """
        for child in self.children():
            images = child(images)
        return images


def encoder_tensors(encoder: nn.Module) -> dict[str, Tensor]:
    """Returns parameters and buffers of an encoder under the names of `weights.read_weights`."""
    return {f"encoder.{name}": value for name, value in encoder.state_dict().items()}


def create_encoder(name: str, small_stem: bool, dilated_stages: int = 0) -> Encoder:
    """Builds an encoder with random weights and batch normalization over all ranks.

    Args:
      name: one of torchvision's ResNet family: resnet18 to resnet152, resnext, wide_resnet.
      small_stem: use a 3x3 first convolution of stride 1 and no max-pooling, for images of
        CIFAR's size (SimCLR, Chen et al., ICML 2020, appendix B.9).
      dilated_stages: number of last stages, 0 to 2, that dilate their convolutions instead of
        halving the map. Shapes and names of the weights are the same.

    Raises:
      UserError: an unknown name, or dilated_stages out of range.
    """
    if name not in encoder_names():
        near = difflib.get_close_matches(name, encoder_names(), 1, 0.0)[0]
        raise UserError(
            f"encoder {name!r} is unknown; did you mean {near!r}? "
            f"Known: {', '.join(encoder_names())}"
        )
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
    return Encoder(resnet)
