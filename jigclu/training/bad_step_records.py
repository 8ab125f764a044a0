"""Records of steps whose loss or gradient was not finite, from which they can be replayed."""

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from jigclu.system import shell
from jigclu.training.checkpoint import checkpoint_path

# Folders of steps to replay; each keeps a checkpoint that would otherwise be pruned.
_KEPT = 10


def record_bad_step(
    workdir: Path,
    step: int,
    problem: str,
    *,
    seed: int,
    images: Sequence[tuple[int, str]],
    start: Path | None,
) -> None:
    """Appends a line of JSON to workdir/bad_steps/steps.jsonl.

    Together with the checkpoint before it, step and seed determine everything that the step drew.
    A hard link keeps that checkpoint in the folder of the step, which is the workdir of the
    recorded command.

    Args:
      workdir: of the run.
      step: number of the step, from 1.
      problem: the metrics that are not finite.
      seed: of the run.
      images: index and name of each image of the global batch.
      start: last checkpoint before the step; None if there is none.
    """
    folder = workdir / "bad_steps"
    replay = folder / checkpoint_path(workdir, step).stem
    # Without room for the record, the run itself can still continue.
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        if start is not None and len(list(folder.iterdir())) < _KEPT:
            kept = replay / "checkpoints" / start.name
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.unlink(missing_ok=True)
            os.link(start, kept)
        record = {
            "step": step,
            "problem": problem,
            "seed": seed,
            "images": dict(images),
            "replay": _command(workdir, replay, step),
        }
        with open(folder / "steps.jsonl", "a", encoding="utf-8") as file:
            file.write(f"{json.dumps(record)}\n")


def _command(workdir: Path, replay: Path, step: int) -> str:
    bindings = (f"schedule.stop_after_steps={step}", "reporting.log_every=1")
    flags = [f"--gin_file={workdir / 'operative_config.gin'}", f"--workdir={replay}"]
    flags += [f"--gin_bindings={binding}" for binding in bindings]
    return shell.join(["python", "-m", "jigclu.launch", *flags])
