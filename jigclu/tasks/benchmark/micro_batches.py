"""Time and memory of a step whose batch the encoder sees in pieces."""

import dataclasses
from collections.abc import Sequence

import torch

from jigclu.tasks.benchmark.stepping import jigsaw_step
from jigclu.tasks.benchmark.tables import Table, megabytes
from jigclu.tasks.benchmark.timing import interleaved, peak_memory
from jigclu.tasks.pretrain import PretrainTask


def measure_micro_batches(
    task: PretrainTask,
    sizes: Sequence[int | None],
    precisions: Sequence[str],
    repetitions: int,
    device: torch.device,
) -> Table:
    """Measures steps of one batch size at several micro-batch sizes and precisions.

    Args:
      task: whose step is taken, on noise.
      sizes: images that the encoder sees at a time; None for the whole batch.
      precisions: of `machine.PRECISIONS`.
      repetitions: >= 1.
      device: on which to compute.
    """
    return Table(
        title=f"Micro-batches of a batch of {task.batch_size}",
        columns=("step", "images/s", "memory, MB"),
        rows=[
            _row(
                dataclasses.replace(task, precision=precision, micro_batch_size=size),
                repetitions,
                device,
            )
            for precision in precisions
            for size in sizes
        ],
        note=(
            f"{task.encoder}, montages of {task.grid * task.patch_size} pixels, "
            f"{'compiled' if task.compile else 'eager'}. Memory is the peak of a step beyond "
            "parameters and momentum. Empty cells: out of memory."
        ),
        panels=(("memory, MB",),),
    )


def _row(
    task: PretrainTask, repetitions: int, device: torch.device
) -> tuple[str, float | None, float | None]:
    size = task.micro_batch_size
    name = f"{task.precision}, {'whole batch' if size is None else f'micro-batches of {size}'}"
    try:
        action = jigsaw_step(task, device)
        action()
        memory = peak_memory(action, device)
        seconds = interleaved({"step": action}, repetitions, device)["step"].median
    except torch.OutOfMemoryError:
        return name, None, None
    finally:
        torch.cuda.empty_cache()  # Does nothing without a GPU.
    return name, task.batch_size / seconds, megabytes(memory)
