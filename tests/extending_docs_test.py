"""The examples of docs/extending.md: a gin file imports each of them and trains with it."""

import importlib
import math
import re
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from absl.testing import absltest

from jigclu import config
from jigclu.data.procedural import ProceduralImages
from jigclu.ops import losses
from jigclu.system.errors import UserError
from jigclu.tasks.pretrain import PretrainTask
from tests.small_tasks import TaskTestCase, final

PAGE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text()
# Module name to Python code and gin file.
EXAMPLES = {
    name: (code, gin_file)
    for name, code, gin_file in re.findall(
        r"`(\w+)\.py`:\n\n```python\n(.*?)```\n\n```gin\n(.*?)```", PAGE, re.DOTALL
    )
}
SMALL = (
    "SIZE=64",
    "train_split/ProceduralImages.images=14",
    "pretrain.evaluators=()",
    "pretrain.batch_size=4",
    "pretrain.small_stem=False",
    "schedule.stop_after_steps=2",
    "loading.workers=0",
    "compute.device='cpu'",
    "compute.compile=False",
    "compute.precision='float32'",
)


class ExtendingDocsTest(TaskTestCase):
    def setUp(self) -> None:
        super().setUp()
        for name, (code, gin_file) in EXAMPLES.items():
            (self.folder / f"{name}.py").write_text(code)
            (self.folder / f"{name}.gin").write_text(gin_file)
        self.enter_context(mock.patch.object(sys, "path", [str(self.folder), *sys.path]))

    def load(self, name: str, *bindings: str) -> config.Configuration:
        file = str(self.folder / f"{name}.gin")
        unread = "train_split/ProceduralImages" if name == "numpy_images" else "-"
        small = [text for text in SMALL if not text.startswith(unread)]
        return config.load([file], [*small, *bindings], allow_imports=True)

    def train(self, name: str, *bindings: str) -> dict[str, Any]:
        """Trains for two steps; returns the last checkpoint."""
        workdir = self.folder / "run"
        configuration = self.load(name, *bindings).for_workdir(workdir)
        configuration.check(workdir)
        configuration.run(workdir)
        return final(workdir)

    def test_page_has_four_short_examples(self) -> None:
        self.assertEqual(list(EXAMPLES), ["tiny_net", "decoupled", "numpy_images", "lion"])
        for name, (code, _) in EXAMPLES.items():
            self.assertLess(len(code.splitlines()), 40, name)

    def test_run_with_an_encoder(self) -> None:
        saved = self.train("tiny_net")
        weights = saved["parameters"]["encoder.stages.3.0.weight"]
        self.assertEqual(weights.shape, (256, 128, 3, 3))
        # Synchronized batch normalization, as in other networks of timm.
        self.assertIn("encoder.stages.3.1.running_mean", saved["buffers"])

    def test_run_with_a_method(self) -> None:
        saved = self.train("decoupled")
        self.assertEqual(saved["step"], 2)
        self.assertTrue(all(value.isfinite().all() for value in saved["parameters"].values()))

    def test_decoupled_loss_leaves_out_the_positive_pair(self) -> None:
        task = self.load("decoupled").task
        assert isinstance(task, PretrainTask)
        method: Any = task.method
        random = torch.Generator().manual_seed(0)
        embeddings = torch.nn.functional.normalize(torch.randn(6, 8, generator=random), dim=1)
        similarity = embeddings @ embeddings.t() / method.temperature
        expected = []
        for row in range(6):
            other = row ^ 1
            negatives = [similarity[row, column] for column in range(6) if column // 2 != row // 2]
            expected.append(torch.stack(negatives).logsumexp(0) - similarity[row, other])
        actual = method.losses((embeddings,), ()).loss
        torch.testing.assert_close(actual, torch.stack(expected).mean())
        compiled = torch.compile(method.losses, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled((embeddings,), ()).loss, actual)
        equal = torch.ones(6, 1)
        self.assertAlmostEqual(
            method.losses((equal,), ()).loss.item(), method.chance(3)["loss"], places=5
        )
        corners = torch.tensor([[math.cos(a), math.sin(a)] for a in (0, 2.0944, 4.1888)])
        best = corners.repeat_interleave(2, 0)
        self.assertAlmostEqual(
            method.losses((best,), ()).loss.item(), method.floor(3)["loss"], places=3
        )
        self.assertLess(method.floor(3)["loss"], losses.least_clustering_loss(3, 2, 0.1, 0.1))

    def test_run_with_a_source(self) -> None:
        drawn = ProceduralImages(images=14, size=32, seed=0, split="train")
        pixels = torch.stack([drawn.read(index) for index in range(14)])
        path = self.folder / "images.npy"
        np.save(path, pixels.permute(0, 2, 3, 1).numpy())
        binding = f"NumpyImages.path={str(path)!r}"
        saved = self.train("numpy_images", binding)
        self.assertEqual(saved["step"], 2)
        task = self.load("numpy_images", binding).task
        assert isinstance(task, PretrainTask)
        torch.testing.assert_close(task.source.read(3), pixels[3])
        np.save(path, pixels.numpy())
        with self.assertRaisesRegex(UserError, r"path: .*holds \(14, 3, 32, 32\), not uint8"):
            self.load("numpy_images", binding)

    def test_run_with_an_optimizer(self) -> None:
        saved = self.train("lion")
        self.assertIn("momentum", saved["optimizer"])

    def test_lion_steps_along_the_sign_of_the_momentum(self) -> None:
        lion = importlib.import_module("lion").Lion(beta1=0.9, beta2=0.5, weight_decay=0.1)
        parameter, gradient = torch.tensor([1.0, 2.0]), torch.tensor([10.0, -1.0])
        momentum, rate = torch.tensor([-1.0, 1.0]), torch.tensor(0.1)
        (moved,), moments = lion([parameter], [gradient], {"momentum": [momentum]}, None, rate)
        # Signs of 0.9 * momentum + 0.1 * gradient: 0.1 and 0.8.
        torch.testing.assert_close(moved, parameter - 0.1 * (1 + 0.1 * parameter))
        torch.testing.assert_close(moments["momentum"][0], torch.tensor([4.5, 0.0]))


if __name__ == "__main__":
    absltest.main()
