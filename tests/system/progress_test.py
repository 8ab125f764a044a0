"""Tests of jigclu.system.progress."""

import io
import threading
from collections.abc import Iterator
from unittest import mock

from absl.testing import absltest

from jigclu.system import progress
from tests.terminal import Clock, Terminal, screen


class ProgressTest(absltest.TestCase):
    def setUp(self) -> None:
        super().setUp()
        self.clock = Clock()
        self.enter_context(mock.patch.dict("os.environ", {"COLUMNS": "80"}))
        # The tests call `tick` themselves.
        self.enter_context(mock.patch.object(progress, "_TICK_SECONDS", 3600.0))

    def console(self, stream: io.StringIO) -> progress.Console:
        return progress.Console(stream, self.clock)

    @mock.patch.dict("os.environ", COLUMNS="24")
    def test_a_terminal_breaks_long_messages_between_words(self) -> None:
        log, terminal = io.StringIO(), Terminal()
        table, command = "| a table that is | so wide |", "run it with --workdir=runs/other_one"
        message = f"nothing is learned beyond chance\n{table}\n{command}"
        for stream in (log, terminal):
            self.console(stream).message(message)
        self.assertEqual(log.getvalue(), f"{message}\n")
        broken = "nothing is learned\n  beyond chance"
        self.assertEqual(terminal.getvalue(), f"{broken}\n{table}\n{command}\n")

    def pass_seconds(self, console: progress.Console, seconds: float) -> None:
        self.clock.now += seconds
        console.tick()

    def test_quick_work_shows_nothing(self) -> None:
        for stream in (Terminal(), io.StringIO()):
            console = self.console(stream)
            with console.status("opening the data"):
                self.pass_seconds(console, 2.9)
            self.assertEqual(stream.getvalue(), "")

    def test_live_line_is_updated_and_removed_with_its_work(self) -> None:
        stream = Terminal()
        console = self.console(stream)
        with console.status("building the network"):
            self.pass_seconds(console, 3.0)
            self.assertEqual(screen(stream.getvalue()), ["building the network, 0:00:03"])
            self.pass_seconds(console, 61.0)
            self.assertEqual(screen(stream.getvalue()), ["building the network, 0:01:04"])
        self.assertEqual(screen(stream.getvalue()), [""])

    def test_log_gets_a_line_every_thirty_seconds(self) -> None:
        stream = io.StringIO()
        console = self.console(stream)
        with console.status("building the network"):
            for _ in range(70):
                self.pass_seconds(console, 1.0)
        self.assertEqual(
            stream.getvalue().splitlines(),
            [f"building the network, 0:{time}" for time in ("00:03", "00:33", "01:03")],
        )

    def test_work_without_patience_is_shown_at_once(self) -> None:
        stream = io.StringIO()
        console = self.console(stream)
        for name in ("first", "second"):
            with console.status(name, patience=0):
                self.clock.now += 1
        self.assertEqual(stream.getvalue(), "first, 0:00:00\nsecond, 0:00:00\n")

    def test_items_are_counted(self) -> None:
        def names() -> Iterator[str]:
            yield from "abc"

        stream = io.StringIO()
        console = self.console(stream)
        for items in (["a", "b", "c"], names()):
            for item in console.track(items, "opening shards"):
                if item == "c":
                    self.pass_seconds(console, 4.0)
        list(console.track(names(), "opening shards", total=1234))
        self.assertEqual(
            stream.getvalue().splitlines(),
            ["opening shards, 2 of 3, 0:00:04", "opening shards, 2 so far, 0:00:04"],
        )

    def test_nested_work_is_shown_after_the_enclosing_work(self) -> None:
        stream = Terminal()
        console = self.console(stream)
        with console.status("scoring"):
            self.pass_seconds(console, 5.0)
            with console.status("encoding images", total=2000) as work:
                work.done = 640
                self.pass_seconds(console, 2.0)
                shown = screen(stream.getvalue())
                self.assertEqual(shown, ["scoring: encoding images, 640 of 2,000, 0:00:02"])
            console.tick()
            self.assertEqual(screen(stream.getvalue()), ["scoring, 0:00:07"])

    def test_long_phrases_are_cut_before_count_and_time(self) -> None:
        stream = Terminal()
        console = self.console(stream)
        with console.status("/data" * 40, total=1_281_167):
            self.pass_seconds(console, 7.0)
            (line,) = screen(stream.getvalue())
        self.assertLen(line, 79)
        self.assertEndsWith(line, "…, 0 of 1,281,167, 0:00:07")

    def test_messages_keep_the_live_line_intact(self) -> None:
        stream = Terminal()
        console = self.console(stream)
        console.set_line("step 10/20  loss 23.46")
        with console.status("scoring"):
            self.pass_seconds(console, 1.0)
            self.assertEqual(screen(stream.getvalue()), ["step 10/20  loss 23.46"])
            self.pass_seconds(console, 2.0)
            console.message("a message")
            self.assertEqual(screen(stream.getvalue()), ["a message", "scoring, 0:00:03"])
            console.set_line("step 11/20  loss 23.40")
            self.assertEqual(screen(stream.getvalue()), ["a message", "scoring, 0:00:03"])
        self.assertEqual(screen(stream.getvalue()), ["a message", "step 11/20  loss 23.40"])
        console.keep_line()
        console.message("done")
        self.assertEqual(
            screen(stream.getvalue()), ["a message", "step 11/20  loss 23.40", "done", ""]
        )

    def test_only_the_main_process_prints(self) -> None:
        stream = Terminal()
        console = self.console(stream)
        with mock.patch.dict("os.environ", RANK="1"):
            for _ in console.track(range(3), "opening shards"):
                self.pass_seconds(console, 10.0)
        self.assertEqual(stream.getvalue(), "")

    def test_error_removes_the_live_line_and_ends_the_thread(self) -> None:
        stream = Terminal()
        console = self.console(stream)
        threads = threading.active_count()
        with self.assertRaises(ZeroDivisionError), console.status("dividing"):
            self.pass_seconds(console, 5.0)
            self.assertEqual(threading.active_count(), threads + 1)
            _ = 1 / 0
        self.assertEqual(threading.active_count(), threads)
        self.assertEqual(screen(stream.getvalue()), [""])

    def test_console_ends_the_work_of_a_suspended_generator(self) -> None:
        stream = Terminal()
        console = self.console(stream)
        threads = threading.active_count()
        tracked = console.track(range(3), "opening shards")
        with self.assertRaises(ZeroDivisionError), console:
            next(tracked)
            self.pass_seconds(console, 5.0)
            _ = 1 / 0
        self.assertEqual(threading.active_count(), threads)
        console.message("error: division by zero")
        self.assertEqual(screen(stream.getvalue()), ["error: division by zero", ""])
        self.assertEqual(list(tracked), [1, 2])


class TickerTest(absltest.TestCase):
    def test_line_appears_during_a_single_long_call(self) -> None:
        printed = threading.Event()

        class Log(io.StringIO):
            def write(self, text: str) -> int:
                printed.set()
                return super().write(text)

        clock, log = Clock(), Log()
        console = progress.Console(log, clock)
        with mock.patch.object(progress, "_TICK_SECONDS", 0.001), console.status("compiling"):
            clock.now += 4.0
            self.assertTrue(printed.wait(timeout=60))
        self.assertEqual(log.getvalue(), "compiling, 0:00:04\n")


if __name__ == "__main__":
    absltest.main()
