"""Gin files bind the published values, and what their comments describe."""

import dataclasses
import re

from absl.testing import absltest, parameterized

from jigclu import config
from jigclu.config.gin_files import described_bindings
from jigclu.methods.jigsaw import Jigsaw
from jigclu.methods.simclr import SimClr
from jigclu.methods.two_views import TwoViews
from jigclu.ops import optim, schedules
from jigclu.ops.augment import ColorAugmentation
from jigclu.tasks.finetune import FinetuneTask
from jigclu.tasks.pretrain import PretrainTask
from jigclu.tasks.segment import SegmentTask
from jigclu.training.knn_evaluator import KnnEvaluator
from jigclu.training.probe_evaluator import ProbeEvaluator
from jigclu.training.settings import Schedule
from tests.gin_case import ONLINE_PROBE, PROBE, GinTestCase

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def find_knn_evaluator(task: object) -> KnnEvaluator:
    """Returns the only evaluator of pre-training."""
    assert isinstance(task, PretrainTask)
    (evaluator,) = task.evaluators
    assert isinstance(evaluator, KnnEvaluator)
    return evaluator


class GinRecipesTest(GinTestCase):
    def test_published_recipe(self) -> None:
        task = self.load("gin/pretrain_r50.gin").task
        assert isinstance(task, PretrainTask) and isinstance(task.method, Jigsaw)
        published = {
            "grid": 2,
            "cross_ratio": 0.3,
            "patch_size": 112,
            "smaller_patches": (),
            "crop_scale": (0.2, 1.0),
            "siblings": "anywhere",
            "queue_size": 0,
            "single_every": 0,
            "projection_layers": 2,
            "projection_norm": False,
            "pooling_map": 8,
            "embedding_channels": 128,
            "temperature": 0.3,
            "base_temperature": 0.07,
            "clustering_weight": 1.0,
            "location_weight": 1.0,
        }
        for name, value in published.items():
            self.assertEqual(getattr(task.method, name), value, name)
        self.assertSequenceAlmostEqual(task.method.crop_ratio, (3 / 4, 4 / 3))
        assert isinstance(task.method.augmentation, ColorAugmentation)
        self.assertEqual(
            dataclasses.astuple(task.method.augmentation),
            (0.4, 0.4, 0.4, 0.1, 0.8, 0.2, 0.5, 0.1, 2.0, 0.5, IMAGENET_MEAN, IMAGENET_STD),
        )
        self.assertEqual((task.batch_size, task.micro_batch_size), (256, None))
        self.assertEqual((task.encoder, task.small_stem), ("resnet50", False))
        self.assertEqual(
            task.optimizer,
            optim.SGD(momentum=0.9, nesterov=False, weight_decay=1e-4, decay_norms_and_biases=True),
        )
        self.assertEqual(task.learning_rate, 0.03)
        self.assertEqual(
            task.schedule,
            Schedule(
                epochs=200,
                warmup_epochs=0,
                decay=schedules.CosineDecay(),
                per_epoch=True,
                stop_after_steps=None,
                bad_steps=0,
            ),
        )
        self.assertAlmostEqual(task.schedule.decay(50, 200, 0), 0.5 + 0.5 * 0.5**0.5)
        self.assertEqual(task.compute.precision, "float32")
        self.assertEmpty(task.evaluators)

    @parameterized.parameters(
        ("gin/semi_r50_1pct.gin", 0.02, None),
        ("gin/semi_r50_1pct_intended.gin", 0.02, 5.0),
        ("gin/semi_r50_10pct.gin", 0.01, None),
        ("gin/semi_r50_10pct_intended.gin", 0.01, 0.2),
    )
    def test_published_semi_supervised_recipes(
        self, file: str, learning_rate: float, head_learning_rate: float | None
    ) -> None:
        task = self.load(file).task
        assert isinstance(task, FinetuneTask)
        self.assertEqual(task.learning_rate, learning_rate)
        self.assertEqual(task.head_learning_rate, head_learning_rate)
        self.assertEqual(
            (task.batch_size, task.schedule.epochs, task.evaluate_every), (256, 100, 2)
        )
        self.assertEqual(
            task.optimizer,
            optim.SGD(momentum=0.9, nesterov=False, weight_decay=0.0, decay_norms_and_biases=True),
        )
        factors = [task.schedule.decay(epoch, 100, 0) for epoch in (29, 30, 60, 90)]
        self.assertSequenceAlmostEqual(factors, [1.0, 0.1, 0.01, 0.001])
        self.assertLen(task.source, 300)

    def test_moco_protocol_of_segmentation(self) -> None:
        task = self.load("gin/segment_voc_fcn.gin").task
        assert isinstance(task, SegmentTask)
        self.assertEqual((task.head, task.dilated_stages, task.eval_resize), ("fcn", 1, None))
        self.assertEqual((task.batch_size, task.train_size, task.scale), (16, 513, (0.5, 2.0)))
        self.assertEqual(
            task.optimizer,
            optim.SGD(momentum=0.9, nesterov=False, weight_decay=1e-4, decay_norms_and_biases=True),
        )
        self.assertEqual(task.learning_rate, 0.003)
        steps = 1464 // 16
        self.assertEqual(round(task.schedule.total_steps(steps), -3), 30_000)
        for share, factor in ((0.69, 1.0), (0.71, 0.1), (0.89, 0.1), (0.91, 0.01)):
            step = round(share * task.schedule.total_steps(steps))
            self.assertAlmostEqual(task.schedule.factor(step, steps), factor)

    def test_knn_during_training_as_the_file_describes(self) -> None:
        whole = (config.ROOT / "gin/pretrain_r50.gin").read_text()
        text = whole.split("# kNN accuracy every 10 epochs")[1]
        text = " ".join(line.strip("# ") for line in text.split("\n\n")[0].splitlines())
        (file,) = re.findall(r"--gin_file=(\S+)", text)
        texts = re.findall(r"(?<=\s)[\w./]+=[^\s]+(?=\s|$)", text)
        configuration = self.load("gin/pretrain_r50.gin", *texts, more=(file,))
        self.assertEmpty(configuration.unused)
        evaluator = find_knn_evaluator(configuration.task)
        self.assertEqual(evaluator.every, 10)
        self.assertIn("/train/a/0.png", evaluator.bank.name(0))
        self.assertIn("/val/a/0.png", evaluator.queries.name(0))
        transform = evaluator.eval_transform
        self.assertEqual((transform.resize, transform.crop), (256, 224))
        self.assertEqual((transform.mean, transform.std), (IMAGENET_MEAN, IMAGENET_STD))

    def test_linear_probe_beside_knn(self) -> None:
        configuration = self.load(
            "gin/pretrain_r18_tinyimagenet.gin",
            "pretrain.evaluators=(@knn_evaluator(), @probe_evaluator())",
            "probe_evaluator.every=50",
            "probe_evaluator.source=@train_split/ImageFolder()",
            "probe_evaluator.val=@val_split/ImageFolder()",
            more=(PROBE,),
        )
        self.assertEmpty(configuration.unused)
        operative = [line.partition(" = ")[0] for line in configuration.resolved.splitlines()]
        self.assertContainsSubset(described_bindings(PROBE), operative)
        assert isinstance(configuration.task, PretrainTask)
        knn, probe = configuration.task.evaluators
        assert isinstance(knn, KnnEvaluator) and isinstance(probe, ProbeEvaluator)
        self.assertEqual((knn.every, probe.every), (10, 50))
        self.assertEqual(knn.eval_transform, probe.eval_transform)
        self.assertIn("/val/a/0.png", probe.val.name(0))

    def test_online_probe_can_be_added_to_a_run_file(self) -> None:
        file = "gin/pretrain_r18_tinyimagenet.gin"
        bound = "pretrain.online_probe=@online_probe()"
        configuration = self.load(file, bound, more=(ONLINE_PROBE,))
        operative = [line.partition(" = ")[0] for line in configuration.resolved.splitlines()]
        self.assertContainsSubset(described_bindings(ONLINE_PROBE), operative)

    def test_simclr_recipe(self) -> None:
        task = self.load(
            "gin/base/simclr.gin",
            "pretrain.source=@UnlabeledImages()",
            f"UnlabeledImages.root={str(self.root / 'train')!r}",
        ).task
        assert isinstance(task, PretrainTask) and isinstance(task.method, SimClr)
        method = task.method
        self.assertEqual((method.view_size, method.crop_scale), (224, (0.08, 1.0)))
        self.assertEqual((method.embedding_channels, method.temperature), (128, 0.1))
        self.assertSequenceAlmostEqual(method.crop_ratio, (3 / 4, 4 / 3))
        # Color jitter of strength 1.
        assert isinstance(method.augmentation, ColorAugmentation)
        self.assertEqual(
            dataclasses.astuple(method.augmentation),
            (0.8, 0.8, 0.8, 0.2, 0.8, 0.2, 0.5, 0.1, 2.0, 0.5, IMAGENET_MEAN, IMAGENET_STD),
        )
        lars = optim.LARS(momentum=0.9, weight_decay=1e-6, trust_coefficient=0.001)
        self.assertEqual((task.optimizer, task.learning_rate), (lars, 0.3))
        self.assertEqual((task.schedule.epochs, task.schedule.warmup_epochs), (100, 10))

    @parameterized.parameters(
        ("moco", 256, 0.03, 200, {"embedding_channels": 128, "temperature": 0.2}),
        ("moco", 256, 0.03, 200, {"queue_size": 65536, "momentum": 0.999}),
        ("simsiam", 512, 0.1, 100, {"embedding_channels": 2048, "prediction_channels": 512}),
        ("byol", 4096, 3.2, 1000, {"hidden_channels": 4096, "embedding_channels": 256}),
        ("byol", 4096, 3.2, 1000, {"momentum": 0.996, "crop_scale": (0.08, 1.0)}),
    )
    def test_recipes_of_baselines(
        self,
        name: str,
        batch_size: int,
        learning_rate: float,
        epochs: int,
        fields: dict[str, object],
    ) -> None:
        task = self.load(
            f"gin/base/{name}.gin",
            "pretrain.source=@UnlabeledImages()",
            f"UnlabeledImages.root={str(self.root / 'train')!r}",
        ).task
        assert isinstance(task, PretrainTask) and isinstance(task.method, TwoViews)
        self.assertEqual(task.method.view_size, 224)
        self.assertEqual(task.batch_size, batch_size)
        self.assertEqual(task.learning_rate, learning_rate)
        self.assertEqual(task.schedule.epochs, epochs)
        self.assertEqual({field: getattr(task.method, field) for field in fields}, fields)

    @parameterized.parameters("moco", "simsiam", "byol")
    def test_queue_and_batch_of_small_baselines_fit(self, name: str) -> None:
        task = self.load(f"gin/pretrain_{name}_r18_tinyimagenet.gin").task
        assert isinstance(task, PretrainTask)
        self.assertEqual((task.batch_size, task.schedule.epochs), (256, 200))
        task.method.check_run(task.new_encoder(), 200, task.batch_size, 1)

    def test_cifar_is_read_by_its_splits(self) -> None:
        task = self.load("gin/pretrain_r18_cifar10.gin").task
        assert isinstance(task, PretrainTask)
        self.assertLen(task.source, 300)
        self.assertEqual(find_knn_evaluator(task).queries.name(3), "CIFAR10 val image 3")


if __name__ == "__main__":
    absltest.main()
