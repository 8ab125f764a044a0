"""Tests of docs/compare/compare.py: parsing and tables, without running the programs."""

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

from absl.testing import absltest
from PIL import Image

from jigclu import config
from jigclu.tasks.pretrain import PretrainTask


def _load() -> ModuleType:
    """Imports the script, which is outside every package."""
    path = Path(__file__).parents[1] / "docs" / "compare" / "compare.py"
    spec = importlib.util.spec_from_file_location("compare", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look up their module by name.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


compare = _load()
RUN = compare.Run(
    program="JigClu",
    images=100,
    cpu_seconds=50.0,
    wall_seconds=25.0,
    first_step_seconds=4.0,
    later_images_per_second=8.0,
    peak_megabytes=1500.0,
)


class StepTimesTest(absltest.TestCase):
    def test_first_report_of_every_step_counts(self) -> None:
        lines = [
            (0.5, "devices: 1 x cpu, steps: 18, 9 per epoch\n"),
            (1.0, "kNN accuracy 39.6% at step 0\n"),
            (2.0, "I1125 monitor.py:70] step 1/18 loss 3.2\n"),
            (3.0, "step 2\n"),
            (4.0, "step 2/18 again, step 3/18\n"),
            (5.0, "wrote checkpoints/step_00000018.pt after step 18 of 18\n"),
        ]
        self.assertEqual(compare.step_times(lines), [2.0, 3.0, 4.0])

    def test_redrawn_lines_are_one_line(self) -> None:
        self.assertEqual(compare.step_times([(1.0, "step 1/2\rstep 2/2\n")]), [1.0, 1.0])


class TableTest(absltest.TestCase):
    def test_medians_and_ranges_per_program(self) -> None:
        slower = dataclasses.replace(RUN, cpu_seconds=150.0, peak_megabytes=1700.0)
        peer = dataclasses.replace(RUN, program="peer", first_step_seconds=20.5)
        lines = compare.table([RUN, peer, slower]).splitlines()
        self.assertLen(lines, 4)
        self.assertEqual(
            lines[2],
            "| JigClu | 2 | 100 (50 to 150) | 1 (0.5 to 1.5) | 0.25 | 4 | 8 "
            "| 1,600 (1,500 to 1,700) |",
        )
        self.assertEqual(lines[3], "| peer | 1 | 50 | 0.5 | 0.25 | 20.5 | 8 | 1,500 |")
        self.assertLen({line.count("|") for line in lines}, 1)

    def test_runs_are_restored_from_a_file(self) -> None:
        path = Path(self.create_tempdir()) / "runs.jsonl"
        self.assertEqual(compare.read_runs(path), [])
        path.write_text(json.dumps(dataclasses.asdict(RUN)) + "\n")
        self.assertEqual(compare.read_runs(path), [RUN])


class CommandTest(absltest.TestCase):
    def test_programs_get_the_same_settings(self) -> None:
        settings = compare.Settings(Path("/photographs"), 3, 48, 5, 2)
        for name, peer in compare.PEERS.items():
            with self.subTest(name):
                command = peer.command("python", settings, Path("out"))
                words = " ".join(command).replace("=", " ").replace("'", " ").split()
                self.assertContainsSubset({"/photographs", "3", "48", "5", "out"}, words)

    def test_caption_states_what_differs(self) -> None:
        settings = compare.Settings(Path("/photographs"), 3, 48, 5, 2)
        versions = {"JigClu": {"torch": "2.15.0"}, "lightly SimCLR": {}}
        caption = compare.caption(settings, versions)
        self.assertIn("JigClu 1, lightly SimCLR 2", caption)
        self.assertIn("48 photographs per step", caption)
        self.assertIn("- JigClu: torch 2.15.0", caption)

    def test_own_command_binds_what_exists(self) -> None:
        folder = Path(self.create_tempdir())
        for name in ("a.png", "b.png"):
            Image.new("RGB", (8, 8)).save(folder / name)
        settings = compare.Settings(folder, 3, 2, 0, 1)
        command = compare.PEERS["JigClu"].command("python", settings, Path("out"))
        values: dict[str, list[str]] = {"--gin_file": [], "--gin_bindings": []}
        for word in command:
            flag, _, value = word.partition("=")
            if flag in values:
                values[flag].append(value)
        task = config.load(values["--gin_file"], values["--gin_bindings"]).task
        assert isinstance(task, PretrainTask)
        self.assertEqual((task.encoder, task.compute.precision), ("resnet18", "float32"))
        self.assertEqual((task.batch_size, task.loading.workers), (2, 0))
        self.assertEqual((task.schedule.epochs, task.reporting.log_every), (3, 1))


if __name__ == "__main__":
    absltest.main()
