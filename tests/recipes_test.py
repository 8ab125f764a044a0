"""The Python examples of docs/recipes.md, on features made by their command."""

import contextlib
import io
import os
import re
import runpy
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from absl.testing import absltest
from PIL import Image

from jigclu import config
from jigclu.data.procedural import ProceduralImages
from jigclu.models.encoder import create_encoder
from tests.folder_case import FolderTestCase
from tests.samples import write_image_tree

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "recipes.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


class FeaturesExamplesTest(FolderTestCase):
    def test_examples_find_the_duplicate_that_was_added(self) -> None:
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(self.folder)
        write_image_tree(Path("photos"))
        first = sorted(Path("photos").rglob("*.png"))[0]
        shutil.copy(first, first.with_name("copy.png"))
        torch.manual_seed(0)
        torch.save(create_encoder("resnet18", False).state_dict(), "weights.pth")
        bindings = [
            "DATA='photos'",
            "features.init_from='weights.pth'",
            "loading.workers=0",
            "compute.device='cpu'",
        ]
        workdir = Path("runs/features")
        configuration = config.load(["gin/features.gin"], bindings).for_workdir(workdir)
        configuration.check(workdir)
        with contextlib.redirect_stderr(io.StringIO()):
            configuration.run(workdir)
        values: dict[str, Any] = {}
        with contextlib.redirect_stdout(io.StringIO()):
            for example in EXAMPLES:
                exec(compile(example, "docs/recipes.md", "exec"), values)
        pair = tuple(sorted([str(first), str(first.with_name("copy.png"))]))
        self.assertIn(pair, values["duplicates"])
        self.assertEqual(values["paths"][values["nearest"][0]], pair[1])
        self.assertEqual(values["cluster"].shape, (8,))

    def test_the_picture_of_searches_is_drawn(self) -> None:
        torch.save(create_encoder("resnet18", True).state_dict(), self.folder / "weights.pth")
        script = runpy.run_path(str(DOCS / "search.py"))
        few = ProceduralImages(images=20, size=32, seed=0, split="val")
        printed = io.StringIO()
        with (
            mock.patch.dict(script["main"].__globals__, ProceduralImages=lambda **settings: few),
            contextlib.redirect_stdout(printed),
        ):
            script["main"](str(self.folder / "weights.pth"), str(self.folder / "search.png"))
        with Image.open(self.folder / "search.png") as picture:
            sizes = picture.size, Image.open(DOCS / "search.png").size
        self.assertEqual(*sizes)
        self.assertRegex(printed.getvalue(), r"^\d+ of 35 neighbors are of the class")


if __name__ == "__main__":
    absltest.main()
