"""Tasks whose encoder is that of their weights."""

import os
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from absl.testing import absltest, parameterized

from jigclu.models.encoder import create_encoder
from jigclu.system.errors import UserError
from jigclu.training import initial_weights
from jigclu.training.encoder_task import EncoderTask, resolve_encoder, without_weights
from jigclu.training.settings import with_settings
from tests.folder_case import FolderTestCase
from tests.small_tasks import PRETRAINING, TaskTestCase, final, run_task

AUTO: dict[str, Any] = {"encoder": "auto", "small_stem": "auto"}


class ResolveTest(FolderTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.path = str(self.folder / "weights.pth")
        torch.save(create_encoder("resnet18", True).state_dict(), self.path)

    def resolved(self, **settings: Any) -> tuple[Any, ...]:
        task = EncoderTask(**(AUTO | {"init_from": self.path} | settings))
        resolved = resolve_encoder(task, self.folder)
        resolved.check_encoder()
        return resolved.encoder, resolved.small_stem

    def test_auto_is_the_encoder_of_the_weights(self) -> None:
        self.assertEqual(self.resolved(), ("resnet18", True))
        self.assertEqual(self.resolved(encoder="resnet18"), ("resnet18", True))
        self.assertEqual(self.resolved(small_stem=True), ("resnet18", True))

    @parameterized.parameters(
        ({"encoder": "resnet50"}, "weights.pth holds another encoder, encoder = 'resnet18'"),
        ({"small_stem": False}, "encoder = 'resnet18' and small_stem = True: bind these"),
        ({"encoder": "resnet19"}, "^encoder 'resnet19' is unknown; did you mean"),
        ({"encoder": "timm/resnet19"}, "^encoder 'timm/resnet19' "),
        ({"init_from": None}, "encoder is 'auto', but there are no weights .* bind init_from"),
        ({"init_from": None, "encoder": "resnet18"}, "small_stem is 'auto', .* such as False"),
        ({"init_from": "none.pth"}, "init_from: checkpoint none.pth does not exist"),
    )
    def test_rejects(self, settings: dict[str, Any], message: str) -> None:
        with self.assertRaisesRegex(UserError, message):
            self.resolved(**settings)

    def test_explicit_settings_read_no_weights(self) -> None:
        task = EncoderTask(encoder="resnet18", small_stem=True, init_from="none.pth")
        self.assertIs(resolve_encoder(task, self.folder), task)

    def test_release_is_known_and_checked_without_a_download(self) -> None:
        home = {"TORCH_HOME": str(self.folder / "torch")}
        with mock.patch.dict(os.environ, home), mock.patch.object(initial_weights, "download"):
            self.assertEqual(self.resolved(init_from="jigclu_200e"), ("resnet50", False))
            with self.assertRaisesRegex(UserError, "jigclu_200e holds encoder = 'resnet50' and"):
                self.resolved(init_from="jigclu_200e", encoder="resnet18")
            initial_weights.download.assert_not_called()  # type: ignore[attr-defined]
        self.assertFalse((self.folder / "torch").exists())

    def test_task_without_weights_has_the_encoder_of_another_in_place_of_auto(self) -> None:
        like = EncoderTask(encoder="resnet34", small_stem=True, init_from=None)
        for settings, expected in ((AUTO, ("resnet34", True)), ({"encoder": "resnet18"}, None)):
            task = EncoderTask(**(AUTO | {"init_from": self.path} | settings))
            found = without_weights(task, like)
            self.assertEqual((found.encoder, found.small_stem), expected or ("resnet18", True))
            self.assertIsNone(found.init_from)


class RunTest(TaskTestCase):
    def test_run_resumes_with_the_encoder_of_its_checkpoint_when_the_weights_are_gone(self) -> None:
        weights = self.folder / "weights.pth"
        torch.save(create_encoder("resnet18", True).state_dict(), weights)
        workdir = self.folder / "run"

        def run(stop: int) -> None:
            task = with_settings(PRETRAINING, **AUTO, init_from=str(weights), stop_after_steps=stop)
            run_task(resolve_encoder(task, workdir), workdir)

        run(2)
        weights.unlink()
        run(3)
        contents = final(workdir)
        self.assertEqual(contents["step"], 3)
        # Recorded as if the user had bound them.
        self.assertEqual(contents["settings"]["encoder"], "'resnet18'")
        self.assertEqual(contents["settings"]["small_stem"], "True")

    def test_resolving_reads_no_image_names_again(self) -> None:
        path = self.folder / "weights.pth"
        torch.save(create_encoder("resnet18", True).state_dict(), path)
        task = with_settings(PRETRAINING, **AUTO, init_from=str(path))
        with mock.patch.object(type(task), "__post_init__", side_effect=self.fail):
            resolved = resolve_encoder(task, Path("none"))
        self.assertIs(resolved.source, task.source)
        self.assertEqual((task.encoder, task.small_stem), ("auto", "auto"))


if __name__ == "__main__":
    absltest.main()
