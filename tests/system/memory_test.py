"""Memory of the device, within the limits of a container."""

import os
from unittest import mock

import torch
from absl.testing import absltest, parameterized

from jigclu.system import memory
from tests.folder_case import FolderTestCase


class MemoryTest(FolderTestCase):
    @parameterized.parameters(
        ("memory.max", "max\n", []),
        ("memory.max", "8589934592\n", [2**33]),
        ("memory/memory.limit_in_bytes", "4096\n", [4096]),
        ("other", "1\n", []),
    )
    def test_limits_of_both_cgroup_versions(self, name: str, text: str, limits: list[int]) -> None:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        self.assertEqual(memory.container_limits(self.folder), limits)

    def test_processes_share_the_memory_of_the_machine(self) -> None:
        with (
            mock.patch.object(memory, "container_limits", return_value=[6 * 2**20]),
            mock.patch.dict(os.environ, LOCAL_WORLD_SIZE="3"),
        ):
            self.assertEqual(memory.device_memory(torch.device("cpu")), 2 * 2**20)

    def test_a_gpu_has_its_own_memory(self) -> None:
        properties = mock.Mock(total_memory=24 * 10**9)
        with mock.patch.object(torch.cuda, "get_device_properties", return_value=properties):
            self.assertEqual(memory.device_memory(torch.device("cuda", 1)), 24 * 10**9)


if __name__ == "__main__":
    absltest.main()
