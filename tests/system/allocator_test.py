"""Tests of jigclu.system.allocator, in separate processes: the setting cannot be undone."""

import platform
import subprocess
import sys

from absl.testing import absltest

from jigclu import config

# Counts the page faults of filling 64 MB twenty times, after the heap has grown to its size.
_PROGRAM = """
import resource, sys, torch
from jigclu.system import allocator
if sys.argv[1] == "keep":
    allocator.keep_freed_memory()
for number in range(60):
    if number == 40:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _page_faults(mode: str) -> int:
    run = subprocess.run(
        [sys.executable, "-c", _PROGRAM, mode],
        capture_output=True,
        text=True,
        check=True,
        cwd=config.ROOT,
    )
    return int(run.stdout)


class AllocatorTest(absltest.TestCase):
    @absltest.skipUnless(platform.libc_ver()[0] == "glibc", "needs glibc")
    def test_reuses_freed_memory_without_page_faults(self) -> None:
        self.assertLess(10 * _page_faults("keep"), _page_faults("default"))


if __name__ == "__main__":
    absltest.main()
