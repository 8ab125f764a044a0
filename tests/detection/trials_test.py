"""Tests of jigclu.detection.trials."""

import json

from absl.testing import absltest, parameterized

from jigclu.detection import trials
from jigclu.detection.trials import Protocol, Trial

VOC = ("voc_2007_trainval", "voc_2012_trainval")
VOC_TEST = ("voc_2007_test",)
C4 = "Faster R-CNN R50-C4"
COCO = ("coco_2017_train",)
COCO_TEST = ("coco_2017_val",)
FPN = "Faster R-CNN R50-FPN"


class SummarizeTest(absltest.TestCase):
    def test_mean_and_sample_standard_deviation(self) -> None:
        values = (56.0, 57.0, 60.0)
        summary = trials.summarize([Trial(0, {"bbox/AP": value}) for value in values])
        # Mean 173 / 3; squared distances (25 + 4 + 49) / 9 = 26 / 3, divided by n - 1 = 2.
        mean, deviation = summary["bbox/AP"]
        self.assertAlmostEqual(mean, 57.6667, places=4)
        self.assertAlmostEqual(deviation, 2.0817, places=4)

    def test_metrics_that_a_trial_lacks_are_left_out(self) -> None:
        found = [Trial(0, {"bbox/AP": 1.0, "bbox/APs": 2.0}), Trial(1, {"bbox/AP": 3.0})]
        self.assertEqual(list(trials.summarize(found)), ["bbox/AP"])


class PublishedTest(parameterized.TestCase):
    def test_figures_of_voc_and_coco(self) -> None:
        moco, densecl = trials.published(Protocol(VOC, VOC_TEST, C4))
        self.assertStartsWith(moco.source, "MoCo v2")
        self.assertEqual(moco.metrics, {"bbox/AP": 57.0, "bbox/AP50": 82.4, "bbox/AP75": 63.6})
        self.assertStartsWith(densecl.source, "DenseCL")
        self.assertEqual(densecl.metrics, {"bbox/AP": 58.7})
        (jigclu,) = trials.published(Protocol(COCO, COCO_TEST, FPN))
        self.assertStartsWith(jigclu.source, "JigClu")
        self.assertEqual(jigclu.metrics, {"bbox/AP": 39.3})

    def test_figures_of_masks(self) -> None:
        for layout, expected in (("FPN", (40.8, 36.9)), ("C4", (40.7, 35.4))):
            (moco,) = trials.published(Protocol(COCO, COCO_TEST, f"Mask R-CNN R50-{layout}"))
            self.assertEqual((moco.metrics["bbox/AP"], moco.metrics["segm/AP"]), expected)
            self.assertEqual(moco.schedule, (180_000, 16))

    def test_the_order_of_training_data_does_not_matter(self) -> None:
        self.assertLen(trials.published(Protocol(VOC[::-1], VOC_TEST, C4)), 2)

    @parameterized.parameters(
        (VOC, VOC_TEST, FPN),
        (VOC[:1], VOC_TEST, C4),
        (VOC, ("voc_2012_val",), C4),
        (VOC, VOC_TEST, "Faster R-CNN R101-C4"),
        (COCO, COCO_TEST, C4),
        (COCO, COCO_TEST, "RetinaNet R50-FPN"),
        (("mine",), ("mine",), FPN),
    )
    def test_other_data_and_detectors_have_none(
        self, train: tuple[str, ...], test: tuple[str, ...], detector: str
    ) -> None:
        self.assertEmpty(trials.published(Protocol(train, test, detector)))

    @parameterized.parameters(
        ("GeneralizedRCNN", 50, "c4", False, C4),
        ("GeneralizedRCNN", 18, "fpn", True, "Mask R-CNN R18-FPN"),
        ("RetinaNet", 50, "fpn", False, "RetinaNet R50-FPN"),
    )
    def test_detectors_are_named(
        self, architecture: str, depth: int, layout: str, masks: bool, expected: str
    ) -> None:
        self.assertEqual(
            trials.name_detector(architecture, depth, layout, has_masks=masks), expected
        )


class TableTest(absltest.TestCase):
    def setUp(self) -> None:
        super().setUp()
        self.groups = {
            "jigclu.pth": [
                Trial(3, {"bbox/AP": 50.0, "bbox/AP50": 80.0, "bbox/AP-cat": 9.0}),
                Trial(4, {"bbox/AP": 52.0, "bbox/AP50": 80.0, "bbox/AP-cat": 9.0}),
            ],
            "random backbone": [
                Trial(3, {"bbox/AP": 30.0, "bbox/AP50": 60.0}),
                Trial(4, {"bbox/AP": 31.0, "bbox/AP50": 62.0}),
            ],
        }

    def test_shows_trials_summaries_and_published_figures(self) -> None:
        protocol = Protocol(VOC, VOC_TEST, C4)
        text = trials.table(self.groups, trials.published(protocol), protocol, "9 iterations")
        moco = "published: MoCo v2 (Chen et al., 2020; 200 epochs), 24,000 iterations of 16 images"
        expected = [
            "|  | box AP | box AP50 |",
            "| --- | --- | --- |",
            "| jigclu.pth, seed 3 | 50.00 | 80.00 |",
            "| jigclu.pth, seed 4 | 52.00 | 80.00 |",
            "| jigclu.pth, mean ± std of 2 trials | 51.00 ± 1.41 | 80.00 ± 0.00 |",
            "| random backbone, seed 3 | 30.00 | 60.00 |",
            "| random backbone, seed 4 | 31.00 | 62.00 |",
            "| random backbone, mean ± std of 2 trials | 30.50 ± 0.71 | 61.00 ± 1.41 |",
            f"| {moco} | 57.00 | 82.40 |",
        ]
        self.assertEqual(text.splitlines()[: len(expected)], expected)
        self.assertRegex(text, r"\| published: DenseCL .* \| 58.70 \| – \|")
        self.assertIn("sample standard deviation (n - 1)", text)
        self.assertNotIn("none for this", text)

    def test_says_if_nothing_is_published(self) -> None:
        protocol = Protocol(("mine",), ("mine_test",), C4)
        text = trials.table(self.groups, (), protocol, "1,000 iterations of 8 images")
        self.assertEndsWith(text, "\nPublished: none for this data and detector.")
        self.assertIn(
            f"{C4}, trained on mine for 1,000 iterations of 8 images, evaluated on mine_test", text
        )

    def test_masks_and_several_test_sets_have_own_columns(self) -> None:
        metrics = {"a/bbox/AP": 1.0, "a/segm/AP50": 2.0, "a/segm/APs": 3.0}
        groups = {"w": [Trial(0, metrics), Trial(1, {"a/bbox/AP": 1.0})]}
        text = trials.table(groups, (), Protocol(("a",), ("a", "b"), C4), "").splitlines()
        self.assertEqual(text[0], "|  | a box AP | a mask AP50 |")
        self.assertEqual(text[3], "| w, seed 1 | 1.00 | – |")
        self.assertEqual(text[4], "| w, mean ± std of 2 trials | 1.00 ± 0.00 | – |")

    def test_json_has_all_metrics(self) -> None:
        protocol = Protocol(COCO, COCO_TEST, FPN)
        contents = trials.to_json(self.groups, trials.published(protocol), protocol)
        contents = json.loads(json.dumps(contents))
        group = contents["groups"]["jigclu.pth"]
        self.assertEqual([trial["seed"] for trial in group["trials"]], [3, 4])
        self.assertEqual(group["mean"], {"bbox/AP": 51.0, "bbox/AP50": 80.0, "bbox/AP-cat": 9.0})
        self.assertAlmostEqual(group["std"]["bbox/AP"], 2**0.5)
        self.assertEqual(contents["published"][0]["metrics"], {"bbox/AP": 39.3})
        self.assertEqual(contents["protocol"]["detector"], FPN)


if __name__ == "__main__":
    absltest.main()
