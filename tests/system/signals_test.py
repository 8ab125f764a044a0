"""Tests of jigclu.system.signals, with signals that processes send to themselves."""

import os
import signal
import subprocess
import sys
import time
from unittest import mock

from absl.testing import absltest, parameterized

from jigclu import config
from jigclu.system import signals

# Sends itself SIGTERM after each pause, during one call of C, such as waiting for another rank.
BLOCKED = """
import ctypes, os, signal, sys, threading, time
from jigclu.system import signals

def send():
    for pause in map(float, sys.argv[1:]):
        time.sleep(pause)
        os.kill(os.getpid(), signal.SIGTERM)

with signals.handle(), signals.deferred():
    threading.Thread(target=send, daemon=True).start()
    # Other threads receive the signals, and this one runs no handler until its call returns.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    ctypes.CDLL(None).sleep(4)
    print("first signal only", signals.requested())
"""
ORPHAN = """
import os, subprocess, sys
program = '''
import time
from jigclu.system import signals
with signals.handle():
    print("ready", flush=True)
    try:
        time.sleep(60)
    except signals.Stopped:
        print(signals.reason(), flush=True)
'''
child = subprocess.Popen([sys.executable, "-c", program])
input()
os._exit(0)
"""


def send(number: signal.Signals) -> None:
    signal.raise_signal(number)


class SignalsTest(parameterized.TestCase):
    @parameterized.parameters(*signals._SIGNALS)
    def test_a_signal_stops_the_block_and_sets_the_exit_status(
        self, number: signal.Signals
    ) -> None:
        with signals.handle():
            with self.assertRaises(signals.Stopped):
                send(number)
            self.assertTrue(signals.requested())
            self.assertEqual(signals.exit_status(), 128 + number)
            # Nor does the end of a process that started this one matter, unless it is torchrun.
            with mock.patch.object(os, "getppid", return_value=1):
                self.assertEqual(signals.reason(), number.name)

    def test_a_deferred_signal_is_raised_when_the_block_is_interruptible_again(self) -> None:
        with signals.handle(), signals.deferred():
            self.assertFalse(signals.requested())
            with signals.interruptible():
                pass
            send(signal.SIGTERM)
            self.assertTrue(signals.requested())
            with self.assertRaises(signals.Stopped), signals.interruptible():
                self.fail("a signal was ignored")
            with self.assertRaises(signals.Stopped):
                signals.check()

    def test_handlers_are_restored_and_forget_earlier_signals(self) -> None:
        before = signal.getsignal(signal.SIGTERM)
        with self.assertRaises(signals.Stopped), signals.handle():
            send(signal.SIGTERM)
        self.assertEqual(signal.getsignal(signal.SIGTERM), before)
        self.assertFalse(signals.requested())

    def test_processes_that_start_while_signals_are_ignored_ignore_them(self) -> None:
        with signals.ignored():
            program = "import signal; print(signal.getsignal(signal.SIGTERM).name)"
            ignoring = subprocess.run([sys.executable, "-c", program], capture_output=True)
        self.assertEqual(ignoring.stdout, b"SIG_IGN\n")

    def _blocked(self, *pauses: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-c", BLOCKED, *pauses],
            env=os.environ | {"PYTHONPATH": str(config.ROOT)},
            capture_output=True,
            text=True,
            timeout=60,
        )

    def test_a_second_signal_quits_at_once_even_in_a_blocking_call(self) -> None:
        done = self._blocked("0.2", "1.5")
        self.assertEqual(done.returncode, 143, done.stderr)
        self.assertEqual(done.stderr, "quit at once by a second signal, SIGTERM\n")

    def test_a_duplicate_of_the_first_signal_does_not_quit(self) -> None:
        done = self._blocked("0.2", "0.1", "0.1")
        self.assertEqual((done.returncode, done.stdout), (0, "first signal only True\n"))

    @absltest.skipUnless(sys.platform == "linux", "needs Linux")
    def test_the_end_of_torchrun_stops_its_processes(self) -> None:
        with subprocess.Popen(
            [sys.executable, "-c", ORPHAN],
            env=os.environ | {"PYTHONPATH": str(config.ROOT), "TORCHELASTIC_RUN_ID": "x"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as parent:
            assert parent.stdin is not None and parent.stdout is not None
            self.assertEqual(parent.stdout.readline(), "ready\n")
            time.sleep(0.1)
            parent.kill()
            self.assertEqual(parent.stdout.readline(), "SIGTERM, because torchrun has ended\n")


if __name__ == "__main__":
    absltest.main()
