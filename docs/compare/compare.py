"""Trains with this project and with other self-supervised trainers side by side.

    python docs/compare/compare.py --images FOLDER

Each peer has its own environment, created by `venv` and filled by `pip`; this project runs in the
environment of the script. Runs of the programs interleave. Prints a Markdown table. See README.md
in this folder.
"""

import argparse
import dataclasses
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

_HERE = Path(__file__).resolve().parent
_PACKAGES = ("torch", "torchvision", "pillow", "lightly-train", "lightly", "pytorch-lightning")
# Printed by every program after a training step.
_STEP = re.compile(r"\bstep (\d+)(?:/\d+|$)", re.MULTILINE)


@dataclass(frozen=True)
class Settings:
    """Settings that all programs share."""

    images: Path
    epochs: int
    batch_size: int
    workers: int
    threads: int


@dataclass(frozen=True)
class Peer:
    """A program to measure: its packages, and a function that returns its command.

    The function gets an interpreter, the settings, and an empty folder to write to.
    """

    requirements: tuple[str, ...]
    command: Callable[[str, Settings, Path], list[str]]
    views: int  # Images of full size that the encoder sees per photograph.


@dataclass(frozen=True)
class Run:
    """Cost of one run. CPU time includes worker processes; memory is of the largest process."""

    program: str
    images: int
    cpu_seconds: float
    wall_seconds: float
    first_step_seconds: float
    later_images_per_second: float
    peak_megabytes: float


def _jigclu_command(python: str, settings: Settings, folder: Path) -> list[str]:
    bindings = (
        "pretrain.source=@UnlabeledImages()",
        f"UnlabeledImages.root='{settings.images}'",
        "pretrain.encoder='resnet18'",
        f"schedule.epochs={settings.epochs}",
        f"pretrain.batch_size={settings.batch_size}",
        f"loading.workers={settings.workers}",
        "compute.precision='float32'",
        "reporting.log_every=1",
    )
    command = [python, "-m", "jigclu.launch", f"--gin_file={_HERE.parents[1]}/gin/pretrain_r50.gin"]
    return [*command, f"--workdir={folder}", *(f"--gin_bindings={text}" for text in bindings)]


def _script_command(script: str) -> Callable[[str, Settings, Path], list[str]]:
    """Returns the command of a peer that is trained by a script in this folder."""

    def command(python: str, settings: Settings, folder: Path) -> list[str]:
        numbers = (settings.epochs, settings.batch_size, settings.workers)
        return [python, str(_HERE / script), str(settings.images), str(folder), *map(str, numbers)]

    return command


PEERS = {
    "JigClu": Peer((), _jigclu_command, views=1),
    "lightly-train SimCLR": Peer(
        ("lightly-train==0.18.0",), _script_command("lightly_train_simclr.py"), views=2
    ),
    "lightly SimCLR": Peer(("lightly==1.6.0",), _script_command("lightly_simclr.py"), views=2),
}


def interpreter(name: str, environments: Path) -> str:
    """Returns the Python of a program's environment, which is created if it is missing."""
    requirements = PEERS[name].requirements
    if not requirements:
        return sys.executable
    folder = environments / name.replace(" ", "-")
    python, marker = folder / "bin" / "python", folder / "installed"
    if not marker.exists():
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *requirements], check=True)
        marker.touch()
    return str(python)


def measure(name: str, python: str, settings: Settings) -> Run:
    """Runs a program to its end.

    Raises:
      RuntimeError: it failed, or printed fewer than two steps; the message ends with its output.
    """
    environment = os.environ | {
        "OMP_NUM_THREADS": str(settings.threads),
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONUNBUFFERED": "1",
        # No usage statistics and no look-up of newer versions over the network.
        "LIGHTLY_TRAIN_EVENTS_DISABLED": "1",
        "LIGHTLY_DID_VERSION_CHECK": "True",
    }
    if PEERS[name].requirements:
        environment.pop("PYTHONPATH", None)
    with tempfile.TemporaryDirectory() as folder:
        command = PEERS[name].command(python, settings, Path(folder))
        begin = time.monotonic()
        process = subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        assert process.stdout is not None
        lines = [(time.monotonic() - begin, line) for line in process.stdout]
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.monotonic() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
    steps = step_times(lines)
    if process.returncode or len(steps) < 2:
        output = "".join(line for _, line in lines[-30:])
        raise RuntimeError(f"{name} exited with {process.returncode}:\n{output}")
    return Run(
        program=name,
        images=len(steps) * settings.batch_size,
        cpu_seconds=usage.ru_utime + usage.ru_stime,
        wall_seconds=wall,
        first_step_seconds=steps[0],
        later_images_per_second=(len(steps) - 1) * settings.batch_size / (steps[-1] - steps[0]),
        peak_megabytes=usage.ru_maxrss / 1024,
    )


def step_times(lines: Sequence[tuple[float, str]]) -> list[float]:
    """Returns the seconds of the first report of each step, given (seconds, line) of the output."""
    times: dict[int, float] = {}
    for seconds, line in lines:
        for match in _STEP.finditer(line):
            times.setdefault(int(match.group(1)), seconds)
    return [times[step] for step in sorted(times) if step > 0]


def table(runs: Sequence[Run]) -> str:
    """Returns a Markdown table with a row per program: medians, with minimum and maximum."""
    header = ["program", "runs", "CPU s", "CPU s per image", "wall s per image"]
    header += ["s to the first step", "images/s after it", "peak memory, MB"]
    rows = [header, ["---"] * len(header)]
    for name in dict.fromkeys(run.program for run in runs):
        own = [run for run in runs if run.program == name]
        columns = [
            [run.cpu_seconds for run in own],
            [run.cpu_seconds / run.images for run in own],
            [run.wall_seconds / run.images for run in own],
            [run.first_step_seconds for run in own],
            [run.later_images_per_second for run in own],
            [run.peak_megabytes for run in own],
        ]
        rows.append([name, str(len(own)), *map(_summary, columns)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _summary(values: Sequence[float]) -> str:
    median, least, most = (_number(f(values)) for f in (statistics.median, min, max))
    return median if least == most else f"{median} ({least} to {most})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def caption(settings: Settings, versions: dict[str, dict[str, str]]) -> str:
    """Returns the shared settings, the versions and the machine, as Markdown."""
    lines = [
        f"ResNet-18, random weights, {settings.epochs} epochs, {settings.batch_size} photographs "
        f"per step, 224 pixels, float32, {settings.workers} worker processes, "
        f"{settings.threads} threads, no GPU. Full-size views of a photograph per step: "
        + ", ".join(f"{name} {PEERS[name].views}" for name in versions)
        + f". {platform.platform()}, {os.cpu_count()} cores."
    ]
    for name, packages in versions.items():
        listed = ", ".join(f"{package} {version}" for package, version in packages.items())
        lines.append(f"- {name}: {listed}")
    return "\n".join(lines)


def installed(python: str) -> dict[str, str]:
    """Returns the versions of `_PACKAGES` in an environment."""
    listed = subprocess.run(
        [python, "-m", "pip", "list", "--format=json"], check=True, capture_output=True, text=True
    )
    versions = {
        package["name"].replace("_", "-"): package["version"]
        for package in json.loads(listed.stdout)
    }
    return {name: versions[name] for name in _PACKAGES if name in versions}


def read_runs(path: Path) -> list[Run]:
    """Returns the runs of a file with one per line; none if the file does not exist."""
    if not path.exists():
        return []
    return [Run(**json.loads(line)) for line in path.read_text().splitlines()]


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, required=True, help="folder of photographs")
    parser.add_argument("--environments", type=Path, default=Path("runs/compare"))
    parser.add_argument("--runs", type=Path, help="file that keeps runs; the table covers it all")
    parser.add_argument("--only", choices=PEERS, action="append", help="program; repeatable")
    parser.add_argument("--repetitions", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> None:
    options = _parse(arguments)
    settings = Settings(
        images=options.images.resolve(),
        epochs=options.epochs,
        batch_size=options.batch_size,
        workers=options.workers,
        threads=options.threads,
    )
    pythons = {name: interpreter(name, options.environments) for name in options.only or PEERS}
    runs = read_runs(options.runs) if options.runs else []
    for _ in range(options.repetitions):
        for name, python in pythons.items():
            runs.append(measure(name, python, settings))
            print(runs[-1], file=sys.stderr)
            if options.runs:
                with options.runs.open("a") as file:
                    print(json.dumps(dataclasses.asdict(runs[-1])), file=file)
    print(table(runs), end="\n\n")
    print(caption(settings, {name: installed(python) for name, python in pythons.items()}))


if __name__ == "__main__":
    main(sys.argv[1:])
