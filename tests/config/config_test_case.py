"""A test case that loads gin files and bindings, and catches the error message of mistakes."""

import logging

from PIL import Image

from jigclu import config
from jigclu.system.errors import UserError
from jigclu.tasks.pretrain import PretrainTask
from tests.folder_case import FolderTestCase

DEMO = "gin/demo.gin"
LARS = ("pretrain.optimizer=@lars()", "lars.momentum=0.9", "lars.weight_decay=0.0")


class ConfigTestCase(FolderTestCase):
    """Tests that load gin/demo.gin, or files of their own in a temporary folder."""

    def file(self, text: str | bytes, name: str = "run.gin") -> str:
        """Writes a gin file; returns its path."""
        path = self.folder / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    def linear_file(self) -> str:
        """Writes a linear evaluation of four small images; returns its path."""
        for folder in ("train/a", "train/b", "val/a", "val/b"):
            (self.folder / folder).mkdir(parents=True)
            Image.new("RGB", (64, 64)).save(self.folder / folder / f"{folder[:3]}.png")
        return self.file(
            "include 'gin/linear_r18_tinyimagenet.gin'\n"
            f"ImageFolder.root = '{self.folder}'\n"
            "linear.init_from = None\n"
            "linear.encoder = 'resnet18'\n"
            "linear.small_stem = True\n"
            "linear.learning_rates = (1.0,)\n"
            "linear.batch_size = 2\n"
        )

    def load(self, *bindings: str) -> PretrainTask:
        """Returns the task of the demo with bindings over it."""
        task = config.load([DEMO], bindings).task
        assert isinstance(task, PretrainTask)
        return task

    def rejected(self, *bindings: str, files: tuple[str, ...] = (DEMO,)) -> str:
        """Returns the line that reports a mistake while loading; nothing else is logged."""
        with self.assertRaises(UserError) as caught, self.assertNoLogs(level=logging.DEBUG):
            config.load(files, bindings)
        return self.one_line(caught.exception)

    def rejected_by_check(self, *bindings: str, files: tuple[str, ...] = (DEMO,)) -> str:
        """Returns the line that reports a mistake which only checking the task can find."""
        configuration = config.load(files, bindings)
        with self.assertRaises(UserError) as caught:
            configuration.check(self.folder / "run")
        self.assertFalse((self.folder / "run").exists())
        return self.one_line(caught.exception)

    def one_line(self, error: UserError) -> str:
        """Returns the message of an error, which must be a single line."""
        self.assertLen(str(error).splitlines(), 1)
        return str(error)
