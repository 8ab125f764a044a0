"""What the network sees, and what it confuses, as pictures for people."""

import torch
from torch import Tensor
from torchvision.utils import make_grid

from jigclu.methods.jigsaw import StepInputs
from jigclu.ops.augment import AugmentationSettings, augment
from jigclu.ops.jigsaw import stitch_montages
from jigclu.system.to_device import per_channel

_MONTAGES = 8
_COLUMNS = 4
_SIDE = 400  # Pixels, at least, of a picture of few classes.


@torch.no_grad()
def montage_picture(inputs: StepInputs, settings: AugmentationSettings, grid: int) -> Tensor:
    """Draws the first montages of a step, augmented as the network gets them.

    Args:
      inputs: of the step.
      settings: of the augmentation.
      grid: patches a side of a montage.

    Returns:
      uint8 [3, height, width].
    """
    count = min(_MONTAGES * grid**2, len(inputs.slots))
    rows = type(inputs.augmentation)._make(values[:count] for values in inputs.augmentation)
    montages = stitch_montages(augment(inputs.slots[:count], rows, settings), grid)
    mean, std = (per_channel(values, montages.device) for values in (settings.mean, settings.std))
    pixels = (montages * std + mean).clamp(0, 1)
    return (make_grid(pixels, nrow=_COLUMNS, pad_value=1.0) * 255).round().to(torch.uint8)


def confusion_picture(confusion: Tensor) -> Tensor:
    """Draws which classes are taken for which: the darker, the larger the share.

    Args:
      confusion: int64 [classes, classes], images by true class (row) and predicted one.

    Returns:
      uint8 [3, side, side]; a pixel or a square of them for each cell.
    """
    shares = confusion / confusion.sum(1, keepdim=True).clamp_min(1)
    # Rare confusions are what one looks for: the root shows a share of 1 % as a tenth.
    gray = ((1 - shares.sqrt()) * 255).round().to(torch.uint8)
    zoom = max(1, _SIDE // len(gray))
    return gray.repeat_interleave(zoom, 0).repeat_interleave(zoom, 1).expand(3, -1, -1)
