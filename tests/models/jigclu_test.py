"""Tests of jigclu.models.jigclu."""

import numpy as np
import torch
from absl.testing import absltest, parameterized
from torch import Tensor, nn
from torch.nn import functional

from jigclu.models.batch_norm import BatchNorm
from jigclu.models.encoder import Encoder, create_encoder
from jigclu.models.jigclu import JigClu, QueuedJigClu
from jigclu.ops import jigsaw
from tests.samples import TinyEncoder


def small_model(grid: int) -> JigClu:
    torch.manual_seed(0)
    return JigClu(
        create_encoder("resnet18", small_stem=True), grid, None, embedding_channels=16
    ).eval()


def with_identity_encoder(grid: int) -> JigClu:
    """Uses the montage itself as feature map, as an encoder with one-pixel views would."""
    model = small_model(grid)
    model.fc_clu = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 16))
    model.fc_loc = nn.Linear(3, grid**2)
    model.encoder = IdentityEncoder()
    return model


class IdentityEncoder(Encoder):
    def __init__(self) -> None:
        nn.Module.__init__(self)


class JigCluTest(parameterized.TestCase):
    @parameterized.parameters((2, 32), (3, 48), (4, 32))
    def test_gives_one_output_per_slot(self, grid: int, size: int) -> None:
        with torch.no_grad():
            outputs = small_model(grid)(torch.randn(2, 3, size, size))
        self.assertEqual(outputs.embeddings.shape, (2 * grid**2, 16))
        self.assertEqual(outputs.location_logits.shape, (2 * grid**2, grid**2))
        torch.testing.assert_close(outputs.embeddings.norm(dim=1), torch.ones(2 * grid**2))

    def test_heads_have_the_published_names_and_widths(self) -> None:
        torch.manual_seed(0)
        model = JigClu(create_encoder("resnet50", small_stem=False), 2, 8, embedding_channels=128)
        heads = {
            name: tuple(value.shape)
            for name, value in model.named_parameters()
            if not name.startswith("encoder.")
        }
        expected = {
            "fc_clu.0.weight": (2048, 2048),
            "fc_clu.0.bias": (2048,),
            "fc_clu.2.weight": (128, 2048),
            "fc_clu.2.bias": (128,),
            "fc_loc.weight": (4, 2048),
            "fc_loc.bias": (4,),
        }
        self.assertEqual(heads, expected)
        self.assertIn("encoder.layer4.2.bn3.weight", dict(model.named_parameters()))

    @parameterized.parameters(2, 3)
    def test_slot_depends_only_on_its_own_features(self, grid: int) -> None:
        model = with_identity_encoder(grid)
        slots = torch.randn(2 * grid**2, 3, 4, 4)
        with torch.no_grad():
            before = model(jigsaw.stitch_montages(slots, grid))
            for changed in range(len(slots)):
                others = slots.clone()
                others[changed] = torch.randn(3, 4, 4)
                after = model(jigsaw.stitch_montages(others, grid))
                for old, new in zip(before, after, strict=True):
                    differs = (old != new).any(1).nonzero().flatten()
                    self.assertEqual(differs.tolist(), [changed])

    def test_outputs_are_heads_applied_to_pooled_slots(self) -> None:
        model = with_identity_encoder(2)
        slots = torch.randn(8, 3, 4, 4)
        pooled = slots.mean((2, 3)).numpy()
        weight, bias = (value.detach().numpy() for value in model.fc_loc.parameters())
        first, _, second = model.fc_clu
        with torch.no_grad():
            outputs = model(jigsaw.stitch_montages(slots, 2))
            hidden: Tensor = first(torch.from_numpy(pooled)).clamp(min=0)
            projected = second(hidden)
        expected = projected / projected.square().sum(1, keepdim=True).sqrt()
        torch.testing.assert_close(outputs.embeddings, expected)
        torch.testing.assert_close(
            outputs.location_logits, torch.from_numpy(pooled @ weight.T + bias)
        )

    @parameterized.parameters(2, 3)
    def test_single_patches_equal_montages_if_the_encoder_sees_no_neighbors(
        self, grid: int
    ) -> None:
        model = with_identity_encoder(grid)
        slots = torch.randn(2 * grid**2, 3, 4, 4)
        with torch.no_grad():
            montages = model(jigsaw.stitch_montages(slots, grid))
            single = model(slots, single=True)
        for ours, theirs in zip(single, montages, strict=True):
            torch.testing.assert_close(ours, theirs)

    def test_single_patch_does_not_depend_on_other_patches(self) -> None:
        torch.manual_seed(0)
        model = JigClu(TinyEncoder(), 2, None, embedding_channels=16).eval()
        slots = torch.randn(4, 3, 8, 8)
        others = torch.cat([torch.randn(3, 3, 8, 8), slots[3:]])
        with torch.no_grad():
            first, second = (model(patches, single=True) for patches in (slots, others))
            beside, others_beside = (
                model(jigsaw.stitch_montages(patches, 2)) for patches in (slots, others)
            )
        torch.testing.assert_close(first.embeddings[3], second.embeddings[3])
        self.assertFalse(torch.allclose(first.features[0], second.features[0]))
        # In a montage, the convolution also sees pixels of the neighbors.
        self.assertFalse(torch.allclose(beside.features[3], others_beside.features[3]))

    def test_features_of_single_patches_are_means_of_whole_maps(self) -> None:
        torch.manual_seed(0)
        # Resizing 7x7 to 8x8 would weight the positions of a map unequally.
        model = JigClu(TinyEncoder(), 2, 8, embedding_channels=16).eval()
        slots = torch.randn(5, 3, 28, 28)
        with torch.no_grad():
            outputs = model(slots, single=True)
            maps = model.encoder(slots)
        self.assertEqual(maps.shape[2:], (7, 7))
        torch.testing.assert_close(outputs.features, maps.mean((2, 3)))
        torch.testing.assert_close(outputs.location_logits, model.fc_loc(maps.mean((2, 3))))

    @parameterized.parameters((1, {0: 16}), (2, {0: 8, 2: 16}), (3, {0: 8, 2: 8, 4: 16}))
    def test_projection_has_linear_layers_with_relu_between_them(
        self, layers: int, linear: dict[int, int]
    ) -> None:
        head = JigClu(TinyEncoder(), 2, None, 16, layers).fc_clu
        self.assertLen(head, 2 * layers - 1)
        for place, module in enumerate(head):
            if place in linear:
                assert isinstance(module, nn.Linear)
                self.assertEqual((module.in_features, module.out_features), (8, linear[place]))
                self.assertIsNotNone(module.bias)
            else:
                self.assertIsInstance(module, nn.ReLU)

    def test_projection_normalizes_each_hidden_layer_over_the_batch(self) -> None:
        head = JigClu(TinyEncoder(), 2, None, 16, 3, projection_norm=True).fc_clu
        self.assertEqual(
            [type(module) for module in head],
            [nn.Linear, BatchNorm, nn.ReLU, nn.Linear, BatchNorm, nn.ReLU, nn.Linear],
        )
        hidden = head[:5](torch.randn(64, 8))
        torch.testing.assert_close(hidden.mean(0), torch.zeros(8), rtol=0, atol=1e-5)
        torch.testing.assert_close(hidden.var(0, correction=0), torch.ones(8), rtol=0, atol=1e-2)

    def test_embeddings_stay_float32_under_autocast(self) -> None:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            outputs = small_model(2)(torch.randn(1, 3, 32, 32))
        self.assertEqual(outputs.embeddings.dtype, torch.float32)
        # Normalization in bfloat16 would give lengths that are off by some thousandths.
        torch.testing.assert_close(outputs.embeddings.norm(dim=1), torch.ones(4))


class QueuedJigCluTest(absltest.TestCase):
    def test_adds_an_output_and_a_buffer_to_the_same_network(self) -> None:
        plain, montages = small_model(2), torch.randn(2, 3, 32, 32)
        torch.manual_seed(0)
        encoder = create_encoder("resnet18", small_stem=True)
        model = QueuedJigClu(encoder, 2, None, 16, 2, False, queue_size=12, temperature=0.3).eval()
        self.assertEqual({*model.state_dict()} - {*plain.state_dict()}, {"queue"})
        self.assertNotIn("queue", plain.state_dict())
        filled = functional.normalize(torch.randn(9, 16), dim=1)
        model.queue[:9] = filled
        with torch.no_grad():
            expected, actual = plain(montages), model(montages)
        for ours, theirs in zip(actual[:3], expected, strict=True):
            self.assertTrue(torch.equal(ours, theirs))
        cosines = expected.embeddings.double().numpy() @ filled.double().numpy().T
        sums = np.log(np.exp(cosines / 0.3).sum(1))
        np.testing.assert_allclose(actual.queue_sums.numpy(), sums, rtol=1e-5)

    def test_sums_stay_float32_under_autocast(self) -> None:
        model = QueuedJigClu(
            create_encoder("resnet18", small_stem=True), 2, None, 16, 2, False, 12, temperature=0.01
        ).eval()
        model.queue[:] = functional.normalize(torch.randn(12, 16), dim=1)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            outputs = model(torch.randn(1, 3, 32, 32))
        expected = (outputs.embeddings @ model.queue.t() / 0.01).logsumexp(1)
        self.assertEqual(outputs.queue_sums.dtype, torch.float32)
        torch.testing.assert_close(outputs.queue_sums, expected)


if __name__ == "__main__":
    absltest.main()
