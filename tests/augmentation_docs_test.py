"""The example of docs/augmentation.md: an augmentation that a gin file imports."""

import re
import sys
from pathlib import Path
from unittest import mock

import torch
from absl.testing import absltest

from jigclu import config
from jigclu.methods.forward import MethodForward
from jigclu.methods.jigsaw import Jigsaw
from jigclu.ops import augment
from jigclu.system.errors import UserError
from jigclu.tasks.pretrain import PretrainTask
from jigclu.training.settings import learning_settings
from tests.samples import noise, tiny_model

PAGE = (Path(__file__).parents[1] / "docs" / "augmentation.md").read_text()
(MODULE,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
(GIN,) = re.findall(r"```gin\n(.*?)```", PAGE, re.DOTALL)
FEW_BINDINGS = ("pretrain.batch_size=4", "jigsaw.patch_size=16", "pretrain.evaluators=()")


class AugmentationDocsTest(absltest.TestCase):
    def setUp(self) -> None:
        super().setUp()
        self.folder = Path(self.create_tempdir().full_path)
        (self.folder / "solarization.py").write_text(MODULE)
        self.file = self.folder / "own.gin"
        self.file.write_text(GIN)
        self.enter_context(mock.patch.object(sys, "path", [str(self.folder), *sys.path]))

    def load(self, *bindings: str) -> config.Configuration:
        return config.load([str(self.file)], [*FEW_BINDINGS, *bindings], allow_imports=True)

    def test_example_is_short(self) -> None:
        self.assertLess(len(MODULE.splitlines()), 40)

    def test_gin_file_binds_an_augmentation_of_its_module(self) -> None:
        configuration = self.load()
        task = configuration.task
        assert isinstance(task, PretrainTask) and isinstance(task.method, Jigsaw)
        solarization = task.method.augmentation
        settings = learning_settings(task)
        self.assertEqual(settings["method.augmentation"], "'Solarization'")
        self.assertEqual(settings["method.augmentation.probability"], "0.2")
        self.assertEqual(settings["method.augmentation.then.hue"], "0.1")
        self.assertIn("Solarization.threshold = 128", configuration.resolved)

        crops = noise(8, 3, 16, 16)
        draws = augment.draw_augmentation(solarization, 0, 0, 8)
        chosen = torch.tensor([True] * 4 + [False] * 4)
        inverted = torch.where(crops >= 128, 255 - crops, crops)
        then = vars(solarization)["then"]
        expected = then(torch.cat([inverted[:4], crops[4:]]), draws[1:])
        actual = torch.compile(solarization, fullgraph=True)(crops, (chosen, *draws[1:]))
        torch.testing.assert_close(actual, expected, atol=1e-3, rtol=0)

    def test_a_step_uses_it_in_micro_batches_and_in_pictures(self) -> None:
        task = self.load("Solarization.probability=1.0").task
        assert isinstance(task, PretrainTask)
        inputs = task.method.step_inputs(noise(4, 4, 3, 16, 16), 0, 0)
        self.assertEqual(task.method.draw(inputs).dtype, torch.uint8)
        forward = MethodForward(task.method, tiny_model(), "float32", True, 2, 1)
        losses, _ = forward(*inputs)
        self.assertTrue(losses.loss.isfinite())

    def test_missing_module_and_missing_method_are_reported_in_one_line(self) -> None:
        self.file.write_text(GIN.replace("import solarization", "import solarisation"))
        with self.assertRaisesRegex(UserError, "solarisation") as caught:
            self.load()
        self.assertNotIn("\n", str(caught.exception))
        self.file.write_text(GIN)
        with self.assertRaisesRegex(UserError, "^jigsaw.augmentation is a reference to sgd"):
            self.load("jigsaw.augmentation=@sgd()")


if __name__ == "__main__":
    absltest.main()
