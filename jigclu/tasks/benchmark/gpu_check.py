"""`make gpu-check`: runs the parts of `gpu_parts` and reports their results.

Each part runs in its own process with its own time limit, so that a failure, a hang or a lack
of memory does not affect the other parts. The report is rewritten after each part. This module
imports no package except torch: if another one is missing, only the parts that need it fail.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from jigclu.system.cores import available_cores
from jigclu.tasks.benchmark.environment import describe_environment

ROOT = Path(__file__).resolve().parents[3]
PRECISIONS = ("bfloat16", "float32", "float16")
SECONDS = 520.0  # In total; the command is to take less than nine minutes.

_POLL = 0.2  # Seconds between two checks of the processes.
_COMPILE_THREADS = {"TORCHINDUCTOR_COMPILE_THREADS": "4"}  # Per part that shares the machine.


class Part(NamedTuple):
    """A part, by its name in `gpu_parts.PARTS`.

    limit: seconds after which it is killed.
    least: seconds that it needs; it is skipped if less time is left.
    """

    name: str
    limit: float
    least: float


class Stage(NamedTuple):
    """Parts, the most valuable first, of which at most `at_once` run at the same time.

    limit: seconds for all of them.
    variables: added to the environment of each part.
    """

    parts: Sequence[Part]
    at_once: int
    limit: float
    variables: Mapping[str, str]


class Outcome(NamedTuple):
    """The outcome of a part.

    status: "passed", "failed" or "skipped".
    reason: one line; empty if it passed.
    findings: as written by `gpu_parts.write_findings`; may be empty.
    """

    name: str
    status: str
    seconds: float
    reason: str
    findings: dict[str, Any]


def stages(cores: int) -> list[Stage]:
    """Returns all parts for a machine with so many processor cores.

    Parts that need no quiet machine share it: the tests, the training, and the compilation of
    all steps. Their speed is then measured one part at a time.
    """
    compilations = [
        Part(f"compile-{network}-{precision}", 200, 60)
        for network in ("resnet50-224", "resnet18-64", "resnet18-112")
        for precision in PRECISIONS
    ]
    side_by_side = [Part("tests", 200, 20), Part("training", 200, 150), *compilations]
    one_by_one = [
        *(Part(f"resnet50-224-{precision}", 150, 30) for precision in PRECISIONS),
        Part("clustering-loss", 60, 15),
        Part("micro-batches", 90, 25),
        Part("copies", 120, 40),
        Part("resnet18-64", 120, 30),
        Part("resnet18-112", 120, 30),
    ]
    return [
        Stage(side_by_side, max(2, cores - 2), 210, _COMPILE_THREADS),
        Stage(one_by_one, 1, SECONDS, {}),
    ]


def part_command(name: str, result: Path) -> list[str]:
    """Returns the command that runs a part and writes its findings to a file."""
    return [sys.executable, "-m", "jigclu.tasks.benchmark.gpu_parts", name, str(result)]


class _Process:
    """A running part, in its own process group, with its output in a file."""

    def __init__(self, part: Part, command: Sequence[str], result: Path, stage: Stage) -> None:
        self.part = part
        self._result = result
        self._log = result.with_suffix(".log")
        self._began = time.monotonic()
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=os.environ | stage.variables | {"PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def outcome(self, limit: float) -> Outcome | None:
        """Returns the outcome, or None while the part runs; kills it after `limit` seconds."""
        status = self._process.poll()
        seconds = time.monotonic() - self._began
        if status is None and seconds < limit:
            return None
        self.end()
        findings = json.loads(self._result.read_text()) if self._result.exists() else {}
        if status == 0:
            return Outcome(self.part.name, "passed", seconds, "", findings)
        if status is None:
            reason = f"killed after {limit:.0f} s"
        else:
            reason = findings.get("failure") or self._last_line(status)
        return Outcome(self.part.name, "failed", seconds, reason, findings)

    def end(self) -> None:
        """Kills the process and all processes that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def log(self) -> str:
        """Returns the output of the part."""
        return self._log.read_text(errors="replace")

    def _last_line(self, status: int) -> str:
        lines = [line.strip() for line in self.log().splitlines() if line.strip()]
        ended = f"signal {-status}" if status < 0 else f"exit status {status}"
        return f"{lines[-1][:300]} ({ended})" if lines else ended


def run_stage(
    stage: Stage,
    deadline: float,
    command: Callable[[str, Path], list[str]],
    log: Path,
) -> Generator[Outcome, None, None]:
    """Runs the parts of a stage; yields the outcome of each as soon as it ends.

    Args:
      stage: parts to run.
      deadline: in the seconds of `time.monotonic`; nothing runs longer.
      command: returns the command of a part from its name and the file for its findings.
      log: file to which the output of each part is appended.
    """
    waiting = list(stage.parts)
    running: list[tuple[_Process, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            while waiting or running:
                while waiting and len(running) < stage.at_once:
                    part = waiting.pop(0)
                    left = deadline - time.monotonic()
                    if left < part.least:
                        reason = f"needs {part.least:.0f} s, {max(0.0, left):.0f} s are left"
                        yield Outcome(part.name, "skipped", 0.0, reason, {})
                        continue
                    result = Path(folder) / f"{part.name}.json"
                    process = _Process(part, command(part.name, result), result, stage)
                    running.append((process, min(part.limit, left)))
                for process, limit in list(running):
                    outcome = process.outcome(limit)
                    if outcome is not None:
                        running.remove((process, limit))
                        with log.open("a") as file:
                            file.write(f"=== {process.part.name} ===\n{process.log()}\n")
                        yield outcome
                time.sleep(_POLL)
        finally:
            for process, _ in running:
                process.end()


def run_stages(
    all_stages: Sequence[Stage],
    folder: Path,
    environment: Mapping[str, str],
    seconds: float,
    command: Callable[[str, Path], list[str]] = part_command,
) -> list[Outcome]:
    """Runs all parts within a time; writes gpu.md, gpu.json and gpu.log.

    Args:
      all_stages: in order.
      folder: for the files; created if missing.
      environment: machine and versions, by name.
      seconds: limit for everything.
      command: as in `run_stage`.
    """
    deadline = time.monotonic() + seconds
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "gpu.log"
    log.write_text("")
    outcomes: list[Outcome] = []
    write_report(folder, environment, outcomes)
    for stage in all_stages:
        end = min(deadline, time.monotonic() + stage.limit)
        with contextlib.closing(run_stage(stage, end, command, log)) as stage_outcomes:
            for outcome in stage_outcomes:
                outcomes.append(outcome)
                write_report(folder, environment, outcomes)
                print(_line(outcome), flush=True)
    return outcomes


def _line(outcome: Outcome) -> str:
    reason = f": {outcome.reason}" if outcome.reason else ""
    return f"{outcome.name}: {outcome.status}, {outcome.seconds:.0f} s{reason}"


def write_report(folder: Path, environment: Mapping[str, str], outcomes: Sequence[Outcome]) -> None:
    """Writes gpu.json and gpu.md."""
    contents = {
        "environment": dict(environment),
        "parts": [outcome._asdict() for outcome in outcomes],
    }
    (folder / "gpu.json").write_text(f"{json.dumps(contents, indent=1)}\n")
    (folder / "gpu.md").write_text(f"{report(environment, outcomes)}\n")


def report(environment: Mapping[str, str], outcomes: Sequence[Outcome]) -> str:
    """Returns the report in Markdown."""
    parts = ["| part | status | s | reason |", "|---|---|---|---|"]
    parts += [f"| {o.name} | {o.status} | {o.seconds:.0f} | {_cell(o.reason)} |" for o in outcomes]
    targets = [target for outcome in outcomes for target in outcome.findings.get("targets", ())]
    tables = [text for outcome in outcomes for text in outcome.findings.get("markdown", ())]
    return "\n\n".join(
        [
            "# GPU check",
            "\n".join(f"- {name}: {value}" for name, value in environment.items()),
            "## Parts",
            "\n".join(parts),
            *(["## Targets", _targets(targets)] if targets else []),
            *tables,
        ]
    )


def _targets(targets: Sequence[Mapping[str, Any]]) -> str:
    lines = ["| target | measured | at least | reached |", "|---|---|---|---|"]
    for target in targets:
        measured, least = target["measured"], target["least"]
        reached = "yes" if measured >= least else "no"
        lines.append(f"| {target['what']} | {measured:,.4g} | {least:,.4g} | {reached} |")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


def main() -> int:
    """Runs the check; returns 0 if all parts passed, 1 if not, and 2 without CUDA."""
    if not torch.cuda.is_available():
        print("error: gpu-check needs CUDA, but torch sees no GPU", file=sys.stderr)
        return 2
    # A termination signal must reach the `finally` that kills the processes.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    folder = Path(os.environ.get("OUT") or ROOT / "runs" / "gpu_check")
    environment = describe_environment(torch.device("cuda", 0))
    outcomes = run_stages(stages(available_cores()), folder, environment, SECONDS)
    print(f"gpu.md, gpu.json and gpu.log are in {folder}")
    return 0 if all(outcome.status == "passed" for outcome in outcomes) else 1
