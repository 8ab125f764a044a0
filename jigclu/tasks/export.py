"""Export of an encoder in the formats of other libraries, with a check of every file.

Each file is read back with only the libraries of its format, and its features of real images
are compared with those of the original encoder.
"""

import hashlib
import importlib.metadata
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import jigclu
from jigclu.data.images import ImageDataset
from jigclu.data.sources import Source
from jigclu.data.transform import EvalTransform
from jigclu.models.encoder import (
    Encoder,
    encoder_tensors,
    has_basic_blocks,
    is_of_timm,
)
from jigclu.ops.normalize import pool
from jigclu.system import files, progress
from jigclu.system.device import launched_rank
from jigclu.system.errors import UserError, printable
from jigclu.tasks.export_formats import FORMATS, Description
from jigclu.training import initial_weights
from jigclu.training.encoder_task import EncoderTask
from jigclu.training.loop import RunResult
from jigclu.training.monitor import Monitor

# Largest allowed difference of a feature. For features up to 10, rounding in float32 stays far
# below it; for features in the hundreds, as after only a few training steps, it may exceed it.
TOLERANCE = 1e-4


class Written(NamedTuple):
    """A file that was written and read back.

    difference: largest absolute difference of a feature from the original encoder's.
    """

    name: str
    path: Path
    sha256: str
    difference: float


@dataclass(frozen=True, kw_only=True)
class ExportTask(EncoderTask):
    """Writes an encoder in other formats to the workdir, with a card.

    `init_from` is None only for `check`, while the weights do not exist yet.

    Attributes:
      formats: names of the formats to write, some of `FORMATS`.
      source: images to compare features on.
      images: number of images to compare.
      eval_transform: preprocessing of the images.
      notes: Markdown for the card: data, recipe and scores that the file does not contain.
    """

    formats: tuple[str, ...]
    source: Source
    images: int
    eval_transform: EvalTransform
    notes: str

    @property
    def origin(self) -> str:
        """`init_from`; raises UserError if it is None."""
        if self.init_from is None:
            raise UserError("init_from is None: there is nothing to export; bind it to weights")
        return self.init_from

    def check(self, workdir: Path) -> None:
        """Raises UserError for invalid settings, other weights, or missing packages."""
        del workdir
        self.check_encoder()
        if not self.formats:
            raise UserError(f"formats is empty; choose from {', '.join(FORMATS)}")
        for name in self.formats:
            _check_format(name, self.encoder, bool(self.small_stem))
        if not 1 <= self.images <= len(self.source):
            raise UserError(
                f"images is {self.images}; it must be in [1, {len(self.source)}], the number of "
                "images of the source"
            )

    def plan(self, workdir: Path) -> str:
        """Returns what a run would do, in several lines."""
        del workdir
        names = ", ".join(self._file_name(name) for name in self.formats)
        side = self.eval_transform.crop
        return (
            f"writes: {names}, card.md, {files.SUMS}\n"
            f"compares: features of {self.images} images of {side}x{side} pixels, "
            f"at most {TOLERANCE:g} apart"
        )

    def run(self, workdir: Path, config: str) -> RunResult:
        """Writes and compares the files, then writes card and checksums, all on the CPU.

        Raises:
          UserError: a file cannot be written, or its features differ too much.
        """
        if launched_rank() == 0:
            self._run(workdir, config)
        return RunResult({}, None)

    def _run(self, workdir: Path, config: str) -> None:
        encoder = self._encoder()
        with Monitor.of_one_step(workdir, is_main=True) as monitor:
            monitor.text("config", 0, f"```\n{config}\n```")
            monitor.message(
                initial_weights.load_into(self.origin, encoder_tensors(encoder), self.encoder)
            )
            with progress.status("encoding images"):
                images = self._images()
                expected = self._features(encoder, images)
            written = []
            for name in progress.track(self.formats, "writing formats"):
                written.append(self._write(name, encoder, workdir, images, expected))
                monitor.message(
                    f"{written[-1].path}: features of {_describe(expected)}, differ by "
                    f"{written[-1].difference:.2g} at most"
                )
            card = self._card(written, expected, initial_weights.contents(self.origin))
            files.write_file(workdir / "card.md", printable(card).encode())
            files.write_sums(workdir, {file.path.name: file.sha256 for file in written})
            monitor.text("card", 0, card)

    def _encoder(self) -> Encoder:
        return self.new_encoder().eval()

    def _dataset(self) -> ImageDataset:
        return ImageDataset(source=self.source, transform=self.eval_transform)

    def _images(self) -> Tensor:
        """Returns normalized images from all over the source, float32 [images, 3, crop, crop]."""
        dataset = self._dataset()
        indices = [number * len(dataset) // self.images for number in range(self.images)]
        pixels = torch.stack([dataset[index].image for index in indices])
        return self.eval_transform.normalize(pixels)

    def _features(self, encoder: Encoder, images: Tensor) -> Tensor:
        """Returns the features that every file must reproduce, float32 [images, channels]."""
        with torch.no_grad():
            features = pool(encoder(images))
        if not features.isfinite().all():
            raise UserError(
                f"init_from is {self.init_from!r}, whose features are not finite: its training "
                "diverged or the file is corrupt; use another file"
            )
        return features

    def _file_name(self, name: str) -> str:
        return self.encoder.rpartition("/")[2] + FORMATS[name].suffix

    def _write(
        self, name: str, encoder: Encoder, workdir: Path, images: Tensor, expected: Tensor
    ) -> Written:
        path = workdir / self._file_name(name)
        about = Description(self.encoder, bool(self.small_stem), self.eval_transform)
        data = FORMATS[name].serialize(encoder, about)
        files.write_file(path, data)
        features = FORMATS[name].read(path, about)
        with torch.no_grad():
            difference = (features(images) - expected).abs().max().item()
        # Also true if the difference is NaN.
        if not difference <= TOLERANCE:
            raise UserError(
                f"{path} does not reproduce the features of {self.init_from}: on "
                f"{_describe(expected)}, they differ by {difference:.2g} instead of at most "
                f"{TOLERANCE:g}; do not use this file, and check the versions of "
                f"{', '.join(('torch', *FORMATS[name].packages))}"
            )
        return Written(name, path, hashlib.sha256(data).hexdigest(), difference)

    def _card(self, written: list[Written], expected: Tensor, contents: Mapping[Any, Any]) -> str:
        """Returns the Markdown text that describes the files."""
        origin, transform = initial_weights.find(self.origin).path, self.eval_transform
        sections = [
            f"# {self.encoder}, an image encoder exported by JigClu",
            f"Weights of `{origin.name}` (SHA-256 `{files.sha256(origin)}`), without heads. "
            f"Images: shorter side resized to {transform.resize} pixels, center crop of "
            f"{transform.crop}, RGB in [0, 1], minus {transform.mean}, divided by {transform.std}. "
            "Features: the mean of the last feature map.",
        ]
        if self.small_stem:
            sections.append(
                "The stem is small: before `load_state_dict`, set the model's "
                "`conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)` and "
                "`maxpool = torch.nn.Identity()`."
            )
        if is_of_timm(self.encoder):
            name = self.encoder.rpartition("/")[2]
            sections.append(
                f"The network is `timm.create_model({name!r}, num_classes=0)`, and the features "
                "are the mean of its `forward_features`. The files do not contain layers after "
                "that, so load them by `load_state_dict(…, strict=False)`."
            )
        sections += ["## Files", _table(written, expected)]
        if self.notes:
            sections += ["## Notes", self.notes]
        sections += ["## Data and recipe", _recipe(contents)]
        sections += ["## Scores", _scores(contents)]
        sections += ["## Versions", _versions(self.formats, contents)]
        return "\n\n".join(sections) + "\n"


def _check_format(name: str, encoder: str, small_stem: bool) -> None:
    if name not in FORMATS:
        raise UserError(
            f"formats contains {name!r}, which is unknown; choose from {', '.join(FORMATS)}"
        )
    if small_stem and not FORMATS[name].small_stem:
        raise UserError(
            f"formats contains {name!r}, which cannot hold small_stem = True, because its first "
            "convolution is 7x7, followed by max-pooling; remove it"
        )
    if is_of_timm(encoder) and not FORMATS[name].timm_networks:
        raise UserError(
            f"formats contains {name!r}, which cannot hold encoder = {encoder!r}, a network of "
            f"timm; choose from {', '.join(k for k in FORMATS if FORMATS[k].timm_networks)}"
        )
    if has_basic_blocks(encoder) and not FORMATS[name].basic_blocks:
        raise UserError(
            f"formats contains {name!r}, which cannot hold encoder = {encoder!r}, because "
            "detectron2 builds C4 detectors only of bottleneck blocks; remove it, or use a "
            "resnet50 or deeper"
        )
    absent = [package for package in FORMATS[name].packages if not _is_installed(package)]
    if absent:
        raise UserError(
            f"formats contains {name!r}, which needs {', '.join(absent)}, not installed: "
            f"pip install {' '.join(absent)}, or remove it"
        )


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _describe(features: Tensor) -> str:
    return f"{len(features)} images, up to {features.abs().max().item():.3g}"


def _table(written: list[Written], expected: Tensor) -> str:
    rows = [
        f"| `{file.path.name}` | {FORMATS[file.name].usage} | {file.difference:.2g} "
        f"| `{file.sha256}` |"
        for file in written
    ]
    return "\n".join(
        [
            "Each file was read back and compared with the original encoder by the features of "
            f"{_describe(expected)}.",
            "",
            "| file | read by | largest difference of a feature | SHA-256 |",
            "|---|---|---|---|",
            *rows,
        ]
    )


def _is_ours(contents: Mapping[Any, Any]) -> bool:
    """Returns whether a file is a checkpoint of this project; others may use any of its keys."""
    return "parameters" in contents


def _recipe(contents: Mapping[Any, Any]) -> str:
    """Returns the configuration in our checkpoint, or the plain values in another file."""
    if _is_ours(contents):
        return f"{contents['step']} steps of this configuration:\n\n```\n{contents['config']}\n```"
    plain = [
        f"{key}: {value}"
        for key, value in contents.items()
        if isinstance(value, (str, int, float)) and not isinstance(value, bool)
    ]
    return "\n".join(plain) or "Unknown: the file of the weights does not contain them."


def _scores(contents: Mapping[Any, Any]) -> str:
    if not _is_ours(contents) or not contents["scores"]:
        return "None in the file of the weights."
    step, scores = contents["scores"][-1]
    return "\n".join(
        [
            f"| after {step} steps | |",
            "|---|---|",
            *(f"| {name} | {value:.4g} |" for name, value in scores.items()),
        ]
    )


def _versions(formats: tuple[str, ...], contents: Mapping[Any, Any]) -> str:
    packages = ["torch", "torchvision", "safetensors"]
    packages += [package for name in formats for package in FORMATS[name].packages]
    others = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in packages)
    lines = [f"Exported by jigclu {jigclu.__version__}, {others}."]
    if _is_ours(contents):
        then = ", ".join(f"{package} {value}" for package, value in contents["versions"].items())
        lines.insert(0, f"Trained by {then}.")
    return "\n".join(lines)
