"""Networks of timm as encoders equal timm's own, with batch normalization over all ranks."""

import importlib.util
import subprocess
import sys
import unittest
from functools import partial
from typing import Any
from unittest import mock

import torch
from absl.testing import absltest, parameterized
from torch import Tensor, nn

from jigclu.models import timm_networks
from jigclu.models.batch_norm import BatchNorm, BatchNormAct
from jigclu.models.encoder import Encoder, create_encoder
from jigclu.ops.recompute import recompute
from jigclu.system import seeds
from jigclu.system.errors import UserError
from tests.ranks import run_on_ranks

HAS_TIMM = importlib.util.find_spec("timm") is not None
# Layer normalization, batch normalization with an activation, without one, and a head after the
# pooling. The small ones of each family, which are tested at each point.
NAMED = (
    *("convnext_tiny", "regnety_008", "efficientnet_b0", "resnet50d", "mobilenetv3_large_100"),
    *("densenet121", "vgg11_bn", "rexnet_100", "dm_nfnet_f0"),
)
SMALL = ("test_convnext", "test_efficientnet", "mobilenetv3_small_050", "resnet18d", "regnety_002")


def both(name: str) -> tuple[Encoder, Any]:
    """Returns an encoder, and timm's network with the same random weights."""
    import timm

    torch.manual_seed(0)
    theirs = timm.create_model(name, pretrained=False, num_classes=0, drop_rate=0.0)
    encoder = create_encoder(f"timm/{name}", False)
    generator = torch.Generator().manual_seed(1)
    for key, value in theirs.named_buffers():
        if key.endswith("running_mean"):
            value.normal_(0, 0.3, generator=generator)
        elif key.endswith("running_var"):
            value.uniform_(0.5, 1.5, generator=generator)
    encoder.load_state_dict({k: v for k, v in theirs.state_dict().items() if own(k, encoder)})
    return encoder, theirs


def own(key: str, encoder: nn.Module) -> bool:
    return key in encoder.state_dict()


def images(count: int = 4, side: int = 64) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(2))


def train_step(name: str, count: int) -> dict[str, Tensor]:
    """Returns outputs, gradients and buffers of this rank's share of images."""
    torch.manual_seed(0)
    encoder = create_encoder(f"timm/{name}", False)
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    maps = encoder(images()[rank * count :][:count])
    maps.sum().backward()
    gradients = {key: value.grad for key, value in encoder.named_parameters()}
    return {"maps": maps.detach(), **gradients, **dict(encoder.named_buffers())}


@unittest.skipUnless(HAS_TIMM, "needs timm")
class TimmNetworksTest(parameterized.TestCase):
    @parameterized.parameters(*NAMED, *SMALL)
    def test_equals_timm_in_both_modes(self, name: str) -> None:
        encoder, theirs = both(name)
        for training in (False, True):
            encoder.train(training)
            theirs.train(training)
            with torch.no_grad():
                actual, expected = encoder(images()), theirs.forward_features(images())
            self.assertEqual(actual.shape[1], encoder.channels)
            scale = expected.abs().max().item()
            torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5 * max(1, scale))
        updated = dict(theirs.named_buffers())
        for key, value in encoder.named_buffers():
            torch.testing.assert_close(value, updated[key])

    @parameterized.parameters(*NAMED, *SMALL)
    def test_gradients_reach_every_parameter_and_recomputation_equals_them(self, name: str) -> None:
        encoder = create_encoder(f"timm/{name}", False)
        encoder(images(2)).square().mean().backward()
        expected = {}
        for key, parameter in encoder.named_parameters():
            self.assertIsNotNone(parameter.grad, key)
            expected[key], parameter.grad = parameter.grad, None
        (maps,) = recompute(lambda batch: (encoder(batch),), encoder, images(2))
        maps.square().mean().backward()
        for key, parameter in encoder.named_parameters():
            torch.testing.assert_close(parameter.grad, expected[key], msg=key)

    @parameterized.parameters("test_efficientnet", "resnet18d", "test_convnext")
    def test_batch_norm_is_over_all_ranks_and_other_norms_stay(self, name: str) -> None:
        kinds = {type(module) for module in create_encoder(f"timm/{name}", False).modules()}
        self.assertFalse([k for k in kinds if issubclass(k, nn.modules.batchnorm._BatchNorm)])
        self.assertEqual(bool(kinds & {BatchNorm, BatchNormAct}), name != "test_convnext")
        self.assertEqual(any("LayerNorm" in k.__name__ for k in kinds), name == "test_convnext")

    @parameterized.parameters("test_efficientnet", "resnet18d")
    def test_two_ranks_equal_one(self, name: str) -> None:
        alone = train_step(name, 4)
        first, second = run_on_ranks(partial(train_step, name), 2, 2)
        maps = torch.cat([first.pop("maps"), second.pop("maps")])
        torch.testing.assert_close(maps, alone.pop("maps"), rtol=1e-4, atol=1e-4)
        for key, value in alone.items():
            found = first[key] if "running_" in key else first[key] + second[key]
            difference = (found - value).norm() / value.norm().clamp_min(1e-2)
            self.assertLess(difference.item(), 1e-3, key)

    @parameterized.parameters(*SMALL)
    def test_compiles_as_one_graph_with_channels_last(self, name: str) -> None:
        torch._dynamo.reset()
        encoder = create_encoder(f"timm/{name}", False).to(memory_format=torch.channels_last)
        batch = images(2).contiguous(memory_format=torch.channels_last)
        compiled = torch.compile(encoder, fullgraph=True, backend="aot_eager")
        before = {key: value.clone() for key, value in encoder.named_buffers()}
        expected = encoder(batch)
        for key, value in encoder.named_buffers():
            value.copy_(before[key])
        actual = compiled(batch)
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
        actual.square().mean().backward()

    def test_weights_depend_on_the_seed_only(self) -> None:
        built = []
        for _ in range(2):
            timm_networks._describe.cache_clear()
            for _ in range(2):  # With and without a description in the cache.
                with seeds.initial_weights(3):
                    built.append(create_encoder("timm/test_efficientnet", False).state_dict())
        for other in built[1:]:
            torch.testing.assert_close(other, built[0], rtol=0, atol=0)

    def test_dropout_and_drop_path_are_off(self) -> None:
        # These turn them on by themselves.
        for name in ("timm/rexnet_100", "timm/fasternet_s"):
            encoder = create_encoder(name, False).train()
            drops = [getattr(m, "drop_prob", 0) or getattr(m, "p", 0) for m in encoder.modules()]
            self.assertEqual(max(drops), 0, name)

    @parameterized.parameters(
        ("timm/vit_small_patch16_224", "has no feature map .*it rejects images of 128 pixels"),
        ("timm/swin_tiny_patch4_window7_224", "has no feature map"),
        (
            "timm/xcit_nano_12_p16_224",
            r"has no feature map .*it returns \[2, 65, 128\].*'timm/convnext_tiny'",
        ),
        ("timm/convnext_tinny", "is unknown to timm; did you mean 'timm/convnext_tiny'"),
        ("timm/convnext_tiny.fb_in1k", "is unknown to timm; did you mean 'timm/convnext_tiny'"),
        ("timm/qqq", "is unknown to timm: timm.list_models"),
        ("timm/nextvit_small", "contains BatchNorm1d"),
        ("convnext_tiny", "is unknown; did you mean 'timm/convnext_tiny'"),
        ("vit_small", "is a transformer, .* 'timm/convnext_tiny', and of torchvision resnet101"),
    )
    def test_other_networks_are_rejected_in_one_line(self, name: str, message: str) -> None:
        with self.assertRaisesRegex(UserError, f"^encoder '{name}' {message}") as caught:
            create_encoder(name, False)
        self.assertNotIn("\n", str(caught.exception))

    def test_small_stem_is_rejected(self) -> None:
        with self.assertRaisesRegex(UserError, "^small_stem is True, which only ResNets"):
            create_encoder("timm/resnet18d", True)

    def test_timm_is_imported_only_for_its_networks(self) -> None:
        program = (
            "import sys; from jigclu.models.encoder import create_encoder;"
            "create_encoder('resnet18', False); sys.exit('timm' in sys.modules)"
        )
        self.assertEqual(subprocess.run([sys.executable, "-c", program]).returncode, 0)


class WithoutTimmTest(absltest.TestCase):
    def test_names_the_extra_to_install(self) -> None:
        timm_networks._describe.cache_clear()
        with (
            mock.patch.object(importlib.util, "find_spec", return_value=None),
            self.assertRaisesRegex(UserError, r"needs timm, not installed: pip install .*\[timm\]"),
        ):
            create_encoder("timm/convnext_tiny", False)


if __name__ == "__main__":
    absltest.main()
