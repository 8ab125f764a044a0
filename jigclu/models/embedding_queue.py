"""Queues of the embeddings of earlier batches (MoCo: He et al., CVPR 2020, section 3.2).

A queue is a buffer of a method's network, so that checkpoints contain it. A step writes its
embeddings over the oldest ones.
"""

from torch import Tensor

from jigclu.system import collectives
from jigclu.system.errors import UserError


def check_queue_size(queue_size: int, rows: int, meaning: str) -> None:
    """Raises UserError unless batches fill the queue without a rest.

    Args:
      queue_size: entries of the queue.
      rows: embeddings per step, over all ranks.
      meaning: of rows, for the message.
    """
    if queue_size % rows:
        raise UserError(
            f"queue_size is {queue_size}; expected a multiple of {meaning}, which is {rows}: use "
            f"{-(-queue_size // rows) * rows}"
        )


def replace_oldest(queue: Tensor, embeddings: Tensor, step: int) -> None:
    """Writes the embeddings of all ranks over the oldest entries of a queue, in rank order.

    Args:
      queue: [queue_size, channels], the same on every rank.
      embeddings: [rows, channels] of this rank, detached.
      step: counted from 0.
    """
    rows = collectives.gather(embeddings, dim=0)
    oldest = step * len(rows) % len(queue)
    queue[oldest : oldest + len(rows)] = rows
