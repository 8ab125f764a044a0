"""Jigsaw clustering: settings, inputs of a step, chance values. step_test holds the losses."""

import dataclasses
import math
from unittest import mock

import torch
from absl.testing import absltest, parameterized
from torch.nn import functional

from jigclu.data.decode import crop_resize
from jigclu.data.procedural import ProceduralImages
from jigclu.data.sampler import epoch_order
from jigclu.methods.method import StepInputs
from jigclu.models.encoder import create_encoder
from jigclu.models.jigclu import JigClu, Outputs, QueuedOutputs
from jigclu.ops import jigsaw_picture
from jigclu.ops.augment import AugmentationParameters
from jigclu.ops.jigsaw import arrange_patches, global_permutation, stitch_montages
from jigclu.ops.losses import log_sum_of_queue
from jigclu.ops.pictures import to_pixels
from jigclu.system.errors import UserError
from jigclu.tasks.pretrain import PretrainTask
from jigclu.training.settings import with_settings
from tests.samples import (
    AUGMENTATION,
    BATCH,
    EXTENDED,
    GRID,
    JIGSAW,
    SIZE,
    TinyEncoder,
    jigsaw_inputs,
    method_inputs,
    noise,
    tiny_network,
)
from tests.small_tasks import PRETRAINING, TaskTestCase, final, run_task

MEAN, STD = AUGMENTATION.mean, AUGMENTATION.std
EIGHT_SIZES = tuple((n, n + 23) for n in range(1, 9))


def parameters(inputs: StepInputs) -> AugmentationParameters:
    return AugmentationParameters(*inputs.augmentation)


def clustering_loss(embeddings: torch.Tensor, queue: torch.Tensor) -> float:
    """Returns the clustering loss of embeddings in the order of slots, of the first step."""
    sums = log_sum_of_queue(embeddings, queue, EXTENDED.temperature)
    logits = torch.zeros(len(embeddings), GRID**2)
    outputs = QueuedOutputs(embeddings, logits, embeddings, sums)
    return EXTENDED.losses(outputs, jigsaw_inputs(0).targets).clustering_loss.item()


class JigsawTest(TaskTestCase):
    @parameterized.parameters(
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"base_temperature": float("inf")}, "base_temperature is inf"),
        ({"clustering_weight": -1.0}, "clustering_weight is -1.0"),
        ({"clustering_weight": 0.0, "location_weight": 0.0}, "location_weight is 0.0.*above 0"),
        ({"location_weight": float("nan")}, "location_weight is nan"),
        ({"grid": 1}, "grid is 1"),
        ({"cross_ratio": 0.6}, "cross_ratio is 0.6"),
        ({"patch_size": 0}, "patch_size is 0"),
        ({"pooling_map": 7}, "pooling_map is 7"),
        ({"embedding_channels": 0}, "embedding_channels is 0"),
        ({"crop_scale": (0.5, 0.2)}, "crop_scale is"),
        ({"siblings": "near"}, "siblings is 'near'"),
        ({"queue_size": -1}, "queue_size is -1"),
        ({"single_every": -1}, "single_every is -1"),
        ({"projection_layers": 0}, "projection_layers is 0"),
        (
            {"projection_layers": 1, "projection_norm": True},
            "projection_norm is True; it must be False if projection_layers is 1",
        ),
    )
    def test_rejects_settings_out_of_range(self, change: dict[str, float], message: str) -> None:
        with self.assertRaisesRegex(UserError, f"^{message}"):
            dataclasses.replace(JIGSAW, **change)  # type: ignore[arg-type]

    def test_slots_show_the_patches_of_the_permutation(self) -> None:
        crops = noise(BATCH, GRID**2, 3, SIZE, SIZE)
        inputs = JIGSAW.step_inputs(crops, 7, 3)
        (permutation,) = inputs.targets
        self.assertTrue(torch.equal(permutation, global_permutation(7, 3, BATCH * GRID**2)))
        for slot, patch in enumerate(permutation.tolist()):
            expected = crops[patch % BATCH, patch // BATCH]
            self.assertTrue(torch.equal(inputs.crops[slot], expected))
        self.assertLen(parameters(inputs).flip, BATCH * GRID**2)

    @parameterized.parameters("apart", "together")
    def test_slots_show_the_patches_of_the_arrangement(self, siblings: str) -> None:
        crops = noise(BATCH, GRID**2, 3, SIZE, SIZE)
        inputs = dataclasses.replace(JIGSAW, siblings=siblings).step_inputs(crops, 7, 3)
        (permutation,) = inputs.targets
        expected = arrange_patches(siblings, 7, 3, BATCH, GRID)
        self.assertTrue(torch.equal(permutation, expected))
        self.assertTrue(torch.equal(inputs.crops, crops[permutation % BATCH, permutation // BATCH]))

    def test_augmentation_belongs_to_the_patch_rather_than_its_slot(self) -> None:
        crops = noise(BATCH, GRID**2, 3, SIZE, SIZE)
        first, second = (JIGSAW.step_inputs(crops, 7, step) for step in (3, 4))
        self.assertFalse(torch.equal(parameters(first).sigma, parameters(second).sigma))
        again = JIGSAW.step_inputs(crops, 7, 3)
        self.assertTrue(torch.equal(parameters(first).sigma, parameters(again).sigma))

    def test_chance_is_the_loss_of_equal_outputs(self) -> None:
        (permutation,) = jigsaw_inputs(0).targets
        embeddings = functional.normalize(torch.ones(BATCH * GRID**2, 16), dim=1)
        outputs = Outputs(embeddings, torch.zeros(BATCH * GRID**2, GRID**2), embeddings)
        method = dataclasses.replace(JIGSAW, clustering_weight=0.5, location_weight=3.0)
        losses = method.losses(outputs, (permutation,))
        chance = method.chance(BATCH)
        for name in losses._fields:
            self.assertAlmostEqual(getattr(losses, name).item(), chance[name], delta=1e-5)
        self.assertEqual(chance["retrieval"], 3 / 15)
        self.assertAlmostEqual(chance["clustering_loss"], 0.3 / 0.07 * math.log(15), places=6)

    def test_chance_is_the_loss_of_equal_outputs_and_a_full_queue(self) -> None:
        embeddings = functional.normalize(torch.ones(BATCH * GRID**2, 16), dim=1)
        queue = functional.normalize(torch.ones(EXTENDED.queue_size, 16), dim=1)
        loss = clustering_loss(embeddings, queue)
        self.assertAlmostEqual(loss, EXTENDED.chance(BATCH)["clustering_loss"], delta=1e-5)
        self.assertAlmostEqual(loss, 0.3 / 0.07 * math.log(15 + 32), delta=1e-5)

    def test_features_belong_to_the_images_of_their_patches(self) -> None:
        # Two images of four patches; patch p of image i has the number 2 p + i.
        permutation = torch.tensor([4, 3, 0, 7, 1, 2, 6, 5])
        features = torch.arange(16.0).view(8, 2)
        outputs = (torch.zeros(8, 3), torch.zeros(8, 4), features)
        found, images = JIGSAW.encoder_features(outputs, (permutation,))
        self.assertIs(found, features)
        self.assertEqual(images.tolist(), [0, 1, 0, 1, 1, 0, 0, 1])
        second_half = tuple(values[4:] for values in outputs)
        with mock.patch("jigclu.system.collectives.rank", return_value=1):
            _, images = JIGSAW.encoder_features(second_half, (permutation,))
        self.assertEqual(images.tolist(), [1, 0, 0, 1])

    def test_floor_is_the_loss_of_a_simplex(self) -> None:
        (permutation,) = jigsaw_inputs(0).targets
        corners = functional.normalize(torch.eye(BATCH) - 1 / BATCH, dim=1)
        # In slot order: slot s shows a patch of image permutation[s] % batch.
        embeddings = corners[permutation % BATCH].requires_grad_()
        logits = torch.zeros(BATCH * GRID**2, GRID**2)
        loss = JIGSAW.losses(Outputs(embeddings, logits, embeddings), (permutation,))
        floor = JIGSAW.floor(BATCH)["clustering_loss"]
        self.assertAlmostEqual(loss.clustering_loss.item(), floor, delta=1e-5)

    def test_floor_is_the_loss_of_a_simplex_of_the_batch_and_the_queue(self) -> None:
        images = BATCH + EXTENDED.queue_size // GRID**2
        corners = functional.normalize(torch.eye(images) - 1 / images, dim=1)
        (permutation,) = jigsaw_inputs(0).targets
        queue = corners[BATCH:].repeat(GRID**2, 1)
        loss = clustering_loss(corners[permutation % BATCH], queue)
        self.assertAlmostEqual(loss, EXTENDED.floor(BATCH)["clustering_loss"], delta=1e-5)

    def test_queue_holds_the_embeddings_of_the_last_batches(self) -> None:
        network = tiny_network(EXTENDED)
        batches = functional.normalize(torch.randn(3, BATCH * GRID**2, 16), dim=2)
        for step, embeddings in enumerate(batches):
            EXTENDED.update_state(network, (embeddings,), step, 3)
        self.assertTrue(
            torch.equal(network.get_buffer("queue"), torch.cat([batches[2], batches[1]]))
        )

    def test_without_queue_the_network_is_the_published_one(self) -> None:
        network = tiny_network(JIGSAW)
        self.assertIs(type(network), JigClu)
        JIGSAW.update_state(network, (), 0, 1)

    def test_only_a_queue_that_fills_may_raise_the_loss(self) -> None:
        self.assertFalse(JIGSAW.loss_may_rise)
        self.assertTrue(EXTENDED.loss_may_rise)

    def test_resumed_run_keeps_its_queue_and_its_single_steps(self) -> None:
        method = dataclasses.replace(EXTENDED, patch_size=16)
        task = with_settings(PRETRAINING, method=method)
        network = mock.patch.object(PretrainTask, "network", lambda _: tiny_network(EXTENDED))
        with network:
            run_task(task, self.folder / "whole")
            run_task(with_settings(task, stop_after_steps=4), self.folder / "parts")
            self.assertTrue(final(self.folder / "parts")["buffers"]["queue"].all())
            # Step 4 is not single, as the first step after a start from scratch would be.
            run_task(task, self.folder / "parts")
        self.assert_same_training(final(self.folder / "parts"), final(self.folder / "whole"))

    def test_measures_follow_the_permutation(self) -> None:
        (permutation,) = jigsaw_inputs(0).targets
        embeddings = torch.eye(BATCH)[permutation % BATCH]
        # All patches are taken for patch 1 of their image.
        logits = functional.one_hot(torch.ones(BATCH * GRID**2, dtype=torch.int64), 4).float()
        measures = JIGSAW.measures(Outputs(embeddings, logits, embeddings), (permutation,))
        self.assertEqual(measures["retrieval"].item(), 1.0)
        self.assertAlmostEqual(measures["feature_rank"].item(), BATCH, places=4)
        expected = torch.zeros(4, 4, dtype=torch.int64)
        expected[:, 1] = BATCH
        torch.testing.assert_close(measures["location_confusion"], expected)

    def test_loss_is_the_weighted_sum(self) -> None:
        method = dataclasses.replace(JIGSAW, clustering_weight=2.0, location_weight=0.5)
        generator = torch.Generator().manual_seed(0)
        embeddings = functional.normalize(torch.randn(16, 8, generator=generator), dim=1)
        logits = torch.randn(16, 4, generator=generator)
        losses = method.losses(Outputs(embeddings, logits, embeddings), jigsaw_inputs(0).targets)
        expected = 2.0 * losses.clustering_loss + 0.5 * losses.location_loss
        torch.testing.assert_close(losses.loss, expected)

    @parameterized.parameters(
        ({"patch_size": 16}, 1, 0, "patch_size is 16; .* 32 pixels into 1x1 .*small_stem"),
        ({"smaller_patches": ((1, 32),)}, 2, 0, "smaller_patches is"),
        ({"smaller_patches": ((1, 8),)}, 1, 0, r"smaller_patches is .*\(0, 1\)"),
        ({"smaller_patches": EIGHT_SIZES}, 20, 1, "has 8 sizes.*compiled once; use at most 7,"),
        (
            {"smaller_patches": EIGHT_SIZES[:4], "single_every": 5},
            20,
            1,
            "has 4 sizes.*compiled twice; use at most 3,",
        ),
        (
            {"smaller_patches": EIGHT_SIZES[:2], "single_every": 5},
            20,
            2,
            "has 2 sizes.*compiled 4 times; use at most 1,",
        ),
        ({"queue_size": 24}, 1, 0, r"queue_size is 24; .* grid\*\*2, which is 16: use 32"),
        (
            {"siblings": "apart", "grid": 3},
            1,
            0,
            "^siblings is 'apart', but batch_size is 4: .* 9 different .* batch_size of 9 or more",
        ),
    )
    def test_rejects_settings_that_do_not_fit_the_run(
        self, change: dict[str, object], epochs: int, graphs: int, message: str
    ) -> None:
        with torch.device("meta"):
            encoder = create_encoder("resnet18", False).eval()
        JIGSAW.check_run(encoder, 1, BATCH, 2)
        with self.assertRaisesRegex(UserError, message):
            dataclasses.replace(JIGSAW, **change).check_run(encoder, epochs, BATCH, graphs)  # type: ignore[arg-type]

    @parameterized.parameters(0, 1)
    def test_as_many_sizes_as_graphs_fit_are_accepted(self, single_every: int) -> None:
        # Steps that are all alike need one graph of each size.
        method = dataclasses.replace(
            JIGSAW, smaller_patches=EIGHT_SIZES[:7], single_every=single_every
        )
        method.check_run(TinyEncoder().to("meta"), 20, BATCH, 1)

    def test_single_patches_alone_may_be_smaller_than_those_of_montages(self) -> None:
        with torch.device("meta"):
            encoder = create_encoder("resnet18", False).eval()
        dataclasses.replace(JIGSAW, patch_size=16, single_every=1).check_run(encoder, 1, BATCH, 1)

    @parameterized.parameters(
        (0, "montages: 6 of 64x64 pixels"),
        (1, "single patches: 24 of 32x32 pixels"),
        (3, "montages: 6 of 64x64 pixels (one step in 3: 24 single patches of 32x32)"),
    )
    def test_plan_reports_single_patches(self, single_every: int, expected: str) -> None:
        method = dataclasses.replace(JIGSAW, single_every=single_every)
        self.assertEqual(method.summary(6), expected)

    @parameterized.parameters((0, []), (1, [0, 1, 2, 3, 4, 5, 6]), (3, [0, 3, 6]))
    def test_single_steps_follow_the_number_of_the_step(
        self, single_every: int, expected: list[int]
    ) -> None:
        method = dataclasses.replace(JIGSAW, single_every=single_every)
        single = [step for step in range(7) if method_inputs(method, step).single]
        self.assertEqual(single, expected)

    def test_single_steps_differ_in_nothing_else(self) -> None:
        method = dataclasses.replace(JIGSAW, single_every=1)
        inputs, published = method_inputs(method, 2), method_inputs(JIGSAW, 2)
        self.assertTrue(torch.equal(inputs.crops, published.crops))
        self.assertTrue(torch.equal(inputs.targets[0], published.targets[0]))
        for ours, theirs in zip(inputs.augmentation, published.augmentation, strict=True):
            self.assertTrue(torch.equal(ours, theirs))

    def test_picture_of_a_single_step_shows_its_first_eight_patches(self) -> None:
        method = dataclasses.replace(JIGSAW, single_every=1)
        inputs = method_inputs(method, 0)
        picture = method.draw(inputs)
        # Two rows of four patches, with two pixels around each.
        self.assertEqual(picture.shape, (3, 2 * (SIZE + 2) + 2, 4 * (SIZE + 2) + 2))
        patches = to_pixels(AUGMENTATION(inputs.crops, inputs.augmentation), MEAN, STD)
        for number in range(8):
            top, left = (2 + place * (SIZE + 2) for place in divmod(number, 4))
            shown = picture[:, top : top + SIZE, left : left + SIZE]
            self.assertLessEqual((shown.int() - patches[number].int()).abs().max(), 1)

    def test_draws_at_most_eight_montages(self) -> None:
        picture = JIGSAW.draw(jigsaw_inputs(0))
        self.assertEqual(picture.dtype, torch.uint8)
        # Four montages of two patches per side in a row, with two pixels around each.
        self.assertEqual(picture.shape, (3, GRID * SIZE + 4, 4 * (GRID * SIZE + 2) + 2))

    def test_picture_shows_the_patches_of_a_montage(self) -> None:
        plain = dataclasses.replace(
            AUGMENTATION,
            jitter_probability=0.0,
            grayscale_probability=0.0,
            blur_probability=0.0,
            flip_probability=0.0,
        )
        method = dataclasses.replace(JIGSAW, augmentation=plain)
        inputs = method_inputs(method, 0)
        first = method.draw(inputs)[:, 2 : 2 + GRID * SIZE, 2 : 2 + GRID * SIZE]
        rows = [torch.cat([*row], 2) for row in inputs.crops[: GRID**2].unflatten(0, (GRID, GRID))]
        self.assertLessEqual((first.int() - torch.cat(rows, 1).int()).abs().max(), 1)

    def test_picture_of_predictions_is_that_of_the_network(self) -> None:
        source = ProceduralImages(images=5, size=64, seed=0, split="train")
        dataset = JIGSAW.dataset(source, 0, 2)
        permutation = global_permutation(0, 0, 4 * GRID**2)
        image, place = permutation % 4, permutation // 4
        seen: list[torch.Tensor] = []

        def network(montages: torch.Tensor) -> Outputs:
            seen.append(montages)
            embeddings = torch.eye(4)[image]
            return Outputs(embeddings, torch.eye(GRID**2)[place], embeddings)

        draw = mock.patch.object(jigsaw_picture, "jigsaw_picture", return_value=None)
        with draw as drawn:
            JIGSAW.draw_predictions(network, dataset, 0, torch.device("cpu"))
        photographs, boxes, patches, slots, shown = drawn.call_args.args
        self.assertEqual(seen[0].shape, (4, 3, GRID * SIZE, GRID * SIZE))
        self.assertTrue(torch.equal(to_pixels(seen[0], MEAN, STD), stitch_montages(slots, GRID)))
        # This network makes no mistakes.
        self.assertTrue(torch.equal(drawn.call_args.kwargs["assigned"], image))
        self.assertTrue(torch.equal(drawn.call_args.kwargs["places"], place))
        self.assertFalse(drawn.call_args.kwargs["single"])
        self.assertTrue(torch.equal(shown, image * GRID**2 + place))
        for number, index in enumerate(epoch_order(0, 0, 5)[:4].tolist()):
            self.assertTrue(torch.equal(photographs[number], source.read(index)))
            self.assertTrue(torch.equal(patches[number], dataset[0, index].crops))
            for box, patch in zip(boxes[number], patches[number], strict=True):
                self.assertTrue(torch.equal(crop_resize(source.read(index), box, SIZE), patch))

    def test_predictions_are_those_for_single_patches_if_all_steps_are(self) -> None:
        method = dataclasses.replace(JIGSAW, single_every=1)
        dataset = method.dataset(ProceduralImages(images=5, size=64, seed=0, split="train"), 0, 2)
        network = tiny_network(method).eval()
        seen: list[torch.Tensor] = []
        network.register_forward_pre_hook(lambda _, images: seen.append(images[0]))
        draw = mock.patch.object(jigsaw_picture, "jigsaw_picture", return_value=None)
        with draw as drawn, torch.no_grad():
            method.draw_predictions(network, dataset, 0, torch.device("cpu"))
        self.assertTrue(drawn.call_args.kwargs["single"])
        self.assertEqual([images.shape for images in seen], [(4 * GRID**2, 3, SIZE, SIZE)])

    def test_picture_shows_the_augmentation(self) -> None:
        inputs = jigsaw_inputs(0)
        drawn = parameters(inputs)
        ones = torch.ones_like(drawn.grayscale)
        gray = inputs._replace(augmentation=drawn._replace(grayscale=ones))
        picture = JIGSAW.draw(gray).int()
        self.assertLessEqual((picture[0] - picture[2]).abs().max(), 1)


if __name__ == "__main__":
    absltest.main()
