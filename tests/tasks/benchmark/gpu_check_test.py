"""Tests of jigclu.tasks.benchmark.gpu_check.

Parts are short Python programs instead of measurements.
"""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from absl.testing import absltest, parameterized

from jigclu.tasks.benchmark import gpu_check
from jigclu.tasks.benchmark.gpu_check import Outcome, Part, Stage
from jigclu.tasks.benchmark.gpu_parts import PARTS

ENVIRONMENT = {"device": "NVIDIA H100", "driver": "580.1"}
TARGETS = [
    {"what": "share", "measured": 0.97, "least": 0.95},
    {"what": "rate", "measured": 2100.0, "least": 2500.0},
]
FINDINGS: dict[str, Any] = {
    "tables": [{"title": "Steps", "rows": [["JigClu", 1.5]]}],
    "markdown": ["## Steps\n\n| step |\n|---|\n| JigClu |"],
    "targets": TARGETS,
    "failure": "",
}
# By the name of a part: what its process runs; sys.argv[1] is the file for its findings.
PROGRAMS = {
    "good": f"import sys; open(sys.argv[1], 'w').write({json.dumps(FINDINGS)!r})",
    "bad": "print('before'); raise MemoryError('out of memory | on the device')",
    "missing": "import no_such_package",
    "killed": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
    "silent": "import sys; sys.exit(3)",
    "partial": "import sys; open(sys.argv[1], 'w')"
    f".write({json.dumps(FINDINGS | {'failure': '1 of 2 tests failed'})!r}); sys.exit(1)",
    "hangs": "import subprocess, sys, time\n"
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
    "print('child', child.pid, flush=True)\ntime.sleep(60)",
    "variable": "import os; assert os.environ['SHARED'] == 'yes'",
}


def command(name: str, result: Path) -> list[str]:
    return [sys.executable, "-c", PROGRAMS[name.split("-")[0]], str(result)]


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended but was not collected does not."""
    status = Path(f"/proc/{pid}/stat")
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return status.read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


class GpuCheckTest(parameterized.TestCase):
    def setUp(self) -> None:
        super().setUp()
        self.folder = Path(self.create_tempdir().full_path) / "new"

    def run_parts(
        self, *parts: Part, at_once: int = 1, seconds: float = 60.0
    ) -> dict[str, Outcome]:
        stage = Stage(parts, at_once, 60.0, {"SHARED": "yes"})
        with contextlib.redirect_stdout(io.StringIO()):
            outcomes = gpu_check.run_stages([stage], self.folder, ENVIRONMENT, seconds, command)
        return {outcome.name: outcome for outcome in outcomes}

    def test_failures_do_not_hide_other_parts(self) -> None:
        names = ("bad", "missing", "killed", "silent", "partial", "variable", "good")
        outcomes = self.run_parts(*(Part(name, 30, 0) for name in names))
        self.assertEqual(tuple(outcomes), names)
        self.assertEqual(
            {name: outcome.status for name, outcome in outcomes.items()},
            dict.fromkeys(names[:5], "failed") | dict.fromkeys(names[5:], "passed"),
        )
        self.assertIn("out of memory", outcomes["bad"].reason)
        self.assertIn("No module named 'no_such_package'", outcomes["missing"].reason)
        self.assertEqual(outcomes["killed"].reason, f"signal {signal.SIGSEGV.value}")
        self.assertEqual(outcomes["silent"].reason, "exit status 3")
        self.assertEqual(outcomes["partial"].reason, "1 of 2 tests failed")
        # What a part found before it failed is kept.
        self.assertEqual(outcomes["partial"].findings["targets"], TARGETS)

    def test_a_part_that_hangs_is_killed_with_all_that_it_started(self) -> None:
        outcomes = self.run_parts(Part("hangs", 1.5, 0), Part("good", 30, 0))
        self.assertEqual(outcomes["hangs"].status, "failed")
        self.assertEqual(outcomes["hangs"].reason, "killed after 2 s")
        self.assertEqual(outcomes["good"].status, "passed")
        log = (self.folder / "gpu.log").read_text()
        self.assertIn("=== hangs ===", log)
        pid = int(log.split("child ")[1].split()[0])
        for _ in range(100):
            if not is_alive(pid):
                return
            time.sleep(0.05)
        self.fail("the child of a part outlived it")

    def test_parts_that_do_not_fit_are_skipped(self) -> None:
        outcomes = self.run_parts(Part("good-1", 30, 100), Part("good-2", 30, 5), seconds=20.0)
        self.assertEqual(outcomes["good-1"].status, "skipped")
        self.assertRegex(outcomes["good-1"].reason, r"needs 100 s, (20|19) s are left")
        self.assertEqual(outcomes["good-2"].status, "passed")

    def test_no_part_outlasts_the_time_in_total(self) -> None:
        outcomes = self.run_parts(Part("hangs", 50, 0), Part("good", 30, 0.5), seconds=1.0)
        self.assertEqual(outcomes["hangs"].status, "failed")
        self.assertEqual(outcomes["good"].status, "skipped")

    def test_parts_side_by_side_do_not_wait_for_each_other(self) -> None:
        outcomes = self.run_parts(Part("hangs", 5, 0), Part("good", 30, 0), at_once=2)
        self.assertEqual(list(outcomes), ["good", "hangs"])

    def test_report_is_written_after_every_part(self) -> None:
        stage = Stage([Part("good", 30, 0), Part("bad", 30, 0)], 1, 60.0, {})
        seen = []

        def recorded(outcome: Outcome) -> str:
            seen.append(len(json.loads((self.folder / "gpu.json").read_text())["parts"]))
            return gpu_check.Outcome.__name__

        with (
            mock.patch.object(gpu_check, "_line", recorded),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            gpu_check.run_stages([stage], self.folder, ENVIRONMENT, 60.0, command)
        self.assertEqual(seen, [1, 2])

    def test_report_states_everything(self) -> None:
        self.run_parts(Part("good", 30, 0), Part("bad", 30, 0))
        contents = json.loads((self.folder / "gpu.json").read_text())
        self.assertEqual(contents["environment"], ENVIRONMENT)
        good, bad = contents["parts"]
        self.assertEqual(good["findings"]["tables"], FINDINGS["tables"])
        self.assertGreater(good["seconds"], 0)
        self.assertEqual((bad["status"], bad["findings"]), ("failed", {}))
        text = (self.folder / "gpu.md").read_text()
        self.assertIn("- device: NVIDIA H100\n- driver: 580.1\n", text)
        self.assertRegex(text, r"\| good \| passed \| \d+ \|  \|")
        self.assertRegex(text, r"\| bad \| failed \| \d+ \| MemoryError: .* \\\| on the device")
        self.assertIn("| share | 0.97 | 0.95 | yes |", text)
        self.assertIn("| rate | 2,100 | 2,500 | no |", text)
        self.assertIn(FINDINGS["markdown"][0], text)

    def test_every_part_runs_and_timed_steps_are_compiled_first(self) -> None:
        side_by_side, one_by_one = gpu_check.stages(16)
        names = [part.name for part in (*side_by_side.parts, *one_by_one.parts)]
        self.assertCountEqual(names, PARTS)
        self.assertEqual(one_by_one.at_once, 1)
        self.assertEqual(names[0], "tests")
        self.assertEqual(one_by_one.parts[0].name, "resnet50-224-bfloat16")
        for part in (*side_by_side.parts, *one_by_one.parts):
            self.assertLess(part.least, part.limit, part.name)
        # On two cores, too, no more run at once than there is time for.
        self.assertEqual(gpu_check.stages(2)[0].at_once, 2)
        self.assertLess(gpu_check.SECONDS, 9 * 60 - 10)

    @parameterized.parameters((["passed", "passed"], 0), (["passed", "failed"], 1))
    def test_exit_status(self, statuses: list[str], expected: int) -> None:
        outcomes = [Outcome(name, name, 1.0, "", {}) for name in statuses]
        with (
            mock.patch.object(torch.cuda, "is_available", return_value=True),
            mock.patch.object(gpu_check, "describe_environment", return_value=ENVIRONMENT),
            mock.patch.object(gpu_check, "run_stages", return_value=outcomes) as run,
            mock.patch.object(signal, "signal"),
            mock.patch.dict(os.environ, {"OUT": str(self.folder)}),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            self.assertEqual(gpu_check.main(), expected)
        self.assertEqual(run.call_args.args[1], self.folder)

    def test_without_cuda_the_script_says_so_in_one_line(self) -> None:
        script = gpu_check.ROOT / "launch" / "gpu_check.py"
        # From another folder and without the package on the path.
        variables = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        ended = subprocess.run(
            [sys.executable, str(script)],
            cwd=self.folder.parent,
            env=variables | {"CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            text=True,
        )
        self.assertEqual(ended.returncode, 2)
        self.assertEqual(ended.stdout, "")
        self.assertEqual(ended.stderr, "error: gpu-check needs CUDA, but torch sees no GPU\n")


if __name__ == "__main__":
    absltest.main()
