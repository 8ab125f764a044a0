"""Tests of jigclu.detection.initial_weights."""

from pathlib import Path

import torch
from absl.testing import absltest, parameterized

from jigclu.detection import initial_weights
from jigclu.models.detectron2_names import to_detectron2
from jigclu.models.encoder import create_encoder
from jigclu.system.errors import UserError


class WeightsTest(parameterized.TestCase):
    def setUp(self) -> None:
        super().setUp()
        self.path = Path(self.create_tempdir()) / "weights.pth"

    def write(self, layout: str, heads: tuple[str, ...] = (), depth: int = 18) -> None:
        tensors = create_encoder(f"resnet{depth}", False).state_dict()
        model = {to_detectron2(name, layout): value for name, value in tensors.items()}
        model |= {name: torch.zeros(4) for name in heads}
        torch.save({"model": model}, self.path)

    def check(self, depth: int = 18, layout: str = "fpn", classes: int | None = None) -> None:
        initial_weights.check(str(self.path), depth, layout, classes=classes, unpickle=False)

    @parameterized.parameters(("fpn", 18), ("c4", 50))
    def test_accepts_a_backbone_for_training_only(self, layout: str, depth: int) -> None:
        self.write(layout, depth=depth)
        self.check(depth, layout)
        with self.assertRaisesRegex(UserError, "hold only a backbone: for evaluation"):
            self.check(depth, layout, classes=3)

    @parameterized.parameters(18, 34)
    def test_rejects_c4_detectors_of_basic_blocks(self, depth: int) -> None:
        with self.assertRaisesRegex(UserError, f"DEPTH is {depth}, but .* bottleneck blocks"):
            initial_weights.check_layout(depth, "c4")
        initial_weights.check_layout(depth, "fpn")
        initial_weights.check_layout(50, "c4")

    def test_accepts_a_detector_with_the_same_classes(self) -> None:
        self.write("fpn", ("roi_heads.box_predictor.cls_score.bias",))
        self.check()
        self.check(classes=3)
        with self.assertRaisesRegex(UserError, "have 3 classes, but the data have 4"):
            self.check(classes=4)

    def test_rejects_another_depth(self) -> None:
        self.write("fpn")
        with self.assertRaisesRegex(
            UserError, "hold a ResNet-18 in layout fpn; expected a ResNet-50 in layout"
        ):
            self.check(depth=50)

    @parameterized.parameters((18, "fpn"), (34, "fpn"), (50, "c4"))
    def test_finds_the_depth_of_a_file(self, depth: int, layout: str) -> None:
        self.write(layout, ("roi_heads.box_predictor.cls_score.bias",), depth)
        self.assertEqual(initial_weights.find_depth(str(self.path), layout), depth)
        other = {"fpn": "c4", "c4": "fpn"}[layout]
        self.assertIsNone(initial_weights.find_depth(str(self.path), other))

    @parameterized.parameters("", "absent.pth", "https://example.org/x.pth", "zoo.pkl")
    def test_depth_of_files_that_are_not_read_is_unknown(self, path: str) -> None:
        self.assertIsNone(initial_weights.find_depth(path, "fpn"))

    def test_rejects_a_deeper_network_that_contains_the_expected_one(self) -> None:
        self.write("fpn", ("backbone.bottom_up.res2.2.conv1.weight",))
        with self.assertRaisesRegex(UserError, "1 unexpected: backbone.bottom_up.res2.2.conv1"):
            self.check()

    def test_accepts_batch_counters_in_detectron2s_files(self) -> None:
        self.write("fpn", ("backbone.bottom_up.res2.0.conv1.norm.num_batches_tracked",))
        self.check()

    def test_rejects_another_layout(self) -> None:
        self.write("fpn")
        with self.assertRaisesRegex(
            UserError, "in layout fpn; expected a ResNet-50 in layout c4 .*'detectron2_c4'"
        ):
            self.check(depth=50, layout="c4")

    def test_rejects_another_width(self) -> None:
        self.write("fpn")
        contents = torch.load(self.path, weights_only=True)
        contents["model"]["backbone.bottom_up.stem.conv1.weight"] = torch.zeros(32, 3, 7, 7)
        torch.save(contents, self.path)
        with self.assertRaisesRegex(
            UserError, r"another network; .*1 of another shape: .*stem.conv1.weight \[32"
        ):
            self.check()

    def test_accepts_the_file_of_the_published_conversion(self) -> None:
        self.write("fpn", ("backbone.bottom_up.fc_clu.0.weight",))
        contents = torch.load(self.path, weights_only=True)["model"]
        torch.save(contents, self.path, _use_new_zipfile_serialization=False)
        self.check()

    @parameterized.parameters(({"state_dict": {}},), ({"model": {"conv1.weight": 1}},), ({},))
    def test_rejects_names_other_than_detectron2s(self, contents: dict[str, object]) -> None:
        torch.save(contents, self.path)
        with self.assertRaisesRegex(UserError, "do not have detectron2's names: .*detection_exp"):
            self.check()

    def test_rejects_a_corrupt_file(self) -> None:
        self.path.write_bytes(b"nothing")
        with self.assertRaisesRegex(UserError, "corrupt"):
            self.check()

    def test_rejects_a_missing_file(self) -> None:
        with self.assertRaisesRegex(UserError, "does not exist"):
            self.check()

    def test_pickle_file_needs_consent(self) -> None:
        path = self.path.with_suffix(".pkl")
        with self.assertRaisesRegex(UserError, "weights .*weights.pkl do not exist"):
            initial_weights.check(str(path), 50, "fpn", classes=None, unpickle=True)
        # The content of a pickle is not checked.
        path.write_bytes(b"pickle")
        initial_weights.check(str(path), 50, "fpn", classes=None, unpickle=True)
        with self.assertRaisesRegex(UserError, "may be a pickle, .*--unpickle-weights"):
            initial_weights.check(str(path), 50, "fpn", classes=None, unpickle=False)

    @parameterized.parameters(
        "https://example.org/x.pkl",
        "detectron2://x.pkl",
        "https://example.org/x.pkl?y=z.pkl",
        "https://example.org/x.pkl?y",
        "catalog://ImageNetPretrained/MSRA/R-50",
    )
    def test_url_of_a_pickle_needs_consent(self, path: str) -> None:
        with self.assertRaisesRegex(UserError, "may be a pickle, .*--unpickle-weights"):
            initial_weights.check(path, 50, "fpn", classes=None, unpickle=False)
        initial_weights.check(path, 50, "fpn", classes=None, unpickle=True)

    def test_accepts_the_url_of_a_pth_file(self) -> None:
        url = "https://example.org/x.pth"
        initial_weights.check(url, 50, "fpn", classes=None, unpickle=False)


if __name__ == "__main__":
    absltest.main()
