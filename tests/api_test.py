"""The Python API against torchvision's own ResNet, PIL, and the command's configuration."""

import copy
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torchvision
from absl.testing import absltest, parameterized
from PIL import Image
from torch import Tensor, nn

import jigclu
from jigclu import config
from jigclu.data.folders import UnlabeledImages
from jigclu.models.encoder import create_encoder
from jigclu.training import checkpoint, initial_weights
from tests import samples
from tests.launch_test import SMALL
from tests.ranks import run_on_ranks

SLOW_LIBRARIES = ("torchvision", "tensorboard", "gin", "absl", "PIL")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
TRANSFORM = samples.eval_transform(resize=40, crop=32)


def torchvision_resnet() -> torchvision.models.ResNet:
    """Returns a ResNet-18 in eval mode without classifier; its statistics are not the initial."""
    torch.manual_seed(0)
    resnet = torchvision.models.resnet18()
    for module in resnet.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    resnet.fc = nn.Identity()
    return resnet.eval()


def recorded(*bindings: str) -> dict[str, str]:
    """Returns the part of a checkpoint that records its configuration."""
    return {"config": "\n".join(bindings)}


def features_on_rank(weights: Path, folder: Path) -> dict[str, Any]:
    encoder = jigclu.load_encoder(weights)
    encoder.transform = TRANSFORM
    return jigclu.extract_features(encoder, folder, batch_size=2)._asdict()


class ApiTestCase(parameterized.TestCase):
    resnet: torchvision.models.ResNet

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls.resnet = torchvision_resnet()

    def setUp(self) -> None:
        super().setUp()
        self.folder = Path(self.create_tempdir().full_path)
        self.path = self.folder / "weights.pth"

    def rejected(self, function: Any, *arguments: Any, **options: Any) -> str:
        """Returns the one line with which a call fails."""
        with self.assertRaises(jigclu.UserError) as caught:
            function(*arguments, **options)
        message = str(caught.exception)
        self.assertNotIn("\n", message)
        return message


class ImportTest(absltest.TestCase):
    def loaded(self, program: str, libraries: tuple[str, ...]) -> list[str]:
        """Returns which of the libraries a fresh process has loaded after a program."""
        report = f"import sys; print(*[name for name in {libraries} if name in sys.modules])"
        command = [sys.executable, "-c", f"{program}\n{report}"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()

    def test_importing_the_package_loads_no_library(self) -> None:
        self.assertEmpty(self.loaded("import jigclu", ("torch", "numpy", *SLOW_LIBRARIES)))

    def test_names_need_torch_but_not_the_slow_libraries_until_they_are_called(self) -> None:
        program = "import jigclu\nfor name in jigclu.__all__: getattr(jigclu, name)"
        self.assertEqual(self.loaded(program, ("torch", *SLOW_LIBRARIES)), ["torch"])

    def test_names_are_listed_and_documented(self) -> None:
        for name in {*jigclu.__all__} - {"__version__"}:
            self.assertIn(name, dir(jigclu))
            self.assertNotEmpty(getattr(jigclu, name).__doc__)

    def test_unknown_names_are_attribute_errors(self) -> None:
        with self.assertRaisesRegex(AttributeError, "'jigclu' has no attribute 'load_encode'"):
            jigclu.load_encode  # type: ignore[attr-defined]  # noqa: B018


class LoadEncoderTest(ApiTestCase):
    def save(self, contents: Mapping[str, Any]) -> Path:
        torch.save(dict(contents), self.path)
        return self.path

    def test_features_equal_those_of_torchvision(self) -> None:
        encoder = jigclu.load_encoder(self.save(self.resnet.state_dict()))
        images = torch.randn(4, 3, 64, 48)
        with torch.no_grad():
            features, expected = encoder(images), self.resnet(images)
        self.assertEqual((features.dtype, features.shape), (torch.float32, (4, 512)))
        torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
        self.assertGreater(expected.std(), 0.01)

    def test_encoder_is_in_eval_mode_and_trainable(self) -> None:
        encoder = jigclu.load_encoder(str(self.save(self.resnet.state_dict())))
        self.assertIsInstance(encoder, nn.Module)
        self.assertFalse(any(module.training for module in encoder.modules()))
        self.assertTrue(all(values.requires_grad for values in encoder.parameters()))
        self.assertEqual(encoder.channels, 512)

    @parameterized.parameters(("resnet18", True, 512), ("resnext50_32x4d", False, 2048))
    def test_weights_tell_the_encoder(self, name: str, small_stem: bool, channels: int) -> None:
        model = create_encoder(name, small_stem)
        contents = {f"encoder.{key}": value for key, value in model.state_dict().items()}
        encoder = jigclu.load_encoder(self.save({"parameters": contents}))
        self.assertEqual(encoder.channels, channels)
        self.assertEqual(str(encoder.encoder), str(model.eval()))

    def test_reads_every_format_of_initial_weights(self) -> None:
        published = samples.published_checkpoint("resnet18", 512)
        paths = [self.save(published), self.folder / "moco.pth", self.folder / "e.safetensors"]
        state = {
            key.removeprefix("module.encoder."): value
            for key, value in published["state_dict"].items()
            if key.startswith("module.encoder.")
        }
        moco = {f"module.encoder_q.{key}": value.half() for key, value in state.items()}
        torch.save({"state_dict": moco}, paths[1])
        safetensors.torch.save_file(state, paths[2])
        for path in paths:
            weights = jigclu.load_encoder(path).encoder.state_dict()
            for name, value in weights.items():
                self.assertEqual(value.dtype, torch.float32)
                torch.testing.assert_close(value, state[name], rtol=1e-3, atol=1e-3)
            self.assertLen(weights, 20 * 5)

    def test_saved_encoders_load_again(self) -> None:
        encoder = jigclu.load_encoder(self.save(self.resnet.state_dict()))
        again = jigclu.load_encoder(self.save(encoder.state_dict()))
        for name, value in encoder.state_dict().items():
            self.assertTrue(torch.equal(again.state_dict()[name], value))

    def test_workdir_gives_its_latest_checkpoint(self) -> None:
        for step in (9, 10):
            tensors = {f"encoder.{key}": value for key, value in self.resnet.state_dict().items()}
            tensors["encoder.bn1.weight"] = torch.full((64,), float(step))
            contents = {"parameters": tensors, "config": "eval_transform.crop = 100"}
            path = checkpoint.save(self.folder, contents, step, keep_last=2, keep_every=0)
        ours, expected = jigclu.load_encoder(self.folder), jigclu.load_encoder(path)
        self.assertEqual(ours.encoder.state_dict()["bn1.weight"][0], 10)
        self.assertEqual(list(ours.state_dict()), list(expected.state_dict()))
        self.assertEqual(ours.transform, expected.transform)
        self.assertEqual(ours.transform.crop, 100)

    def test_draws_no_random_numbers(self) -> None:
        path, before = self.save(self.resnet.state_dict()), torch.get_rng_state()
        jigclu.load_encoder(path)
        self.assertTrue(torch.equal(torch.get_rng_state(), before))

    @parameterized.named_parameters(
        ("of_other_projects", {"epoch": 3}, 256, 224, IMAGENET_MEAN),
        ("config_of_another_project", {"config": {"crop": 3}}, 256, 224, IMAGENET_MEAN),
        (
            "with_an_evaluator",
            recorded(
                "augmentation.mean = (0.1, 0.2, 0.3)",
                "eval_transform.crop = 96",
                "eval_transform.mean = (0.5, 0.4, 0.3)",
                "eval_transform.resize = 128",
                "jigsaw.grid = 2",
                "jigsaw.patch_size = 32",
                "other/eval_transform.crop = 12",
            ),
            *(128, 96, (0.5, 0.4, 0.3)),
        ),
        (
            "of_jigsaw_without_evaluator",
            recorded(
                "augmentation.mean = (0.1, 0.2, 0.3)", "jigsaw.grid = 2", "jigsaw.patch_size = 112"
            ),
            *(256, 224, (0.1, 0.2, 0.3)),
        ),
        (
            "of_simclr_without_evaluator",
            recorded("simclr.crop_scale = (0.2, 1.0)", "simclr.view_size = 96"),
            *(110, 96, IMAGENET_MEAN),
        ),
        (
            "of_version_0_2",
            recorded("knn.crop = 64", "knn.resize = 64", "train.grid = 2", "train.patch_size = 16"),
            *(64, 64, IMAGENET_MEAN),
        ),
    )
    def test_transform(
        self, extra: Mapping[str, Any], resize: int, crop: int, mean: tuple[float, ...]
    ) -> None:
        contents = {"state_dict": self.resnet.state_dict(), **extra}
        transform = jigclu.load_encoder(self.save(contents)).transform
        self.assertEqual((transform.resize, transform.crop), (resize, crop))
        self.assertEqual(transform.mean, mean)
        self.assertEqual(transform.std, (0.229, 0.224, 0.225))

    def test_rejects_what_holds_no_encoder(self) -> None:
        load, state = jigclu.load_encoder, self.resnet.state_dict()
        self.assertIn("does not exist", self.rejected(load, self.folder / "none.pth"))
        message = self.rejected(load, self.folder)
        self.assertStartsWith(message, f"{self.folder} has neither checkpoints/step_<number>.pt, ")
        del state["layer3.0.conv1.weight"]
        message = self.rejected(load, self.save(state))
        self.assertStartsWith(message, f"{self.path} holds no complete encoder: ")
        self.assertIn("resnet18", message)
        self.assertIn("found epoch", self.rejected(load, self.save({"epoch": 3})))
        self.path.write_bytes(b"not a file of torch")
        self.assertIn("cannot be read", self.rejected(load, self.path))


class ExtractFeaturesTest(ApiTestCase):
    def setUp(self) -> None:
        super().setUp()
        torch.save(self.resnet.state_dict(), self.path)
        self.encoder = jigclu.load_encoder(self.path)
        self.encoder.transform = TRANSFORM
        self.images = self.folder / "images"
        samples.write_image_tree(self.images)
        self.expected_paths = [
            *(str(self.images / "cat" / f"{number}.png") for number in (0, 2, 4, 6)),
            *(str(self.images / "dog" / f"{number}.png") for number in (1, 3, 5)),
        ]

    def expected(self, paths: list[str]) -> Tensor:
        """Returns torchvision's features of images that PIL opens."""
        inputs = torch.stack([TRANSFORM(Image.open(path)) for path in paths])
        with torch.no_grad():
            features: Tensor = self.resnet(inputs)
        return features

    def assert_features(self, actual: Tensor, expected: Tensor) -> None:
        self.assertEqual((actual.dtype, actual.device.type), (torch.float32, "cpu"))
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)

    @parameterized.parameters((64, 0), (3, 0), (2, 1))
    def test_features_paths_and_labels_of_class_folders(
        self, batch_size: int, workers: int
    ) -> None:
        features, paths, labels = jigclu.extract_features(
            self.encoder, self.images, batch_size=batch_size, workers=workers
        )
        self.assertEqual(paths, self.expected_paths)
        assert labels is not None
        self.assertEqual((labels.dtype, labels.tolist()), (torch.int64, [0, 0, 0, 0, 1, 1, 1]))
        self.assert_features(features, self.expected(paths))
        # The images differ, so that another order would fail.
        self.assertGreater(torch.pdist(features).min(), 0.01)

    def test_folder_without_classes_is_unlabeled(self) -> None:
        found = jigclu.extract_features(self.encoder, str(self.images / "dog"))
        self.assertEqual(found.paths, self.expected_paths[4:])
        self.assertIsNone(found.labels)
        self.assert_features(found.features, self.expected(found.paths))

    def test_reads_any_source(self) -> None:
        pixels = [samples.noise(3, 50, 40), samples.noise(3, 32, 60)]
        source = samples.MemorySource([*pixels], labels=[7, 3])
        found = jigclu.extract_features(self.encoder, source)
        self.assertEqual(found.paths, ["memory 0", "memory 1"])
        assert found.labels is not None
        self.assertEqual(found.labels.tolist(), [7, 3])
        with torch.no_grad():
            expected = self.resnet(torch.stack([TRANSFORM(image) for image in pixels]))
        self.assert_features(found.features, expected)
        unlabeled = jigclu.extract_features(self.encoder, UnlabeledImages(str(self.images)))
        self.assertIsNone(unlabeled.labels)

    def test_encoder_and_its_mode_stay_as_they_were(self) -> None:
        before = copy.deepcopy(self.encoder.train().state_dict())
        found = jigclu.extract_features(self.encoder, self.images)
        self.assertTrue(all(module.training for module in self.encoder.modules()))
        for name, value in self.encoder.state_dict().items():
            self.assertTrue(torch.equal(value, before[name]), name)
        self.assert_features(found.features, self.expected(found.paths))

    def test_lower_precision_rounds(self) -> None:
        exact = jigclu.extract_features(self.encoder, self.images).features
        rounded = jigclu.extract_features(self.encoder, self.images, precision="bfloat16").features
        self.assertEqual(rounded.dtype, torch.float32)
        self.assertFalse(torch.equal(rounded, exact))
        self.assertLess((rounded - exact).norm() / exact.norm(), 0.05)

    def test_all_ranks_get_the_features_of_all_images(self) -> None:
        expected = jigclu.extract_features(self.encoder, self.images)
        for result in run_on_ranks(features_on_rank, 2, self.path, self.images):
            found = jigclu.Features(**result)
            self.assert_features(found.features, expected.features)
            self.assertEqual(found.paths, expected.paths)
            assert found.labels is not None and expected.labels is not None
            self.assertEqual(found.labels.tolist(), expected.labels.tolist())

    @parameterized.parameters(0, 1)
    def test_an_unreadable_image_is_an_error(self, workers: int) -> None:
        broken = self.images / "cat" / "4.png"
        broken.write_bytes(b"no image")
        message = self.rejected(jigclu.extract_features, self.encoder, self.images, workers=workers)
        self.assertStartsWith(message, f"image {broken} is unreadable")

    def test_rejects_invalid_arguments(self) -> None:
        def rejected(encoder: Any = self.encoder, images: Any = self.images, **options: Any) -> str:
            return self.rejected(jigclu.extract_features, encoder, images, **options)

        self.assertIn("encoder is 'ResNet'; it must be a result of", rejected(self.resnet))
        self.assertIn("batch_size is 0; it must be 1 or more", rejected(batch_size=0))
        self.assertIn("workers is -1", rejected(workers=-1))
        self.assertIn("precision is 'half'; it must be one of float32,", rejected(precision="half"))
        self.assertIn("images is 'list'; it must be a folder", rejected(images=["a.png"]))
        self.assertIn("nowhere is not a folder", rejected(images=self.folder / "nowhere"))
        empty = self.create_tempdir().full_path
        self.assertIn(f"{empty} contains no images", rejected(images=empty))
        self.encoder.transform = nn.Identity()  # type: ignore[assignment]
        self.assertIn("encoder.transform is 'Identity'; it must be an EvalTransform", rejected())

    def test_features_that_are_not_finite_are_an_error(self) -> None:
        with torch.no_grad():
            self.encoder.encoder.get_parameter("bn1.weight")[0] = torch.nan
        message = self.rejected(jigclu.extract_features, self.encoder, self.images)
        self.assertIn("not finite", message)


class PretrainTest(ApiTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.gin_file = self.folder / "small.gin"
        self.gin_file.write_text(SMALL)
        self.workdir = self.folder / "run"

    def test_returns_scores_and_checkpoint_and_resumes(self) -> None:
        def pretrain(*bindings: str) -> Any:
            return jigclu.pretrain([self.gin_file], bindings, self.workdir)

        first = pretrain("schedule.stop_after_steps = 2")
        self.assertEqual(first.checkpoint, self.workdir / "checkpoints" / "step_00000002.pt")
        self.assertTrue(first.checkpoint.exists())
        result = pretrain()
        self.assertEqual(result.checkpoint, self.workdir / "checkpoints" / "step_00000003.pt")
        contents = checkpoint.load(result.checkpoint, "cpu")
        self.assertEqual([step for step, _ in contents["scores"]], [0, 2, 3])
        self.assertEqual(result.scores, contents["scores"][-1][1])
        self.assertBetween(result.scores["knn_accuracy"], 0, 1)
        self.assertEqual(pretrain(), result)

        written = config.load([str(self.workdir / "config.gin")], [])
        self.assertEqual(written.resolved, contents["config"])
        self.assertTrue((self.workdir / "operative_config.gin").exists())

        encoder = jigclu.load_encoder(self.workdir)
        weights = initial_weights.read(str(result.checkpoint)).tensors
        for name, value in encoder.state_dict().items():
            self.assertTrue(torch.equal(value, weights[f"encoder.{name.removeprefix('encoder.')}"]))
        self.assertEqual((encoder.transform.resize, encoder.transform.crop), (32, 32))

    def test_rejects_invalid_configurations_before_writing(self) -> None:
        def rejected(gin_files: Any, bindings: Any = ()) -> str:
            return self.rejected(jigclu.pretrain, gin_files, bindings, self.workdir)

        files = [self.gin_file]
        self.assertIn("gin_files is 'demo.gin'; it must be a list", rejected("demo.gin"))
        self.assertIn("gin_files is []; it must be a list of files", rejected([]))
        self.assertIn("bindings is 'a=1'; it must be a list", rejected(files, "a=1"))
        self.assertIn("did you mean gin/demo.gin?", rejected(["dmeo.gin"]))
        self.assertIn("jigsaw.grid is 1", rejected(files, ["jigsaw.grid = 1"]))
        self.assertIn("pretrain.encoder", rejected(files, ["pretrain.encoder = 3"]))
        self.assertFalse(self.workdir.exists())

    def test_rejects_other_tasks(self) -> None:
        samples.write_image_tree(self.folder / "data")
        torch.save(self.resnet.state_dict(), self.path)
        message = self.rejected(
            jigclu.pretrain,
            ["gin/export.gin"],
            [
                f"UnlabeledImages.root = '{self.folder}/data'",
                f"export.init_from = '{self.path}'",
                "export.encoder = 'resnet18'",
            ],
            self.workdir,
        )
        self.assertIn("gin_files is ['gin/export.gin'], which configure ExportTask", message)
        self.assertFalse(self.workdir.exists())


if __name__ == "__main__":
    absltest.main()
