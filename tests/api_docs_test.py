"""The examples and names of docs/api.md."""

import contextlib
import importlib
import io
import os
import re
from pathlib import Path
from typing import Any

import torch
from absl.testing import absltest

from jigclu.models.encoder import create_encoder
from tests.samples import write_image_tree

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "api.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
NAMES = re.findall(r"^\| `(jigclu[\w.]+)` \| ([^|]+) \|", PAGE, re.MULTILINE)


class ApiDocsTest(absltest.TestCase):
    def test_examples_run_one_after_another(self) -> None:
        folder = Path(self.create_tempdir().full_path)
        write_image_tree(folder / "photos")
        values: dict[str, Any] = {"__name__": "__main__"}
        printed = io.StringIO()
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(folder)
        with contextlib.redirect_stdout(printed):
            for example in EXAMPLES:
                exec(compile(example, "docs/api.md", "exec"), values)
        self.assertIn("runs/small/checkpoints/step_00000008.pt\n", printed.getvalue())
        self.assertIn("torch.Size([7, 512])\nphotos/cat/0.png\n", printed.getvalue())
        self.assertEqual(values["inputs"].shape, (1, 3, 96, 96))
        self.assertEqual(values["similarity"].shape, (7, 7))
        self.assertTrue((folder / "encoder.pth").exists())
        gradient = values["encoder"].encoder.get_parameter("conv1.weight").grad
        self.assertGreater(gradient.norm(), 0)
        self.assertTrue(torch.isfinite(values["loss"]))

    def test_example_of_the_quick_start(self) -> None:
        (example,) = re.findall(
            r"```python\n(.*?)```", (DOCS / "quickstart.md").read_text(), re.DOTALL
        )
        folder = Path(self.create_tempdir().full_path)
        write_image_tree(folder / "photos")
        torch.save(create_encoder("resnet18", False).state_dict(), folder / "weights.pth")
        example = example.replace("runs/photos", str(folder / "weights.pth"))
        values: dict[str, Any] = {}
        exec(example.replace("/data/photos", str(folder / "photos")), values)
        self.assertEqual(values["found"].features.shape, (7, 512))

    def test_every_name_exists_and_has_a_docstring(self) -> None:
        self.assertGreater(len(NAMES), 10)
        for module, names in NAMES:
            for name in re.findall(r"`(\w+)`", names):
                value = getattr(importlib.import_module(module), name)
                self.assertNotEmpty(value.__doc__, f"{module}.{name}")
                self.assertEqual(value.__module__, module, f"{name} is defined elsewhere")


if __name__ == "__main__":
    absltest.main()
