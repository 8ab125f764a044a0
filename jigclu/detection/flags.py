"""Flags of the command: detectron2's, and those of this project."""

import argparse

from detectron2.engine import default_argument_parser

from jigclu.detection.own_data import OwnData


def argument_parser() -> argparse.ArgumentParser:
    """Returns a parser of detectron2's flags and ours; KEY VALUE pairs follow the flags."""
    parser = default_argument_parser()
    ours = parser.add_argument_group("of this project")
    ours.add_argument(
        "--images-per-batch",
        type=int,
        metavar="N",
        help="over all GPUs; learning rate, iterations, steps and warm-up are scaled linearly",
    )
    ours.add_argument(
        "--schedule-as-given",
        action="store_true",
        help="accept a schedule of which only a part is changed",
    )
    ours.add_argument(
        "--coco",
        nargs=3,
        action="append",
        default=[],
        metavar=("NAME", "IMAGES", "JSON"),
        help="register a data set in COCO's layout; repeatable",
    )
    ours.add_argument(
        "--voc",
        nargs=3,
        action="append",
        default=[],
        metavar=("NAME", "FOLDER", "SPLIT"),
        help="register a split of a data set in VOC's layout; repeatable",
    )
    ours.add_argument(
        "--class-names", default="", metavar="A,B,C", help="class names of the data sets of --voc"
    )
    for flag, key in (("--train-data", "DATASETS.TRAIN"), ("--test-data", "DATASETS.TEST")):
        ours.add_argument(
            flag, action="append", metavar="NAME", help=f"name of a data set for {key}; repeatable"
        )
    ours.add_argument(
        "--keep-empty-images",
        action="store_true",
        help="train also on images without boxes, which detectron2 leaves out",
    )
    ours.add_argument(
        "--headers-only",
        action="store_true",
        help="read only the headers of JPEGs in the check: quick, but misses truncated files",
    )
    ours.add_argument(
        "--unpickle-weights",
        action="store_true",
        help="read MODEL.WEIGHTS even if it is a pickle, which may run any code",
    )
    ours.add_argument(
        "--picture-score",
        type=float,
        default=0.5,
        metavar="SCORE",
        help="least score of the predictions in pictures (default 0.5)",
    )
    ours.add_argument(
        "--trials",
        type=int,
        metavar="N",
        help="train N times, with the seeds from SEED, and report mean and standard deviation",
    )
    ours.add_argument(
        "--with-random-backbone",
        action="store_true",
        help="with --trials: also train N times from a random backbone",
    )
    return parser


def own_data(args: argparse.Namespace) -> OwnData:
    """Returns the data sets that flags describe."""
    classes = [name.strip() for name in args.class_names.split(",")]
    return OwnData(args.coco, args.voc, [name for name in classes if name])
