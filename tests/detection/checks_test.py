"""Tests of jigclu.detection.checks through the command: invalid settings, data and weights."""

from tests import detectron2_needed  # noqa: F401  # isort: skip
from unittest import mock

import torch
from absl.testing import absltest, parameterized
from PIL import Image

from jigclu.detection import checks, command
from tests.detection.command_case import CommandTestCase


class ChecksTest(CommandTestCase):
    @parameterized.parameters(
        ("SOLVER.MAX_ITER 100", "SOLVER.MAX_ITER 100 .expected 180000. does not match"),
        ("SOLVER.IMS_PER_BATCH 4", "SOLVER.BASE_LR 0.01 .expected 0.005."),
        ("FOO.BAR 1", "KEY VALUE pairs: Non-existent key: FOO.BAR"),
        ("OUTPUT_DIR", "KEY VALUE pairs: Override list has odd length"),
        ("SOLVER.REFERENCE_WORLD_SIZE 4", "SOLVER.REFERENCE_WORLD_SIZE is 4, which would"),
        ("SOLVER.AMP.ENABLED True", "SOLVER.AMP.ENABLED is True, which needs a GPU"),
        ("TEST.AUG.ENABLED True", "TEST.AUG.ENABLED is True, but"),
        ("MODEL.DEVICE gpu", "MODEL.DEVICE is 'gpu'; expected one of cuda, cpu"),
        ("MODEL.DEVICE meta", "MODEL.DEVICE is 'meta'; expected one of cuda, cpu"),
        ("MODEL.META_ARCHITECTURE RetinaNt", "'RetinaNt'; expected one of .*, RetinaNet"),
        ("MODEL.RESNETS.NORM syncbn", "MODEL.RESNETS.NORM is 'syncbn'; expected one of BN, Sync"),
        ("MODEL.FPN.NORM SyncBM", "MODEL.FPN.NORM is 'SyncBM'; expected"),
        # These two belong to detectors other than this one.
        ("MODEL.ROI_MASK_HEAD.NORM bn", "MODEL.ROI_MASK_HEAD.NORM is 'bn'; expected"),
        ("MODEL.RETINANET.NORM bn", "MODEL.RETINANET.NORM is 'bn'; expected"),
        ("MODEL.BACKBONE.NAME build", "MODEL.BACKBONE.NAME is 'build'; expected .*build_resnet_b"),
        ("MODEL.ROI_HEADS.NAME Heads", "MODEL.ROI_HEADS.NAME is 'Heads'; .*Res5ROIHeadsExtra"),
        ("MODEL.ROI_BOX_HEAD.NAME Head", "MODEL.ROI_BOX_HEAD.NAME is 'Head'; expected one of Fas"),
        ("MODEL.ROI_MASK_HEAD.NAME Head", "MODEL.ROI_MASK_HEAD.NAME is 'Head'; expected one of M"),
        ("MODEL.ROI_BOX_HEAD.POOLER_TYPE a", "detectron2 cannot build this detector .*pooler"),
        ("MODEL.ROI_KEYPOINT_HEAD.NAME Head", "MODEL.ROI_KEYPOINT_HEAD.NAME is 'Head'; expected"),
        ("MODEL.SEM_SEG_HEAD.NAME Head", "MODEL.SEM_SEG_HEAD.NAME is 'Head'; expected one of Sem"),
        ("MODEL.RPN.BBOX_REG_LOSS_TYPE l1", "BBOX_REG_LOSS_TYPE is 'l1'; expected one of smooth"),
        ("SOLVER.WARMUP_METHOD cosine", "SOLVER.WARMUP_METHOD is 'cosine'; expected one of lin"),
        ("SOLVER.MOMENTUM -0.5", "cannot train with .* .Invalid momentum value: -0.5.: fix the S"),
        ("SOLVER.LR_SCHEDULER_NAME WarmupCosineLR SOLVER.BASE_LR_END 1.0", "fix the SOLVER sett"),
        ("INPUT.MIN_SIZE_TRAIN_SAMPLING range", "cannot read images .*fix the INPUT settings"),
        ("INPUT.MIN_SIZE_TRAIN ()", "cannot read images .*fix the INPUT settings"),
        ("DATALOADER.NUM_WORKERS -1", "DATALOADER.NUM_WORKERS is -1; it must be 0 or more"),
        ("MODEL.RESNETS.DEPTH 20", "MODEL.RESNETS.DEPTH is 20; expected one of 18, 34, 50, 101"),
        ("DATASETS.TRAIN ('mine','mine')", "DATASETS.TRAIN is mine, mine: name each data set"),
        ("DATASETS.TEST ('mine','mine')", "DATASETS.TEST is mine, mine: name each data set"),
        ("SEED 4294967296", "SEED is 4294967296; it must be below 2147483648"),
        ("TEST.EXPECTED_RESULTS [['segm','AP',1,1]]", "holds .*'segm'.*; expected .task, metric, "),
        ("TEST.EXPECTED_RESULTS [['bbox','AP',1]]", "holds .*, 1.; expected .task, metric, value"),
        ("TEST.EXPECTED_RESULTS [5]", "TEST.EXPECTED_RESULTS holds 5; expected .task, metric, v"),
        (
            "TEST.EXPECTED_RESULTS [['bbox','AP',1,1]] DATASETS.TEST ('a','b')",
            "TEST.EXPECTED_RESULTS needs one data set",
        ),
        ("INPUT.FORMAT rgb", "INPUT.FORMAT is 'rgb'; expected one of RGB, BGR"),
        ("INPUT.MASK_FORMAT rle", "INPUT.MASK_FORMAT is 'rle'; expected one of polygon, bitmask"),
        ("SOLVER.LR_SCHEDULER_NAME cosine", "'cosine'; expected one of WarmupMultiStepLR, "),
        ("MODEL.KEYPOINT_ON True", "MODEL.KEYPOINT_ON is True, but"),
        ("MODEL.META_ARCHITECTURE RetinaNet MODEL.MASK_ON True", "RetinaNet predicts no masks"),
        ("DATASETS.TEST ()", "DATASETS.TRAIN or DATASETS.TEST is empty"),
        ("DATASETS.TRAIN ()", "DATASETS.TRAIN or DATASETS.TEST is empty"),
        ("OUTPUT_DIR /dev/null", "OUTPUT_DIR /dev/null is not writable .File exists"),
        ("MODEL.ROI_HEADS.NUM_CLASSES 7", "NUM_CLASSES is 7, but the data have 2 classes"),
        ("MODEL.WEIGHTS x.pkl", "x.pkl are or may be a pickle"),
        ("DATASETS.TEST ('other',)", "data set other is unknown"),
    )
    def test_rejects_invalid_pairs(self, pair: str, message: str) -> None:
        self.assert_rejected(message, pairs=tuple(pair.split()))

    @parameterized.parameters(
        (("--num-gpus", "9999"), "--num-gpus is 9999, but this machine has"),
        (("--num-gpus", "-1"), "--num-gpus is -1, but this machine has"),
        (("--num-machines", "2"), "several processes need one GPU each"),
        (("--num-machines", "2", "--num-gpus", "0"), "several processes need one GPU each"),
        (
            ("--num-machines", "2", "--num-gpus", "0", "--eval-only"),
            "several processes need one GPU each",
        ),
        (("--machine-rank", "1"), "--machine-rank is 1; .* --num-machines, which is 1"),
        (
            ("--schedule-as-given", "SOLVER.MAX_ITER", "2"),
            "is 2; it must exceed the number of SOLVER.STEPS",
        ),
        (
            ("--images-per-batch", "8", "--schedule-as-given", "SOLVER.MAX_ITER", "0"),
            "is 0; it must",
        ),
        (
            ("--schedule-as-given", "SOLVER.STEPS", "('a',)"),
            "cannot train with this schedule .*: fix the SOLVER settings",
        ),
        (("--picture-score", "1.5"), "--picture-score is 1.5; it must be in .0, 1."),
        (("--picture-score", "nan"), "--picture-score is nan; it must be in .0, 1."),
        (("--resume",), "--resume: .* holds no checkpoint"),
        (("--eval-only",), "--eval-only needs MODEL.WEIGHTS"),
        (("--images-per-batch", "0"), "--images-per-batch is 0"),
        (("--coco", "coco_2017_val", "a", "b"), "coco_2017_val is registered already"),
        (("--coco", "mine", "a", "b"), "data set mine is registered already"),
        (("--voc", "v", "a", "b"), "give --class-names"),
        (("--class-names", "a,b"), "--class-names is a,b, but is only for data sets of --voc"),
    )
    def test_rejects_invalid_flags(self, flags: tuple[str, ...], message: str) -> None:
        self.assert_rejected(message, *flags)

    def test_rejects_weights_of_another_depth(self) -> None:
        weights = self.write_weights(34)
        self.assert_rejected(
            "hold a ResNet-34 .*; expected a ResNet-18", pairs=("MODEL.WEIGHTS", weights)
        )

    @parameterized.parameters((18, 64), (34, 64), (50, 256))
    def test_depth_and_width_are_those_of_the_weights(self, depth: int, width: int) -> None:
        weights = self.write_weights(depth)
        data = ("--coco", "mine", str(self.folder), str(self.folder / "boxes.json"))
        with mock.patch.object(command, "launch") as launch:
            status, out, errors = self.run_command(
                *(*data, "--train-data", "mine", "--test-data", "mine"),
                *("OUTPUT_DIR", str(self.output), "MODEL.WEIGHTS", weights),
                config="coco-RetinaNet-R50-FPN-1x",
            )
        self.assertEqual(status, 0, errors)
        cfg, *_ = launch.call_args.kwargs["args"]
        self.assertEqual(
            (cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS), (depth, width)
        )
        self.assertEqual(f"MODEL.RESNETS.DEPTH is {depth}, as in {weights}" in out, depth != 50)

    @parameterized.parameters(
        ("MODEL.RESNETS.STEM_OUT_CHANNELS 32", "res2.0.conv1.weight, "),
        ("MODEL.RESNETS.NORM GN", "res2.0.conv1.norm.running_mean, "),
    )
    def test_rejects_weights_that_detectron2_would_load_only_in_part(
        self, pairs: str, message: str
    ) -> None:
        weights = self.write_weights()
        self.assert_rejected(
            f"weights.pth would be loaded only in part, because .*{message}",
            pairs=("MODEL.WEIGHTS", weights, *pairs.split()),
        )

    def test_reads_the_file_of_the_published_conversion(self) -> None:
        tensors = torch.load(self.write_weights(), weights_only=True)["model"]
        weights = str(self.folder / "jigclu_det.pth")
        torch.save(tensors, weights, _use_new_zipfile_serialization=False)
        with mock.patch.object(command, "launch") as launch:
            status, _, errors = self.on_coco(pairs=("MODEL.WEIGHTS", weights))
        self.assertEqual(status, 0, errors)
        launch.assert_called_once()

    @mock.patch.object(torch.cuda, "device_count", return_value=0)
    def test_without_gpus_several_processes_only_evaluate(self, *mocks: mock.Mock) -> None:
        del mocks
        two = ("--num-gpus", "2")
        with mock.patch.object(checks, "available_cores", return_value=2):
            norm = ("MODEL.RESNETS.NORM", "BN", "MODEL.FPN.NORM", "BN")
            self.assert_rejected("several processes need one GPU each", *two, pairs=norm)
            self.assert_rejected("--eval-only needs MODEL.WEIGHTS", *two, "--eval-only")

    def test_number_of_classes_has_another_key_for_retinanet(self) -> None:
        self.assert_rejected(
            "MODEL.RETINANET.NUM_CLASSES is 7, but the data have 2 classes",
            config="coco-RetinaNet-R50-FPN-1x",
            pairs=("MODEL.RETINANET.NUM_CLASSES", "7"),
        )

    @parameterized.parameters("R50-C4-JigClu", "coco-mask-R50-C4-1x-MoCo")
    def test_rejects_c4_detectors_of_basic_blocks(self, config: str) -> None:
        self.add_masks()
        self.assert_rejected(
            "MODEL.RESNETS.DEPTH is 18, but detectron2 builds C4 detectors", config=config
        )

    def test_rejects_masks_that_the_data_do_not_have(self) -> None:
        self.assert_rejected(
            "annotation 1 in .* has no segmentation, but MODEL.MASK_ON is True",
            pairs=("MODEL.MASK_ON", "True"),
        )

    def test_rejects_an_empty_last_checkpoint(self) -> None:
        self.output.mkdir()
        (self.output / "last_checkpoint").touch()
        status, _, errors = self.on_coco("--resume")
        self.assertEqual(status, 2)
        self.assertRegex(
            errors, "^error: --resume: .*last_checkpoint is empty or unreadable: write the name"
        )
        self.assertLen(errors.splitlines(), 1)

    def test_finds_truncated_images_unless_only_headers_are_read(self) -> None:
        path = self.folder / "2.png"
        Image.open(path).save(path, format="JPEG")
        path.write_bytes(path.read_bytes()[:-200])
        self.assert_rejected("2.png .*cannot be decoded")
        self.assert_rejected("holds no checkpoint", "--headers-only", "--resume")

    def test_rejects_a_missing_image(self) -> None:
        (self.folder / "2.png").unlink()
        self.assert_rejected("data set mine: 2.png is not in")

    @mock.patch.object(torch.cuda, "is_available", return_value=True)
    @mock.patch.object(torch.cuda, "device_count", return_value=4)
    def test_several_machines_need_an_address(self, *mocks: mock.Mock) -> None:
        del mocks
        gpu = ("MODEL.DEVICE", "cuda")
        several = ("--num-machines", "2", "--num-gpus", "4")
        self.assert_rejected("--num-machines is 2, .*the same --dist-url", *several, pairs=gpu)
        with mock.patch.object(command, "launch") as launch:
            address = ("--dist-url", "tcp://10.0.0.1:2000", "--machine-rank", "1")
            status, _, errors = self.on_coco(*several, *address, pairs=gpu)
        self.assertEqual(status, 0, errors)
        self.assertEqual(launch.call_args.args[1], 4)
        expected = {"num_machines": 2, "machine_rank": 1, "dist_url": "tcp://10.0.0.1:2000"}
        self.assertEqual({key: launch.call_args.kwargs[key] for key in expected}, expected)

    @mock.patch.object(torch.cuda, "is_available", return_value=True)
    @mock.patch.object(torch.cuda, "device_count", return_value=4)
    def test_only_training_needs_a_batch_that_gpus_share_evenly(self, *mocks: mock.Mock) -> None:
        del mocks
        gpus = ("--num-gpus", "3")
        self.assert_rejected(
            "is 8, which is not a multiple of the 3 processes",
            *gpus,
            pairs=("MODEL.DEVICE", "cuda"),
        )
        self.assert_rejected(
            "--eval-only needs MODEL.WEIGHTS", *gpus, "--eval-only", pairs=("MODEL.DEVICE", "cuda")
        )


if __name__ == "__main__":
    absltest.main()
