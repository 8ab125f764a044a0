"""The features task: files for NumPy, in the order of the images, on any number of ranks."""

import csv
import dataclasses
import io
from pathlib import Path

import numpy as np
import torch
from absl.testing import absltest

import jigclu
from jigclu.data.folders import open_folder
from jigclu.models import encoder
from jigclu.system.errors import UserError
from jigclu.tasks import features
from jigclu.tasks.features import FeaturesTask
from jigclu.training.encoder_task import resolve_encoder
from tests.ranks import run_on_ranks
from tests.samples import MemorySource, write_image_tree
from tests.small_tasks import COMPUTE, EVAL_TRANSFORM, LOADING, TaskTestCase, run_task


def run_features(images: str, weights: str, workdir: str) -> None:
    """Runs the task on 7 images, in batches of 2."""
    task = FeaturesTask(
        source=open_folder(images),
        init_from=weights,
        encoder="auto",
        small_stem="auto",
        eval_transform=EVAL_TRANSFORM,
        batch_size=2,
        loading=LOADING,
        compute=COMPUTE,
    )
    run_task(resolve_encoder(task, Path(workdir)), Path(workdir))


class FeaturesTaskTest(TaskTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.images = self.folder / "photos"
        write_image_tree(self.images)
        torch.manual_seed(5)
        self.weights = self.folder / "weights.pth"
        torch.save(encoder.create_encoder("resnet18", True).state_dict(), self.weights)

    def rows(self) -> list[dict[str, str]]:
        return list(csv.DictReader((self.folder / "run" / "images.csv").open()))

    def run_task(self) -> np.ndarray:
        run_features(str(self.images), str(self.weights), str(self.folder / "run"))
        values: np.ndarray = np.load(self.folder / "run" / "features.npy")
        return values

    def test_features_equal_those_of_the_api(self) -> None:
        loaded = jigclu.load_encoder(self.weights)
        loaded.transform = EVAL_TRANSFORM
        expected = jigclu.extract_features(loaded, self.images)
        values = self.run_task()
        self.assertEqual(values.dtype, np.float32)
        torch.testing.assert_close(torch.from_numpy(values), expected.features)
        assert expected.labels is not None
        self.assertEqual([row["path"] for row in self.rows()], expected.paths)
        self.assertEqual([int(row["label"]) for row in self.rows()], expected.labels.tolist())
        folders = [Path(path).parent.name for path in expected.paths]
        self.assertEqual([row["class"] for row in self.rows()], folders)

    def test_two_ranks_write_the_same_files(self) -> None:
        values, rows = self.run_task(), self.rows()
        arguments = (str(self.images), str(self.weights), str(self.folder / "run"))
        run_on_ranks(run_features, 2, *arguments)
        shared = np.load(self.folder / "run" / "features.npy")
        np.testing.assert_allclose(shared, values, rtol=1e-4, atol=1e-5)
        self.assertEqual(self.rows(), rows)

    def test_recorded_preprocessing_is_used_and_reported(self) -> None:
        task = FeaturesTask(
            source=open_folder(str(self.images)),
            init_from=str(self.weights),
            encoder="resnet18",
            small_stem=True,
            eval_transform=None,
            batch_size=4,
            loading=LOADING,
            compute=COMPUTE,
        )
        printed = run_task(task, self.folder / "run")
        self.assertIn("preprocessing: EvalTransform(resize=256, crop=224, ", printed)
        api = jigclu.extract_features(jigclu.load_encoder(self.weights), self.images)
        values = np.load(self.folder / "run" / "features.npy")
        torch.testing.assert_close(torch.from_numpy(values), api.features)
        with self.assertRaisesRegex(UserError, "^init_from is None: bind it"):
            dataclasses.replace(task, init_from=None).check(self.folder)


class WriteArrayTest(absltest.TestCase):
    def test_file_equals_that_of_numpy(self) -> None:
        values = torch.randn(5, 3)
        written, expected = io.BytesIO(), io.BytesIO()
        features.write_array(written, (5, 3), values.split(2))
        np.save(expected, values.numpy())
        self.assertEqual(written.getvalue(), expected.getvalue())


class DescribeImagesTest(absltest.TestCase):
    def test_unlabeled_images_have_only_paths(self) -> None:
        source = MemorySource([torch.zeros(3, 8, 8, dtype=torch.uint8)] * 2)
        self.assertEqual(
            features.describe_images(source), f"path\n{source.name(0)}\n{source.name(1)}\n"
        )

    def test_commas_and_quotes_in_names_are_read_back(self) -> None:
        source = MemorySource([torch.zeros(3, 8, 8, dtype=torch.uint8)], labels=[0])
        source.classes = ['a, "b"']
        (row,) = csv.DictReader(io.StringIO(features.describe_images(source)))
        self.assertEqual(row, {"path": source.name(0), "label": "0", "class": 'a, "b"'})


if __name__ == "__main__":
    absltest.main()
