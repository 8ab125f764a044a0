"""Tests of jigclu.models.embedding_queue."""

import torch
from absl.testing import absltest, parameterized

from jigclu.models.embedding_queue import check_queue_size, replace_oldest
from jigclu.system.errors import UserError


class EmbeddingQueueTest(parameterized.TestCase):
    def test_embeddings_replace_the_oldest(self) -> None:
        queue = torch.zeros(6, 1)
        for step in range(4):
            replace_oldest(queue, torch.tensor([[step + 0.25], [step + 0.5]]), step)
        # The queue holds three batches: the fourth is in the place of the first.
        self.assertEqual(queue.flatten().tolist(), [3.25, 3.5, 1.25, 1.5, 2.25, 2.5])

    @parameterized.parameters(0, 8, 16)
    def test_queue_holds_whole_batches(self, queue_size: int) -> None:
        check_queue_size(queue_size, 8, "the batch_size")

    @parameterized.parameters((4, 8), (12, 16), (17, 24))
    def test_rejects_parts_of_batches(self, queue_size: int, nearest: int) -> None:
        message = f"^queue_size is {queue_size}; .*of the batch_size, which is 8: use {nearest}$"
        with self.assertRaisesRegex(UserError, message):
            check_queue_size(queue_size, 8, "the batch_size")


if __name__ == "__main__":
    absltest.main()
