"""A test case that starts small runs as users do, and harms them."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.folder_case import FolderTestCase
from tests.launch_test import SMALL, bindings, command_environment

_MODULE = ("-m", "jigclu.launch")
_SECONDS = 240


class Run:
    """A run in the background, in a process group of its own."""

    def __init__(self, command: list[str], folder: Path, log: Path) -> None:
        self._log = log
        with open(log, "wb") as output:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env=command_environment(),
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    @property
    def printed(self) -> str:
        """Everything that the run has printed so far."""
        return self._log.read_text()

    def wait_for(self, pattern: str) -> None:
        """Waits until any process of the run has printed something."""
        deadline = time.monotonic() + _SECONDS
        while not re.search(pattern, self.printed):
            # Processes outlive torchrun only if it was killed.
            is_over = self.process.poll() not in (None, -signal.SIGKILL)
            if is_over or time.monotonic() > deadline:
                raise AssertionError(f"the run never printed {pattern!r}:\n{self.printed}")
            time.sleep(0.05)

    def children(self, pid: int | None = None) -> list[int]:
        """Returns the child processes of a process, of the run itself by default."""
        pid = self.process.pid if pid is None else pid
        tasks = Path(f"/proc/{pid}/task").iterdir()
        return sorted(int(n) for task in tasks for n in (task / "children").read_text().split())

    def tree(self) -> list[int]:
        """Returns the run and all processes below it."""
        found = [self.process.pid]
        for pid in found:
            found += self.children(pid)
        return found

    def workers(self) -> list[int]:
        """Returns the worker processes, which are the children of the fork server."""
        return [pid for child in self.children() for pid in self.children(child)]

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to the process that was started."""
        self.process.send_signal(number)

    def wait(self) -> int:
        """Returns the exit status; negative for the signal that killed the process."""
        return self.process.wait(timeout=_SECONDS)

    def end(self) -> None:
        """Kills the run and its children, if it is still running."""
        if self.process.poll() is None:
            for pid in (*self.children(), self.process.pid):
                os.kill(pid, signal.SIGKILL)
            self.process.wait()


class RunTestCase(FolderTestCase):
    """A test case with a workdir and runs in it, all of which end with the test."""

    def setUp(self) -> None:
        super().setUp()
        self.workdir = self.folder / "run"
        self.small = self.folder / "small.gin"
        self.small.write_text(SMALL)

    def start(
        self,
        *texts: str,
        ranks: int = 1,
        torchrun: tuple[str, ...] = (),
        prefix: tuple[str, ...] = (),
    ) -> Run:
        """Starts pre-training of 3,000 steps with bindings; several ranks by torchrun."""
        program = list(_MODULE)
        if ranks > 1:
            launcher = ["-m", "torch.distributed.run", "--standalone", *torchrun]
            program = [*launcher, f"--nproc-per-node={ranks}", *_MODULE]
        texts = ("schedule.epochs=1000", "pretrain.evaluators=()", *texts)
        flags = [f"--gin_file={self.small}", f"--workdir={self.workdir}", *bindings(*texts)]
        log = self.folder / f"log_{len(list(self.folder.iterdir()))}"
        run = Run([*prefix, sys.executable, *program, *flags], self.folder, log)
        self.addCleanup(run.end)
        return run
