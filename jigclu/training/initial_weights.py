"""Where initial weights come from: a file, a run, an export, or the published release."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from jigclu.models.weights import Architecture, Weights, match_weights, select_weights
from jigclu.system import tensor_files
from jigclu.system.download import download
from jigclu.system.errors import UserError
from jigclu.system.files import expand_home, sha256
from jigclu.training import checkpoint


class Release(NamedTuple):
    """Published weights."""

    url: str
    architecture: Architecture


RELEASES = {
    # Release 1.0 of the code of Chen et al., CVPR 2021; the URL is the one in its README.
    "jigclu_200e": Release(
        "https://github.com/Jia-Research-Lab/JigsawClustering/releases/download/1.0/JigClu_200e.pth",
        Architecture("resnet50", small_stem=False),
    )
}
# Files in the folder of an export that this project reads; the first also records preprocessing.
_EXPORTED = ("*.safetensors", "*.torchvision.pth", "*.timm.pth")


class Place(NamedTuple):
    """Where weights are on this machine.

    path: of the file.
    address: of the encoder in the file, for `select_weights`; None for the only one.
    release: to download to the path first; None if that is not necessary.
    """

    path: Path
    address: str | None = None
    release: Release | None = None


def find(init_from: str) -> Place:
    """Finds weights, without reading or downloading anything.

    Args:
      init_from: a file; a file of several encoders, with the name of one ("last.pth:model_ema"); a
        workdir, for its last checkpoint; the folder of an export; or a name in `RELEASES`.

    Raises:
      UserError: a folder without weights, or with more than one exported encoder.
    """
    init_from = expand_home(init_from)
    path = Path(init_from)
    if path.is_dir():
        return Place(checkpoint.latest(path) or _exported(path))
    if init_from in RELEASES and not path.exists():
        release = RELEASES[init_from]
        path = Path(torch.hub.get_dir()) / "checkpoints" / release.url.rpartition("/")[2]
        return Place(path, release=None if path.exists() else release)
    file, colon, address = init_from.rpartition(":")
    if colon and not path.exists() and Path(file).is_file():
        return Place(Path(file), address)
    return Place(path)


def _exported(folder: Path) -> Path:
    for pattern in _EXPORTED:
        found = sorted(folder.glob(pattern))
        if len(found) > 1:
            raise UserError(
                f"{folder} holds several exported encoders: choose {found[0]} or {found[1]}"
            )
        if found:
            return found[0]
    raise UserError(
        f"{folder} has neither checkpoints/step_<number>.pt, as the workdir of a run, nor "
        f"{', '.join(_EXPORTED)}, as an export: choose a file of weights"
    )


def read(init_from: str, encoder: str | None = None) -> Weights:
    """Reads the weights that `find` describes, on the CPU; downloads a release first.

    Args:
      init_from: see `find`.
      encoder: that is expected; see `select_weights`.

    Raises:
      UserError: the weights are missing, unreadable, without a complete encoder or with several,
        or the download failed.
    """
    return select(contents(init_from), init_from, encoder)


def contents(init_from: str) -> dict[Any, Any]:
    """Returns all contents of the file of the weights; see `read`."""
    place = find(init_from)
    if place.release is not None:
        download(place.release.url, place.path)
    return tensor_files.read(place.path, "cpu")


def select(values: Mapping[Any, Any], init_from: str, encoder: str | None = None) -> Weights:
    """Selects the weights from the contents of their file."""
    place = find(init_from)
    return select_weights(values, place.path, place.address, encoder)


def fingerprint(init_from: str | None) -> str:
    """Returns a text that identifies the content of weights, or "" if their file is missing."""
    if init_from is None:
        return ""
    try:
        place = find(init_from)
    except UserError:
        return ""
    return f"{sha256(place.path)}:{place.address or ''}" if place.path.is_file() else ""


def architecture(init_from: str, encoder: str | None = None) -> Architecture:
    """Returns the architecture of weights from their names and shapes; never downloads.

    Args:
      init_from: see `find`.
      encoder: that is expected; see `select_weights`.

    Raises: as `read`, except for corrupt tensors.
    """
    place = find(init_from)
    if place.release is not None:
        return place.release.architecture
    return select(tensor_files.peek(place.path), init_from, encoder).architecture


def load_into(init_from: str, tensors: Mapping[str, Tensor], encoder: str | None = None) -> str:
    """Copies weights into tensors with our names.

    Args:
      init_from: see `find`.
      tensors: parameters and buffers of a model.
      encoder: name of its encoder; see `select_weights`.

    Returns:
      A message of several lines: what was loaded, and the names of what was not.

    Raises:
      UserError: the file does not hold all weights of the encoder.
    """
    weights, path = read(init_from, encoder), find(init_from).path
    values, report = match_weights(weights, tensors, path)
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(values[name])
    return f"initial weights of {path}, {weights}: {report.summary()}"
