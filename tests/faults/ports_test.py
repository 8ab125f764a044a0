"""No socket of a run on one machine can be reached from another machine."""

import contextlib
import os
import subprocess
import time
import unittest
from collections.abc import Iterator
from pathlib import Path

from absl.testing import absltest

from jigclu import config
from tests.faults.slow import SLOW
from tests.folder_case import FolderTestCase

_LISTENS = "0A"  # State of a socket in /proc/net/tcp.
_LOOPBACK = ("0100007F", "00000000000000000000000001000000")


def _descendants(process: int) -> Iterator[int]:
    """Yields a process and those that it, directly or not, started."""
    yield process
    for thread in Path(f"/proc/{process}/task").glob("*/children"):
        for child in thread.read_text().split():
            yield from _descendants(int(child))


def _listening_addresses(process: int) -> set[str]:
    """Returns hexadecimal address:port of the sockets on which a process tree listens."""
    own = set()
    for member in _descendants(process):
        for link in Path(f"/proc/{member}/fd").glob("*"):
            own.add(os.readlink(link))
    found = set()
    for table in ("tcp", "tcp6"):
        for row in Path("/proc/net", table).read_text().splitlines()[1:]:
            _, address, _, state, *rest = row.split()
            if state == _LISTENS and f"socket:[{rest[5]}]" in own:
                found.add(address)
    return found


@unittest.skipUnless(SLOW, "slow")
class PortsTest(FolderTestCase):
    def test_a_run_of_two_ranks_listens_on_loopback_only(self) -> None:
        if not os.path.exists("/proc/net/tcp"):
            self.skipTest("lists sockets by /proc")
        environment = os.environ | {
            "GPUS": "2",
            "GIN_FILE": "gin/demo.gin",
            "WORKDIR": str(self.folder / "run"),
            "TMPDIR": str(self.folder),
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }
        for name in ("RANK", "GLOO_SOCKET_IFNAME"):
            environment.pop(name, None)
        bindings = ("pretrain.batch_size=8", "schedule.stop_after_steps=2", "loading.workers=1")
        command = [
            str(config.ROOT / "launch" / "one_machine.sh"),
            *(f"--gin_bindings={binding}" for binding in (*bindings, "pretrain.evaluators=()")),
        ]
        found: set[str] = set()
        with open(self.folder / "log", "w+") as log:
            run = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
            try:
                while run.poll() is None:
                    # A process may end in between.
                    with contextlib.suppress(OSError):
                        found |= _listening_addresses(run.pid)
                    time.sleep(0.05)
            finally:
                run.kill()
            log.seek(0)
            self.assertEqual(run.returncode, 0, log.read())
        addresses = {address.partition(":")[0] for address in found}
        self.assertContainsSubset(addresses, _LOOPBACK)
        # The store, and one socket of Gloo per rank.
        self.assertGreaterEqual(len(found), 3)


if __name__ == "__main__":
    absltest.main()
