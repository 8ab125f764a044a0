"""Checks before a run starts: devices, data sets, weights, and the folder of the run."""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from torch import nn

from jigclu.detection import (
    coco_layout,
    datasets,
    flags,
    initial_weights,
    loading,
    record,
    settings,
    voc_layout,
)
from jigclu.detection.datasets import Use
from jigclu.detection.own_data import VOC_LAYOUT
from jigclu.detection.trainer import fixed_settings
from jigclu.system import errors
from jigclu.system.cores import available_cores
from jigclu.system.errors import UserError


def check(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Checks devices, data sets, weights and the folder of the run.

    Raises:
      UserError: describes the first problem.
    """
    if args.with_random_backbone:
        raise UserError("--with-random-backbone needs --trials: give both, or neither")
    errors.check(0 <= args.picture_score <= 1, "--picture-score", args.picture_score, "in [0, 1]")
    _check_devices(cfg, args)
    _check_start(cfg, args, _check_data(cfg, args))
    _check_folder(Path(cfg.OUTPUT_DIR))


def starting_weights(cfg: CfgNode, args: argparse.Namespace) -> str | None:
    """Returns the file that a run starts from: MODEL.WEIGHTS, or with --resume its last checkpoint.

    Returns None if the folder of a resumed run holds no checkpoint.
    """
    if not args.resume:
        return str(cfg.MODEL.WEIGHTS)
    with errors.naming("--resume"):
        return record.last_checkpoint(Path(cfg.OUTPUT_DIR))


def _check_devices(cfg: CfgNode, args: argparse.Namespace) -> None:
    available = torch.cuda.device_count()
    # Without a GPU, this is a number of processes; 0 means one, as 1, the default, does.
    most = available or available_cores()
    if not 0 <= args.num_gpus <= most:
        raise UserError(f"--num-gpus is {args.num_gpus}, but this machine has {available}")
    if not 0 <= args.machine_rank < args.num_machines:
        raise UserError(
            f"--machine-rank is {args.machine_rank}; it must be 0 or more and below "
            f"--num-machines, which is {args.num_machines}"
        )
    processes = max(1, args.num_gpus) * args.num_machines
    without_gpus = cfg.MODEL.DEVICE == "cpu" and not (args.eval_only and not available)
    if processes > 1 and (without_gpus or not args.num_gpus):
        raise UserError(
            "several processes need one GPU each, because SyncBN and detectron2's distributed "
            "training need GPUs: use one process on one machine, or add GPUs; --eval-only also "
            "runs in several processes on a machine without GPUs"
        )
    no_address = (flags.argument_parser().get_default("dist_url"), "auto")
    if args.num_machines > 1 and args.dist_url in no_address:
        raise UserError(
            f"--num-machines is {args.num_machines}, which needs an address: give each machine "
            "the same --dist-url tcp://<machine 0>:<free port>"
        )
    if args.eval_only:
        return
    if cfg.SOLVER.AMP.ENABLED and cfg.MODEL.DEVICE == "cpu":
        raise UserError("SOLVER.AMP.ENABLED is True, which needs a GPU: set it to False")
    if cfg.SOLVER.IMS_PER_BATCH % processes:
        raise UserError(
            f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}, which is not a multiple of the "
            f"{processes} processes: give --images-per-batch such a multiple"
        )


def _check_data(cfg: CfgNode, args: argparse.Namespace) -> tuple[str, ...]:
    """Checks and describes all data sets; returns their class names."""
    train = () if args.eval_only else cfg.DATASETS.TRAIN
    if not cfg.DATASETS.TEST or not (train or args.eval_only):
        raise UserError(
            "DATASETS.TRAIN or DATASETS.TEST is empty: give --train-data and --test-data"
        )
    for key, names in (("DATASETS.TRAIN", train), ("DATASETS.TEST", cfg.DATASETS.TEST)):
        if len(set(names)) < len(names):
            raise UserError(f"{key} is {', '.join(names)}: name each data set only once")
    uses = {
        name: Use(
            is_trained=name in train,
            is_evaluated=name in cfg.DATASETS.TEST,
            mask_format=cfg.INPUT.MASK_FORMAT if cfg.MODEL.MASK_ON else None,
            decodes_images=not args.headers_only,
        )
        for name in (*train, *cfg.DATASETS.TEST)
    }
    summaries = {name: _summary(name, use) for name, use in uses.items()}
    datasets.check_same_classes(summaries)
    keeps_empty = not cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    for name, summary in summaries.items():
        is_trained = uses[name].is_trained
        text = summary.describe(is_trained=is_trained, keeps_empty_images=keeps_empty)
        print(f"{name}: {text}")
    classes = next(iter(summaries.values())).classes
    key = settings.classes_key(cfg)
    if len(classes) != settings.value(cfg, key):
        raise UserError(
            f"{key} is {settings.value(cfg, key)}, but the data have {len(classes)} classes: "
            f"give {key} {len(classes)}"
        )
    return classes


def _check_start(cfg: CfgNode, args: argparse.Namespace, classes: Sequence[str]) -> None:
    layout = initial_weights.find_layout(cfg.MODEL.BACKBONE.NAME)
    initial_weights.check_layout(cfg.MODEL.RESNETS.DEPTH, layout)
    folder = Path(cfg.OUTPUT_DIR)
    weights = starting_weights(cfg, args)
    if weights is None:
        raise UserError(
            f"--resume: OUTPUT_DIR {folder} holds no checkpoint: give the OUTPUT_DIR "
            "of the run, or omit --resume to start a new one"
        )
    if not args.resume and (folder / record.LAST_CHECKPOINT).exists() and not args.eval_only:
        raise UserError(
            f"OUTPUT_DIR {folder} already holds a run: give --resume to continue it, "
            "or another OUTPUT_DIR"
        )
    if not weights:
        if args.eval_only:
            raise UserError("--eval-only needs MODEL.WEIGHTS, or --resume for the last checkpoint")
        _build(cfg, args)
        print("MODEL.WEIGHTS is empty: training starts from random weights")
        return
    is_whole = args.eval_only or args.resume
    initial_weights.check(
        weights,
        cfg.MODEL.RESNETS.DEPTH,
        layout,
        classes=len(classes) if is_whole else None,
        unpickle=args.unpickle_weights,
    )
    if is_whole:
        message = record.check_classes(weights, classes)
        if message:
            print(message)
    if args.resume and not args.eval_only:
        record.check_resumed(weights, fixed_settings(cfg), cfg.SOLVER.MAX_ITER)
    loading.check(_build(cfg, args), weights, layout, is_whole=is_whole)


def _build(cfg: CfgNode, args: argparse.Namespace) -> nn.Module:
    """Builds the detector, and for training what changes it, to find invalid settings."""
    detector = loading.build(cfg)
    if not args.eval_only:
        loading.check_training(cfg, detector)
    return detector


def _check_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(
            f"OUTPUT_DIR {folder} is not writable ({error.strerror}): use another folder"
        ) from error


def _summary(name: str, use: Use) -> datasets.Summary:
    if name not in DatasetCatalog.list():
        raise UserError(
            f"data set {name} is unknown: use one that detectron2 knows, such as "
            "coco_2017_train or voc_2007_test, or register your own with --coco or --voc"
        )
    metadata = MetadataCatalog.get(name)
    kind = metadata.get("evaluator_type")
    if kind == "coco":
        return coco_layout.check(
            name,
            Path(metadata.image_root),
            Path(metadata.json_file),
            use,
            _known_categories(metadata),
        )
    if kind in ("pascal_voc", VOC_LAYOUT):
        return voc_layout.check(
            name, Path(metadata.dirname), metadata.split, metadata.thing_classes, use
        )
    raise UserError(f"data set {name} is of type {kind!r}; expected COCO's boxes or VOC")


def _known_categories(metadata: Metadata) -> dict[int, str] | None:
    """Returns the JSON's category numbers and names, if detectron2 knows the data set."""
    numbers = metadata.get("thing_dataset_id_to_contiguous_id")
    return numbers and {key: metadata.thing_classes[place] for key, place in numbers.items()}
