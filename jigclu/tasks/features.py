"""Features of all images of a source, as files for NumPy."""

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from torch import Tensor

from jigclu.data.images import ImageDataset
from jigclu.data.sources import Source
from jigclu.data.transform import EvalTransform
from jigclu.models.encoder import encoder_tensors
from jigclu.system import collectives, machine, tensor_files
from jigclu.system.device import launched_processes, local_device, process_group
from jigclu.system.errors import UserError, check
from jigclu.system.files import write_file, write_stream
from jigclu.training import initial_weights
from jigclu.training.encoder_task import EncoderTask
from jigclu.training.features import choose_settings, encode_in_order
from jigclu.training.initial_weights import load_into
from jigclu.training.loop import RunResult
from jigclu.training.monitor import Monitor
from jigclu.training.preprocessing import recorded_transform
from jigclu.training.settings import Compute, Loading

FEATURES, IMAGES = "features.npy", "images.csv"


@dataclass(frozen=True, kw_only=True)
class FeaturesTask(EncoderTask):
    """Writes the features of images, with their paths and labels, to the workdir.

    Attributes:
      source: images, in whose order the features are written.
      eval_transform: preprocessing of the images; None for the one recorded with the weights.
      batch_size: images per device and batch.
      loading: worker processes.
      compute: device and precision.
    """

    source: Source
    eval_transform: EvalTransform | None
    batch_size: int
    loading: Loading
    compute: Compute

    def __post_init__(self) -> None:
        check(self.batch_size >= 1, "batch_size", self.batch_size, "1 or more")

    def check(self, workdir: Path) -> None:
        """Raises UserError for a missing device, or weights that do not fit the encoder."""
        del workdir
        local_device(self.compute.device)
        if self.init_from is None:
            raise UserError("init_from is None: bind it to the weights of an encoder")
        self.check_encoder()

    def plan(self, workdir: Path) -> str:
        """Returns what a run would do, in several lines."""
        precision = self._precision()
        labels = f"{len(self.source.classes)} classes" if self.source.labels else "without labels"
        return (
            f"encoder: {self.encoder}\n"
            f"precision: {precision.value} ({precision.reason})\n"
            f"devices: {launched_processes()} x {local_device(self.compute.device).type}\n"
            f"data: {len(self.source):,} images, {labels}\n"
            f"output: {workdir / FEATURES}, {workdir / IMAGES}"
        )

    def run(self, workdir: Path, config: str) -> RunResult:
        """Computes and writes the features; call `check` before."""
        assert self.init_from is not None
        device = local_device(self.compute.device)
        with process_group(device, self.compute.rank_timeout):
            encoder = self.new_encoder().to(device)
            is_main = collectives.rank() == 0
            with Monitor.of_one_step(workdir, is_main) as monitor:
                monitor.text("config", 0, f"```\n{config}\n```")
                monitor.message(load_into(self.init_from, encoder_tensors(encoder)))
                transform = self._transform()
                monitor.message(f"preprocessing: {transform}")
                precision = machine.PRECISIONS[collectives.broadcast(self._precision()).value]
                settings = choose_settings(
                    transform, self.batch_size, self.loading, device, precision
                )
                images = ImageDataset(source=self.source, transform=transform)
                pieces = encode_in_order(encoder, images, settings)
                shape = (len(self.source), encoder.channels)
                if is_main:
                    write_stream(workdir / FEATURES, lambda file: write_array(file, shape, pieces))
                    write_file(
                        workdir / IMAGES,
                        describe_images(self.source).encode(errors="backslashreplace"),
                    )
                else:
                    list(pieces)
                monitor.message(f"{shape[0]:,} x {shape[1]:,} features: {workdir / FEATURES}")
        return RunResult({}, None)

    def _precision(self) -> machine.Choice[str]:
        device = local_device(self.compute.device)
        return machine.choose_precision(self.compute.precision, device, started=None)

    def _transform(self) -> EvalTransform:
        if self.eval_transform is not None:
            return self.eval_transform
        assert self.init_from is not None
        # Without the tensors, which `load_into` has read; it has also downloaded the file.
        return recorded_transform(tensor_files.peek(initial_weights.find(self.init_from).path))


def write_array(file: IO[bytes], shape: tuple[int, int], pieces: Iterable[Tensor]) -> None:
    """Writes the rows of a float32 array in NumPy's format, without all of them in memory.

    Args:
      file: open for writing.
      shape: of the whole array.
      pieces: float32 [rows, shape[1]] on the CPU, one after another.
    """
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    for piece in pieces:
        file.write(piece.numpy().astype("<f4", copy=False).data)


def describe_images(source: Source) -> str:
    """Returns a table of the images in the order of their features, as CSV.

    Columns are path (or name, for a source without files) and, if there are labels, label (a
    class number) and class.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    labels = source.labels
    writer.writerow(["path"] if labels is None else ["path", "label", "class"])
    for index in range(len(source)):
        label = [] if labels is None else [labels[index], source.classes[labels[index]]]
        writer.writerow([source.name(index), *label])
    return text.getvalue()
