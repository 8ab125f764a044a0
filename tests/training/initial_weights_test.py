"""Initial weights from files, runs, exports and the published release."""

import os
from pathlib import Path
from unittest import mock

import safetensors.torch
import torch
from absl.testing import absltest
from torch import Tensor

from jigclu.models.encoder import create_encoder, encoder_tensors
from jigclu.models.weights import AVERAGED, Architecture
from jigclu.system.errors import UserError
from jigclu.training import checkpoint, initial_weights
from jigclu.training.initial_weights import RELEASES, Place
from tests import samples
from tests.folder_case import FolderTestCase

SMALL = Architecture("resnet18", True)
URL = "https://github.com/Jia-Research-Lab/JigsawClustering/releases/download/1.0/JigClu_200e.pth"


def filled(value: float) -> dict[str, Tensor]:
    """Returns a ResNet-18 with a small stem, whose tensors have one value."""
    state = create_encoder(*SMALL).state_dict()
    return {name: torch.full_like(tensor, value) for name, tensor in state.items()}


class FindTest(FolderTestCase):
    def value(self, init_from: Path | str) -> float:
        weights = initial_weights.read(str(init_from))
        self.assertEqual(weights.architecture, SMALL)
        self.assertEqual(initial_weights.architecture(str(init_from)), SMALL)
        return weights.tensors["encoder.conv1.weight"][0, 0, 0, 0].item()

    def rejected(self, init_from: Path | str) -> str:
        with self.assertRaises(UserError) as caught:
            initial_weights.read(str(init_from))
        self.assertNotIn("\n", str(caught.exception))
        return str(caught.exception)

    def test_workdir_gives_its_last_checkpoint(self) -> None:
        for step in (9, 10):
            parameters = {f"encoder.{key}": value for key, value in filled(step).items()}
            checkpoint.save(self.folder, {"parameters": parameters}, step, 2, keep_every=0)
        self.assertEqual(self.value(self.folder), 10)
        self.assertEqual(self.value(self.folder / "checkpoints" / "step_00000009.pt"), 9)

    def test_export_gives_its_file_that_records_the_preprocessing(self) -> None:
        torch.save(filled(1), self.folder / "resnet18.timm.pth")
        self.assertEqual(self.value(self.folder), 1)
        torch.save(filled(2), self.folder / "resnet18.torchvision.pth")
        self.assertEqual(self.value(self.folder), 2)
        safetensors.torch.save_file(filled(3), self.folder / "resnet18.safetensors")
        self.assertEqual(self.value(self.folder), 3)

    def test_folders_without_weights_and_with_several_exports_are_rejected(self) -> None:
        (self.folder / "resnet18.onnx").touch()
        message = self.rejected(self.folder)
        self.assertStartsWith(message, f"{self.folder} has neither checkpoints/step_<number>.pt")
        for name in ("resnet50", "resnet18"):
            (self.folder / f"{name}.safetensors").touch()
        self.assertRegex(
            self.rejected(self.folder), r"choose \S+resnet18\.safetensors or \S+resnet50\.safe"
        )

    def test_name_after_a_colon_chooses_one_of_several_encoders(self) -> None:
        path = self.folder / "last.pth"
        torch.save({"model": filled(1), "model_ema": filled(2)}, path)
        self.assertIn(f"'{path}:model', '{path}:model_ema'", self.rejected(path))
        self.assertEqual(self.value(f"{path}:model_ema"), 2)
        self.assertEqual(self.value(f"{path}:model"), 1)

    def test_average_is_loaded_by_default_and_reported(self) -> None:
        path = self.folder / "run.pt"
        trained = {f"encoder.{name}": value for name, value in filled(1).items()}
        averaged = {f"{AVERAGED}.{name}": value for name, value in filled(2).items()}
        torch.save({"parameters": trained, "buffers": averaged}, path)
        model = encoder_tensors(create_encoder(*SMALL))
        for init_from, value, origin in (
            (str(path), 2, ", averaged over training steps"),
            (f"{path}:encoder", 1, ""),
        ):
            message = initial_weights.load_into(init_from, model)
            self.assertStartsWith(message, f"initial weights of {path}, {SMALL}{origin}: loaded ")
            self.assertEqual(model["encoder.bn1.running_var"][0].item(), value)

    def test_colons_are_allowed_in_paths(self) -> None:
        path = self.folder / "12:30:05.pth"
        torch.save(filled(4), path)
        self.assertEqual(self.value(path), 4)
        self.assertEqual(self.value(f"{path}:"), 4)
        self.assertIn("12:31.pth does not exist", self.rejected(self.folder / "12:31.pth"))

    def test_weights_that_are_not_finite_are_rejected(self) -> None:
        path = self.folder / "diverged.pt"
        torch.save(filled(1) | {"bn1.running_var": torch.full((64,), torch.inf)}, path)
        with self.assertRaisesRegex(
            UserError, f"^{path} has weights that are not finite in encoder.bn1.running_var: its "
        ):
            initial_weights.load_into(str(path), encoder_tensors(create_encoder(*SMALL)))


class ReleaseTest(FolderTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.enter_context(mock.patch.dict(os.environ, {"TORCH_HOME": str(self.folder)}))
        self.path = self.folder / "hub" / "checkpoints" / "JigClu_200e.pth"

    def test_release_is_downloaded_to_the_cache_of_torch_when_it_is_read(self) -> None:
        def download(url: str, path: Path) -> None:
            self.assertEqual(url, URL)
            path.parent.mkdir(parents=True)
            torch.save(samples.published_checkpoint("resnet50", 2048), path)

        with mock.patch.object(initial_weights, "download", side_effect=download) as downloaded:
            place = initial_weights.find("jigclu_200e")
            self.assertEqual(place, Place(self.path, release=RELEASES["jigclu_200e"]))
            self.assertEqual(initial_weights.architecture("jigclu_200e"), ("resnet50", False))
            downloaded.assert_not_called()
            self.assertEmpty(os.listdir(self.folder))

            model = encoder_tensors(create_encoder("resnet50", False))
            message = initial_weights.load_into("jigclu_200e", model)
            downloaded.assert_called_once()
            held = "encoder = 'resnet50' and small_stem = False: loaded 265 tensors"
            self.assertStartsWith(message, f"initial weights of {self.path}, {held}")
            self.assertNotIn("fc_clu", message)
            initial_weights.read("jigclu_200e")
            downloaded.assert_called_once()
            self.assertEqual(initial_weights.find("jigclu_200e"), Place(self.path))

    def test_without_a_network_the_message_has_the_url_and_the_place_of_the_file(self) -> None:
        with (
            mock.patch("urllib.request.urlopen", side_effect=OSError("no route to host")),
            self.assertRaisesRegex(
                UserError, f"{URL} cannot .*no route.* as {self.path}"
            ) as raised,
        ):
            initial_weights.read("jigclu_200e")
        self.assertNotIn("\n", str(raised.exception))

    def test_a_file_of_that_name_is_read_instead(self) -> None:
        before = Path.cwd()
        self.addCleanup(os.chdir, before)
        os.chdir(self.folder)
        torch.save(filled(1), "jigclu_200e")
        self.assertEqual(initial_weights.read("jigclu_200e").architecture, SMALL)


if __name__ == "__main__":
    absltest.main()
