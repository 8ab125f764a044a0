"""Tests of jigclu.data.loader."""

import functools
import os
import subprocess
import sys
import time

import numpy as np
import torch
from absl.testing import absltest
from PIL import Image

from jigclu.data import crops, folders, images, loader, sampler
from jigclu.ops.crops import jigsaw_crops
from jigclu.system.errors import UserError
from tests.samples import eval_transform


class LoaderTest(absltest.TestCase):
    def setUp(self) -> None:
        super().setUp()
        self.root = self.create_tempdir().full_path
        random = np.random.default_rng(0)
        for label in range(2):
            os.makedirs(f"{self.root}/{label}")
            for number in range(5):
                pixels = random.integers(0, 256, (40, 30, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(f"{self.root}/{label}/{number}.png")
        with open(f"{self.root}/1/corrupt.png", "wb") as file:
            file.write(b"not an image")
        self.source = folders.ImageFolder(self.root, "train")

    def steps(self, rank: int = 0, world_size: int = 1) -> sampler.GlobalBatchSampler:
        """Returns four steps of 10 of the 11 images, one step per epoch."""
        return sampler.GlobalBatchSampler(
            length=len(self.source),
            batch_size=10,
            rank=rank,
            world_size=world_size,
            seed=3,
            start_step=0,
            total_steps=4,
        )

    def batches(self, workers: int, rank: int = 0, world_size: int = 1) -> list[loader.Batch]:
        dataset = crops.CropDataset(
            source=self.source,
            seed=3,
            batch_size=10,
            draw=functools.partial(
                jigsaw_crops, grid=2, cross_ratio=0.3, scale=(0.2, 1.0), ratio=(3 / 4, 4 / 3)
            ),
            size=8,
            smaller_sizes=(),
            least_side=2,
            scaled_decoding=False,
        )
        steps = self.steps(rank, world_size)
        return list(
            loader.crop_loader(dataset, steps, workers, prefetch=2, timeout=60, pin_memory=False)
        )

    def test_batches_contain_uint8_crops_and_unreadable_counts(self) -> None:
        batches = self.batches(workers=0)
        self.assertLen(batches, 4)
        self.assertEqual(batches[0].crops.shape, (10, 4, 3, 8, 8))
        self.assertEqual(batches[0].crops.dtype, torch.uint8)
        corrupt = 10  # The last of class 1.
        for batch, items in zip(batches, self.steps(), strict=True):
            drawn = [corrupt] * (corrupt in [index for _, index in items])
            self.assertEqual(list(batch.unreadable), drawn)
        self.assertTrue(any(batch.unreadable for batch in batches))

    def test_batches_do_not_depend_on_the_number_of_workers(self) -> None:
        for serial, parallel in zip(self.batches(workers=0), self.batches(workers=2), strict=True):
            self.assertTrue(torch.equal(serial.crops, parallel.crops))
            self.assertEqual(serial.unreadable, parallel.unreadable)

    def test_ranks_together_read_the_global_batches(self) -> None:
        ranks = [self.batches(workers=0, rank=rank, world_size=2) for rank in range(2)]
        for whole, *parts in zip(self.batches(workers=0), *ranks, strict=True):
            self.assertTrue(torch.equal(whole.crops, torch.cat([p.crops for p in parts])))
            self.assertEqual(whole.unreadable, parts[0].unreadable | parts[1].unreadable)

    def test_image_loader_reads_every_image_once_and_in_order(self) -> None:
        os.remove(f"{self.root}/1/corrupt.png")
        source = folders.ImageFolder(self.root, "train")
        dataset = images.ImageDataset(source=source, transform=eval_transform(24, 16))
        batches = list(
            loader.image_loader(dataset, batch_size=4, workers=1, prefetch=2, timeout=60)
        )
        self.assertEqual([len(batch.image) for batch in batches], [4, 4, 2])
        self.assertEqual(torch.cat([batch.image_index for batch in batches]).tolist(), [*range(10)])
        self.assertEqual(torch.cat([batch.label for batch in batches]).tolist(), source.labels)
        self.assertTrue(torch.equal(batches[1].image[2], dataset[6].image))

    def test_labeled_batches_follow_the_sampler_with_and_without_workers(self) -> None:
        os.remove(f"{self.root}/1/corrupt.png")
        self.source = folders.ImageFolder(self.root, "train")
        dataset = images.RandomCropDataset(
            source=self.source,
            seed=0,
            size=8,
            scale=(0.2, 1.0),
            ratio=(3 / 4, 4 / 3),
            flip_probability=0.5,
        )
        steps = sampler.GlobalBatchSampler(
            length=10, batch_size=4, rank=0, world_size=1, seed=3, start_step=1, total_steps=4
        )
        drawn = [
            list(
                loader.labeled_loader(
                    dataset, steps, workers, prefetch=2, timeout=60, pin_memory=False
                )
            )
            for workers in (0, 2)
        ]
        for batch, other, expected in zip(*drawn, steps, strict=True):
            self.assertEqual(batch.image_index.tolist(), [index for _, index in expected])
            self.assertEqual(batch.label.tolist(), [index // 5 for _, index in expected])
            self.assertTrue(torch.equal(batch.image, other.image))
            self.assertTrue(torch.equal(batch.image[2], dataset[expected[2]].image))

    def test_workers_exit_when_the_training_process_is_killed(self) -> None:
        program = (
            "import multiprocessing, sys, time\n"
            "from jigclu.data import folders, images, loader, transform\n"
            "dataset = images.ImageDataset(\n"
            "    source=folders.ImageFolder(sys.argv[1], 'train'),\n"
            "    transform=transform.EvalTransform(\n"
            "        resize=8, crop=8, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2)))\n"
            "batches = iter(loader.image_loader(dataset, 1, 1, prefetch=2, timeout=60))\n"
            "next(batches)\n"
            "print(multiprocessing.active_children()[0].pid, flush=True)\n"
            "time.sleep(60)\n"
        )
        with subprocess.Popen(
            [sys.executable, "-c", program, self.root], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            worker = int(process.stdout.readline())
            process.kill()
        for _ in range(100):
            if not os.path.exists(f"/proc/{worker}"):
                return
            time.sleep(0.1)
        self.fail(f"worker {worker} is still running 10 seconds after its parent was killed")

    def test_workers_start_with_a_long_temporary_folder_and_with_libraries_imported(self) -> None:
        folder = os.path.join(self.root, "t" * 90)
        os.mkdir(folder)
        program = (
            "from concurrent.futures import ProcessPoolExecutor\n"
            "from jigclu.data.loader import worker_context\n"
            "with ProcessPoolExecutor(1, worker_context()) as pool:\n"
            '    print(pool.submit(eval, \'"jigclu.data.loader" in __import__("sys").modules\')'
            ".result())\n"
        )
        result = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "TMPDIR": folder},
            capture_output=True,
            text=True,
        )
        self.assertEqual(result.stdout, "True\n", result.stderr)

    def test_user_errors_of_workers_reach_the_caller(self) -> None:
        dataset = images.ImageDataset(source=self.source, transform=eval_transform(24, 16))
        with self.assertRaisesRegex(UserError, "corrupt.png is unreadable"):
            list(loader.image_loader(dataset, batch_size=4, workers=1, prefetch=2, timeout=60))


if __name__ == "__main__":
    absltest.main()
