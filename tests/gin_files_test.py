"""Every gin file loads, and every binding in it takes effect."""

import re
from pathlib import Path

from absl.testing import absltest, parameterized
from PIL import Image

from jigclu import config
from jigclu.config.gin_files import described_bindings
from jigclu.config.sizes import DERIVED
from jigclu.tasks.reproduce import ReproduceTask
from tests.gin_case import (
    FILES,
    ONLINE_PROBE,
    PROBE,
    RUN_FILES,
    GinTestCase,
    all_includes,
    expected_task,
)

# No run file includes them; commands add them.
ADDED = {PROBE, ONLINE_PROBE, "gin/base/decoding.gin"}
# Bindings of included files whose reader a file replaces.
REPLACED = {
    "gin/results/supervised_tiny.gin": ["step_decay.factor", "step_decay.milestones"],
    "gin/results/compare_tiny_images.gin": ["SEMI_10PCT", "SEMI_1PCT"],
}
# Read by the rules of gin/pretrain_folder.gin, or for folders without evaluation images.
READ_BY_RULES = ("DATA", "HeldOut.source", "HeldOut.fraction", "HeldOut.seed", "HeldOut.part")
BINDING = re.compile(r"^([\w./]+) = ")


class GinFilesTest(GinTestCase):
    def test_all_files_are_reached(self) -> None:
        reached = {include for file in RUN_FILES for include in all_includes(file)}
        self.assertCountEqual(reached | {*RUN_FILES} | ADDED, FILES)

    @parameterized.parameters(*RUN_FILES)
    def test_every_binding_takes_effect(self, file: str) -> None:
        configuration = self.load(file)
        self.assertEqual(configuration.unused, REPLACED.get(file, []))
        self.assertIsInstance(configuration.task, expected_task(file)[0])
        lines = map(BINDING.match, configuration.operative.splitlines())
        operative = {match[1] for match in lines if match}
        operative |= {name.split("/")[-1] for name in operative}
        if not operative.isdisjoint(DERIVED):
            operative.add("SIZE")
        for part in (*all_includes(file), file):
            own = set(described_bindings(part))
            self.assertNotEmpty(own)
            own -= set(configuration.unused)
            if part == "gin/pretrain_folder.gin":
                own = {name for name in own if name.split("/")[-1] not in READ_BY_RULES}
            self.assertContainsSubset(own, operative, part)

    @parameterized.parameters(
        "gin/reproduce_r50.gin", "gin/reproduce_tiny.gin", "gin/reproduce_tiny_cpu.gin"
    )
    def test_every_stage_loads(self, file: str) -> None:
        task = self.load(file).task
        assert isinstance(task, ReproduceTask)
        names = [name for name, _, _ in task.stages]
        scored = [name for name in names if not name.endswith("_untrained")]
        self.assertEqual(scored, ["pretrain", "knn", "linear", "semi_1pct", "semi_10pct", "export"])
        for name, stage_file, bindings in task.stages:
            own = [text for text in bindings if not text.startswith("DATA=")]
            stage = self.load(stage_file, f"SIZE={task.size}", *own)
            if name.endswith("_untrained"):
                self.assertIn("init_from = None", stage.resolved)
            else:
                self.assertEqual("{pretrained}" in stage.resolved, name != "pretrain")

    @parameterized.parameters(
        ("compare_tiny", ()),
        ("compare_tiny_short", ()),
        ("compare_tiny_images", ()),
        ("compare_tiny_pair", ()),
        ("compare_cifar10", ()),
        ("ablation_tiny", ("RATES", "LARS_RATES", "ADAMW_RATES")),
    )
    def test_every_training_of_a_comparison_loads(self, name: str, rates: tuple[str, ...]) -> None:
        data = self.image_folder(300)
        bindings = [f"DATA='{data}'", "compare.scorings=()"]
        # One of three, which are alike.
        bindings += [f"{macro}=(('pretrain.learning_rate=0.03',),)" for macro in rates]
        config.load([f"gin/results/{name}.gin"], bindings).check(data / "none")

    @parameterized.parameters(("compare_tiny_dense", ("CAMVID",)), ("compare_cifar10", ()))
    def test_every_scoring_of_a_comparison_loads(self, name: str, folders: tuple[str, ...]) -> None:
        data = self.image_folder(3200)  # 1% of the labels are a batch.
        for folder in ("train", "trainannot", "val", "valannot"):
            (data / "camvid" / folder).mkdir(parents=True)
            for number in range(8):
                Image.new("L", (8, 8), number).save(data / "camvid" / folder / f"{number}.png")
        method = "('jigclu', 'gin/results/jigclu_tiny.gin', (), (('pretrain.learning_rate=0.1',),))"
        bindings = [f"DATA='{data}'", f"compare.methods=({method},)"]
        bindings += [f"{macro}='{data}/camvid'" for macro in folders]
        config.load([f"gin/results/{name}.gin"], bindings).check(data / "none")

    @parameterized.parameters(*RUN_FILES)
    def test_files_bind_only_what_differs_from_their_includes(self, file: str) -> None:
        inherited: dict[str, str] = {}
        for part in all_includes(file):
            inherited |= {name: value for name, (value, _) in described_bindings(part).items()}
        own = described_bindings(file)
        same = [name for name, (value, _) in own.items() if inherited.get(name) == value]
        self.assertEmpty(same)

    @parameterized.parameters(*[file for file in FILES if file.startswith("gin/base/")])
    def test_base_values_have_unit_and_source(self, file: str) -> None:
        for name, (value, comment) in described_bindings(file).items():
            # References and macros are explained where their targets are bound.
            if not value.startswith(("@", "%")) and not name.isupper():
                self.assertIsNotNone(comment, name)

    @parameterized.parameters(*RUN_FILES)
    def test_files_open_with_a_description_and_a_command(self, file: str) -> None:
        head = (config.ROOT / file).read_text().split("\n\n")[0]
        self.assertTrue(all(line.startswith("#") for line in head.splitlines()))
        self.assertRegex(head, rf"--gin_file={file}|GIN_FILE={file}|make demo")

    def image_folder(self, images: int) -> Path:
        """Returns a folder with two classes of empty files, of which some are for training."""
        data = Path(self.create_tempdir().full_path)
        for folder, count in (("train/a", images), ("train/b", images), ("val/a", 1), ("val/b", 1)):
            (data / folder).mkdir(parents=True)
            for number in range(count):
                (data / folder / f"{number}.png").touch()
        return data


if __name__ == "__main__":
    absltest.main()
