"""Macros that follow from SIZE, since gin has no arithmetic.

SIZE is the side of the images that a network sees, in pixels. A file may read three more macros
without binding them:

    PATCH_SIZE  side of the patches of a 2x2 montage: SIZE / 2
    BLUR_SIGMA  largest sigma of the blur: 2 for patches of 112 pixels, in proportion for others
    RESIZE      shorter side of an image before its center crop of SIZE: 256 for 224, in proportion
"""

import ast
from collections.abc import Collection, Mapping
from typing import Any

from jigclu.system.errors import check

DERIVED = ("PATCH_SIZE", "BLUR_SIGMA", "RESIZE")
# The published values (Chen et al., CVPR 2021, with its published code).
_PATCH_SIZE, _BLUR_SIGMA = 112, 2.0
_SIZE, _RESIZE = 224, 256


def derive(bound: Mapping[str, str], read: Collection[str]) -> dict[str, int | float]:
    """Returns the values of derived macros that are read but not bound.

    Args:
      bound: values of macros, in gin's syntax.
      read: names of macros that are read.

    Raises:
      UserError: SIZE is not a number of pixels, or odd and to be halved.
    """
    missing = [name for name in DERIVED if name in read and name not in bound]
    if not missing or "SIZE" not in bound:
        return {}
    size = pixels("SIZE", bound["SIZE"])
    if "PATCH_SIZE" in bound:
        patch = pixels("PATCH_SIZE", bound["PATCH_SIZE"])
    else:
        check("PATCH_SIZE" not in missing or size % 2 == 0, "SIZE", size, "even: two patches")
        patch = size // 2
    values = {
        "PATCH_SIZE": patch,
        "BLUR_SIGMA": max(0.1, round(_BLUR_SIGMA * patch / _PATCH_SIZE, 1)),
        "RESIZE": round(size * _RESIZE / _SIZE),
    }
    return {name: values[name] for name in missing}


def pixels(name: str, text: str) -> int:
    """Returns the value of a macro, given in gin's syntax; raises UserError if it is no size."""
    value: Any
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    check(type(value) is int and value >= 2, name, value, "a number of pixels, 2 or more")
    return int(value)
