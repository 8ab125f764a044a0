"""What a run records in its workdir: TensorBoard events, metrics.jsonl and the last pictures."""

import ast
import io
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from shutil import disk_usage, rmtree

from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from jigclu.ops.health import NAMES
from jigclu.system.errors import UserError, printable
from jigclu.system.files import write_atomically
from jigclu.training.metrics_file import METRICS, MetricsFile

PICTURES = "pictures"  # Folder of the last picture of each name.
_DIGITS = 4  # Of the features of an embedding.
_LEAST_ROOM = 2**24  # Bytes on the disk with which TensorBoard is written again.
# TensorBoard's groups of numbers: losses and accuracies go by their names.
_GROUPS = {
    "optim": (
        *("gradient_norm", "parameter_norm", "update_ratio", "learning_rate"),
        *("learning_rate_factor", "loss_scale", "skipped_steps", "bad_steps"),
    ),
    "speed": (
        *("images_per_second", "data_wait_fraction", "peak_memory_gb"),
        *("epoch", "eta_hours"),
    ),
    "health": NAMES,
}

# Columns of TensorBoard's table of runs, which takes them from one of the runs.
_SCORES = ("knn_accuracy", "probe_accuracy", "top1", "mean_iou", "loss")


def tag(name: str) -> str:
    """Returns the name of a number in TensorBoard: gradient_norm is optim/gradient_norm."""
    base = name.removesuffix("_chance").removesuffix("_floor").partition("/")[0]
    if base.endswith("loss"):
        return f"loss/{name}"
    group = next((group for group, names in _GROUPS.items() if base in names), "accuracy")
    return f"{group}/{name}"


class Records:
    """Writes the records of a run, on one rank; a full disk is only a warning.

    Args:
      workdir: of the run.
      start_step: steps taken by earlier processes of this run; what they have written of later
        steps is dropped, since those steps are repeated.
      repeats_evaluation: whether the evaluation of start_step is repeated, too.
      steps_per_epoch: for the epoch of a step.
      images_per_step: for the images of a step.
      references: constants `<name>_chance` and `<name>_floor`, which share a chart with `<name>`.
      warn: shows a message.

    Raises:
      UserError: the workdir cannot be written.
    """

    def __init__(
        self,
        workdir: Path,
        start_step: int,
        repeats_evaluation: bool,
        steps_per_epoch: int,
        images_per_step: int,
        references: Mapping[str, float],
        warn: Callable[[str], None],
    ) -> None:
        self._folder = workdir / "tensorboard"
        self._pictures = workdir / PICTURES
        self._references = references
        self._warn = warn
        self._warned = False
        # Keeps the report of start_step, and drops everything after it. A new run also drops what
        # an earlier one has reported before its first step.
        kept = start_step if start_step else -1
        try:
            self._file = MetricsFile(workdir / METRICS, kept, steps_per_epoch, images_per_step)
            _wait_for_later_name(self._folder)
            # TensorBoard cannot drop a part of a step.
            self._writer: SummaryWriter | None = SummaryWriter(
                str(self._folder), purge_step=kept if repeats_evaluation else kept + 1
            )
        except OSError as error:
            raise UserError(
                f"{workdir} cannot be written ({error.strerror}): use another --workdir"
            ) from error
        threading.excepthook = _report_thread_error
        self._start_step = start_step
        # Numbers of the dropped step, for TensorBoard.
        self._dropped = self._file.numbers(kept) if repeats_evaluation else {}
        if references:
            layout = {"value and chance": _charts(references)}
            self._to_tensorboard(lambda writer: writer.add_custom_scalars(layout))

    def close(self) -> None:
        """Completes all files."""
        self._to_tensorboard(SummaryWriter.close)
        threading.excepthook = threading.__excepthook__

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """Adds numbers of a step; steps must not decrease."""
        self._reopen()
        dropped, self._dropped = self._dropped, {}
        repeated = values if step == self._start_step else {}
        self._numbers_to_tensorboard(
            self._start_step, {k: v for k, v in dropped.items() if k not in repeated}
        )
        self._numbers_to_tensorboard(step, values)
        self._to_file(lambda: self._file.add(step, values))

    def flush(self) -> None:
        """Completes everything so far, so that it survives the process."""
        self._to_tensorboard(SummaryWriter.flush)

    def _numbers_to_tensorboard(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._to_tensorboard(partial(_add_number, step=step, name=name, value=value))

    def settings(self, settings: Mapping[str, str], scores: Iterable[str]) -> None:
        """Adds the run to TensorBoard's table of runs (HPARAMS).

        Args:
          settings: values by name as Python writes them; others than numbers and texts are left
            out.
          scores: names of numbers that the run has; chance levels and parts are left out.
        """
        values = {name: _to_setting(value) for name, value in settings.items()}
        own = [name for name in scores if not name.endswith("_chance") and "/" not in name]
        columns = {tag(name): 0.0 for name in (*_SCORES, *own)}
        self._to_tensorboard(partial(_add_settings, values=values, columns=columns))

    def alarms(self, step: int, texts: Sequence[str]) -> None:
        """Adds the alarms of a step, after its numbers."""
        for text in texts:
            self.text("alarms", step, text)
        self._to_file(lambda: self._file.add(step, {"alarms": texts}))

    def image(self, name: str, step: int, image: Tensor) -> None:
        """Adds a picture, uint8 [3, height, width]; the file of this name shows the last one."""
        # SummaryWriter.add_image would encode it once more, which takes longer than all else here.
        data = _encode(image)
        _, height, width = image.shape
        picture = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=data)
        summary = Summary(value=[Summary.Value(tag=name, image=picture)])
        self._to_tensorboard(partial(_add_summary, summary=summary, step=step))
        self._to_file(lambda: _write_picture(self._pictures / f"{name}.png", data))

    def embedding(
        self, name: str, step: int, features: Tensor, thumbnails: Tensor, labels: Sequence[str]
    ) -> None:
        """Adds an embedding to the projector, in place of an earlier one of this name and step.

        Args:
          name: of the embedding.
          step: of the features.
          features: float32 [images, channels].
          thumbnails: uint8 [images, 3, side, side].
          labels: of the images.
        """
        rmtree(self._folder / f"{step:05}" / name, ignore_errors=True)
        # Short numbers: the projector reads text, tens of megabytes with all digits.
        rounded = features.cpu().double().round(decimals=_DIGITS)
        self._to_tensorboard(
            lambda writer: writer.add_embedding(
                rounded, list(labels), thumbnails.float() / 255, step, name
            )
        )

    def text(self, name: str, step: int, text: str) -> None:
        """Adds a text (Markdown)."""
        self._to_tensorboard(lambda writer: writer.add_text(name, printable(text), step))

    def _to_file(self, write: Callable[[], object]) -> None:
        try:
            write()
        except OSError as error:
            self._warn_once(error)

    def _to_tensorboard(self, write: Callable[[SummaryWriter], object]) -> None:
        if self._writer is None:
            return
        try:
            write(self._writer)
        except OSError as error:
            writer, self._writer = self._writer, None
            with suppress(OSError):
                writer.close()
            self._warn_once(error)

    def _warn_once(self, error: OSError) -> None:
        if not self._warned:
            self._warn(
                f"warning: {self._folder.parent} cannot be written ({error.strerror}); training "
                "continues, and writes there again once the disk has room"
            )
        self._warned = True

    def _reopen(self) -> None:
        """Opens a new event file after a failed one if the disk has room again."""
        if self._warned and self._writer is None and disk_usage(self._folder).free > _LEAST_ROOM:
            with suppress(OSError):
                self._writer = SummaryWriter(str(self._folder))
                self._warned = False


def _add_number(writer: SummaryWriter, step: int, name: str, value: float) -> None:
    writer.add_scalar(tag(name), value, step)


def _add_settings(
    writer: SummaryWriter,
    values: dict[str, float | str | None],
    columns: dict[str, float],
) -> None:
    # SummaryWriter.add_hparams would write a run of its own, and zeros into the columns.
    for summary in hparams(values, columns):
        _add_summary(writer, summary)


def _wait_for_later_name(folder: Path) -> None:
    """Waits, less than a second, until the name of a new file of events sorts after the others.

    TensorBoard reads files in the order of their names, which consist of the second in which they
    were made and the number of the process. Numbers of processes are in no order.
    """
    others = (path.name.split(".") for path in folder.glob("events.out.tfevents.*"))
    seconds = {parts[3] for parts in others if str(os.getpid()) not in parts}
    while f"{int(now := time.time()):010}" in seconds:
        time.sleep(1 - now % 1)


def _add_summary(writer: SummaryWriter, summary: Summary, step: int | None = None) -> None:
    assert writer.file_writer is not None
    writer.file_writer.add_summary(summary, step)


def _to_setting(text: str) -> float | str | None:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return None
    return value if value is None or isinstance(value, (int, float, str)) else text


def _encode(image: Tensor) -> bytes:
    """Returns the PNG of a picture, uint8 [3, height, width]."""
    file = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy()).save(file, "PNG")
    return file.getvalue()


def _write_picture(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: file.write(data))


def _charts(references: Mapping[str, float]) -> dict[str, list[object]]:
    """Returns TensorBoard's description of charts with a value, its chance level and its floor."""
    names = [name.removesuffix("_chance") for name in references if name.endswith("_chance")]
    return {
        name: [
            "Multiline",
            [tag(name), *(tag(other) for other in references if other.startswith(f"{name}_"))],
        ]
        for name in names
    }


def _report_thread_error(error: threading.ExceptHookArgs) -> None:
    """Leaves out the errors of TensorBoard's thread, which its next write raises again."""
    if not isinstance(error.exc_value, OSError):
        threading.__excepthook__(error)
