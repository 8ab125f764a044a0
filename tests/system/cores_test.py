"""Tests of jigclu.system.cores."""

import math
import os
from pathlib import Path
from unittest import mock

from absl.testing import absltest, parameterized

from jigclu.system import cores
from jigclu.system.errors import UserError
from tests.folder_case import FolderTestCase


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


class CoresTest(FolderTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.own = self.folder / "own"
        self.mount = self.folder / "mount"

    @parameterized.parameters(
        ("max 100000", math.inf), ("250000 100000", 2.5), ("50000 100000", 0.5), ("?", math.inf)
    )
    def test_reads_limits_of_cgroup_version_2(self, text: str, expected: float) -> None:
        write(self.own, "0::/job\n")
        write(self.mount / "job" / "cpu.max", text)
        self.assertEqual(cores.cgroup_cores(self.mount, self.own), expected)

    def test_smallest_limit_on_the_path_applies(self) -> None:
        write(self.own, "0::/slice/job\n")
        write(self.mount / "slice" / "cpu.max", "300000 100000")
        write(self.mount / "slice" / "job" / "cpu.max", "max 100000")
        self.assertEqual(cores.cgroup_cores(self.mount, self.own), 3)

    def test_container_sees_its_own_group_as_root(self) -> None:
        write(self.own, "0::/outside/unseen\n")
        write(self.mount / "cpu.max", "400000 100000")
        self.assertEqual(cores.cgroup_cores(self.mount, self.own), 4)

    @parameterized.parameters(("-1", math.inf), ("150000", 1.5))
    def test_reads_limits_of_cgroup_version_1(self, quota: str, expected: float) -> None:
        write(self.own, "5:memory:/m\n4:cpu,cpuacct:/job\n")
        write(self.mount / "cpu" / "job" / "cpu.cfs_quota_us", quota)
        write(self.mount / "cpu" / "job" / "cpu.cfs_period_us", "100000")
        self.assertEqual(cores.cgroup_cores(self.mount, self.own), expected)

    def test_without_cgroups_there_is_no_limit(self) -> None:
        self.assertEqual(cores.cgroup_cores(self.mount, self.folder / "absent"), math.inf)

    @parameterized.parameters((math.inf, 4), (2.5, 2), (0.5, 1), (8.0, 4))
    def test_available_cores_are_a_whole_number_of_at_least_one(
        self, limit: float, expected: int
    ) -> None:
        with (
            mock.patch.object(os, "sched_getaffinity", lambda _: {0, 1, 4, 5}, create=True),
            mock.patch.object(cores, "cgroup_cores", lambda: limit),
        ):
            self.assertEqual(cores.available_cores(), expected)

    def test_local_ranks_come_from_torchrun(self) -> None:
        with mock.patch.dict(os.environ):
            os.environ.pop("LOCAL_WORLD_SIZE", None)
            self.assertEqual(cores.local_ranks(), 1)
            os.environ["LOCAL_WORLD_SIZE"] = "4"
            self.assertEqual(cores.local_ranks(), 4)

    @parameterized.parameters("", "abc", "-1")
    def test_rejects_other_values_of_the_variables_of_torchrun(self, value: str) -> None:
        with (
            mock.patch.dict(os.environ, LOCAL_WORLD_SIZE=value),
            self.assertRaisesRegex(UserError, f"LOCAL_WORLD_SIZE is '{value}'; .* unset LOCAL"),
        ):
            cores.local_ranks()


if __name__ == "__main__":
    absltest.main()
