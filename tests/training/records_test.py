"""Files of TensorBoard events of a run that was started again."""

import os
import socket
import time

from absl.testing import absltest, parameterized

from jigclu.training.records import Records
from tests.folder_case import FolderTestCase


class RecordsTest(FolderTestCase, parameterized.TestCase):
    @parameterized.parameters(os.getpid() - 1, os.getpid() + 1)
    def test_a_new_file_of_events_follows_one_of_the_same_second(self, process: int) -> None:
        folder = self.folder / "tensorboard"
        folder.mkdir()
        earlier = (
            folder
            / f"events.out.tfevents.{int(time.time()):010}.{socket.gethostname()}.{process}.0"
        )
        earlier.touch()
        records = Records(
            self.folder,
            start_step=0,
            repeats_evaluation=False,
            references={},
            warn=print,
            steps_per_epoch=1,
            images_per_step=1,
        )
        records.close()
        names = sorted(folder.iterdir())
        self.assertLen(names, 2)
        self.assertEqual(names[0], earlier)


if __name__ == "__main__":
    absltest.main()
