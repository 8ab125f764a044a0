"""The command of detection/train_net.py: reads a configuration, checks it, and trains."""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.engine import default_argument_parser, default_setup, launch
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from jigclu.detection import (
    coco_layout,
    datasets,
    initial_weights,
    loading,
    record,
    schedule,
    voc_layout,
)
from jigclu.detection.datasets import Use
from jigclu.detection.own_data import VOC_LAYOUT, OwnData
from jigclu.detection.schedule import Schedule
from jigclu.detection.trainer import Trainer, draw_predictions, fixed_settings, write_metrics
from jigclu.models.encoder import has_basic_blocks
from jigclu.system.errors import UserError

_CLASSES_KEY = "MODEL.ROI_HEADS.NUM_CLASSES"


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
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status, which is 2 after an error of the user."""
    args = argument_parser().parse_args(arguments)
    own_data = _own_data(args)
    try:
        own_data.register()
        cfg = configuration(args)
        check(cfg, args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    launch(
        _run,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(cfg, args, own_data, os.getpid()),
    )
    return 0


def configuration(args: argparse.Namespace) -> CfgNode:
    """Returns the configuration of the file, changed by flags and KEY VALUE pairs.

    Prints the published and the effective schedule.

    Raises:
      UserError: a file or a key does not exist, or the schedule is inconsistent.
    """
    cfg = _merge(args)
    if not args.eval_only:
        published = _schedule(_read(args.config_file))
        effective = _schedule(cfg)
        schedule.check_range(effective)
        if not args.schedule_as_given:
            schedule.check(published, effective)
        if cfg.SOLVER.REFERENCE_WORLD_SIZE:
            raise UserError(
                f"SOLVER.REFERENCE_WORLD_SIZE is {cfg.SOLVER.REFERENCE_WORLD_SIZE}, which would "
                "make detectron2 rescale the schedule again: use --images-per-batch instead"
            )
        print(schedule.table(published, effective))
    try:
        device = torch.device(cfg.MODEL.DEVICE)
    except RuntimeError as error:
        raise UserError(f"MODEL.DEVICE is {cfg.MODEL.DEVICE!r}; expected cuda or cpu") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        print("no GPU: MODEL.DEVICE is cpu")
        cfg.MODEL.DEVICE = "cpu"
    cfg.freeze()
    return cfg


def check(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Checks devices, data sets, weights and the folder of the run.

    Raises:
      UserError: describes the first problem.
    """
    _check_devices(cfg, args)
    if cfg.TEST.AUG.ENABLED:
        raise UserError(
            "TEST.AUG.ENABLED is True, but this command evaluates each image once: set it to False"
        )
    train = () if args.eval_only else cfg.DATASETS.TRAIN
    if not cfg.DATASETS.TEST or not (train or args.eval_only):
        raise UserError(
            "DATASETS.TRAIN or DATASETS.TEST is empty: give --train-data and --test-data"
        )
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
    if len(classes) != cfg.MODEL.ROI_HEADS.NUM_CLASSES:
        raise UserError(
            f"{_CLASSES_KEY} is {cfg.MODEL.ROI_HEADS.NUM_CLASSES}, but the data have "
            f"{len(classes)} classes: give {_CLASSES_KEY} {len(classes)}"
        )
    _check_start(cfg, args, classes)
    _check_folder(Path(cfg.OUTPUT_DIR))


def _own_data(args: argparse.Namespace) -> OwnData:
    classes = [name.strip() for name in args.class_names.split(",")]
    return OwnData(args.coco, args.voc, [name for name in classes if name])


def _check_devices(cfg: CfgNode, args: argparse.Namespace) -> None:
    available = torch.cuda.device_count()
    # Without a GPU, 1, the default, means one process, as 0 does.
    if not 0 <= args.num_gpus <= max(1, available):
        raise UserError(f"--num-gpus is {args.num_gpus}, but this machine has {available}")
    if not 0 <= args.machine_rank < args.num_machines:
        raise UserError(
            f"--machine-rank is {args.machine_rank}; it must be 0 or more and below "
            f"--num-machines, which is {args.num_machines}"
        )
    processes = max(1, args.num_gpus) * args.num_machines
    if processes > 1 and (cfg.MODEL.DEVICE == "cpu" or not args.num_gpus):
        raise UserError(
            "several processes need one GPU each, because SyncBN needs GPUs: "
            "use one process on one machine, or add GPUs"
        )
    no_address = (argument_parser().get_default("dist_url"), "auto")
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


def _check_start(cfg: CfgNode, args: argparse.Namespace, classes: Sequence[str]) -> None:
    layout = "fpn" if "fpn" in cfg.MODEL.BACKBONE.NAME else "c4"
    initial_weights.check_layout(cfg.MODEL.RESNETS.DEPTH, layout)
    last = Path(cfg.OUTPUT_DIR) / "last_checkpoint"
    weights = cfg.MODEL.WEIGHTS
    if args.resume:
        if not last.exists():
            raise UserError(
                f"--resume: OUTPUT_DIR {cfg.OUTPUT_DIR} holds no checkpoint: give the OUTPUT_DIR "
                "of the run, or omit --resume to start a new one"
            )
        checkpoint = last.read_text(encoding="utf-8").strip()
        if not checkpoint:
            raise UserError(
                f"--resume: {last} is empty: write the name of a checkpoint in this folder into "
                "it, such as model_0004999.pth"
            )
        weights = str(last.with_name(checkpoint))
    elif last.exists() and not args.eval_only:
        raise UserError(
            f"OUTPUT_DIR {cfg.OUTPUT_DIR} already holds a run: give --resume to continue it, "
            "or another OUTPUT_DIR"
        )
    if not weights:
        if args.eval_only:
            raise UserError("--eval-only needs MODEL.WEIGHTS, or --resume for the last checkpoint")
        loading.build(cfg)
        print("MODEL.WEIGHTS is empty: training starts from random weights")
        return
    is_whole = args.eval_only or args.resume
    initial_weights.check(
        weights,
        cfg.MODEL.RESNETS.DEPTH,
        layout,
        classes=cfg.MODEL.ROI_HEADS.NUM_CLASSES if is_whole else None,
        unpickle=args.unpickle_weights,
    )
    if is_whole:
        message = record.check_classes(weights, classes)
        if message:
            print(message)
    if args.resume and not args.eval_only:
        record.check_resumed(weights, fixed_settings(cfg), cfg.SOLVER.MAX_ITER)
    loading.check(cfg, weights, layout, is_whole=is_whole)


def _check_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(
            f"OUTPUT_DIR {folder} is not writable ({error.strerror}): use another folder"
        ) from error


def _read(file: str) -> CfgNode:
    if not Path(file).is_file():
        raise UserError(
            f"--config-file is {file!r}, which is not a file: use one of detection/configs"
        )
    cfg = get_cfg()
    try:
        cfg.merge_from_file(file, allow_unsafe=False)
    except Exception as error:  # yacs raises many kinds of errors for invalid configurations.
        raise UserError(f"--config-file {file}: {_first_line(error)}") from error
    return cfg


def _merge(args: argparse.Namespace) -> CfgNode:
    cfg = _read(args.config_file)
    cfg.OUTPUT_DIR = str(Path("runs") / Path(args.config_file).stem)
    if args.images_per_batch is not None:
        new_schedule = schedule.rescale(_schedule(cfg), args.images_per_batch)
        pairs = zip(schedule.KEYS.values(), new_schedule, strict=True)
        cfg.merge_from_list([part for pair in pairs for part in pair])
    for key, names in (("TRAIN", args.train_data), ("TEST", args.test_data)):
        if names:
            cfg.DATASETS[key] = tuple(names)
    if args.keep_empty_images:
        cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    names = cfg.DATASETS.TEST if args.eval_only else cfg.DATASETS.TRAIN
    own = [name for name in names if name in _own_data(args).names()]
    if own:
        # The data determine the width of the head.
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(_classes(own[0]))
    try:
        cfg.merge_from_list(args.opts)
    except (KeyError, ValueError, AssertionError) as error:
        raise UserError(f"KEY VALUE pairs: {_first_line(error)}") from error
    if has_basic_blocks(f"resnet{cfg.MODEL.RESNETS.DEPTH}"):
        # The only width that such a ResNet has, and that detectron2 builds.
        cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    return cfg


def _first_line(error: Exception) -> str:
    # str() of a KeyError would add quotes.
    text = str(error.args[0] if isinstance(error, KeyError) else error)
    return f"{text or type(error).__name__}".splitlines()[0]


def _schedule(cfg: CfgNode) -> Schedule:
    return Schedule(
        images_per_batch=cfg.SOLVER.IMS_PER_BATCH,
        learning_rate=cfg.SOLVER.BASE_LR,
        iterations=cfg.SOLVER.MAX_ITER,
        steps=tuple(cfg.SOLVER.STEPS),
        warmup_iterations=cfg.SOLVER.WARMUP_ITERS,
        evaluation_period=cfg.TEST.EVAL_PERIOD,
        checkpoint_period=cfg.SOLVER.CHECKPOINT_PERIOD,
    )


def _classes(name: str) -> Sequence[str]:
    """Returns the class names of an own data set."""
    metadata = MetadataCatalog.get(name)
    if metadata.evaluator_type == "coco":
        return coco_layout.read_classes(name, Path(metadata.json_file))
    classes: Sequence[str] = metadata.thing_classes
    return classes


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
            name,
            Path(metadata.dirname),
            metadata.split,
            metadata.thing_classes,
            use,
            is_official=kind != VOC_LAYOUT,
        )
    raise UserError(f"data set {name} is of type {kind!r}; expected COCO's boxes or VOC")


def _known_categories(metadata: Metadata) -> dict[int, str] | None:
    """Returns the JSON's category numbers and names, if detectron2 knows the data set."""
    numbers = metadata.get("thing_dataset_id_to_contiguous_id")
    return numbers and {key: metadata.thing_classes[place] for key, place in numbers.items()}


def _run(cfg: CfgNode, args: argparse.Namespace, own_data: OwnData, launched_from: int) -> None:
    """Trains or evaluates in one process."""
    if os.getpid() != launched_from:
        own_data.register()
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="jigclu")
    if args.eval_only:
        model = Trainer.build_model(cfg)
        checkpointer = DetectionCheckpointer(model, save_dir=cfg.OUTPUT_DIR)
        contents = checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        results = Trainer.test(cfg, model)
        if comm.is_main_process():
            iterations = contents.get("iteration", -1) + 1
            write_metrics(cfg, results, iterations)
            draw_predictions(cfg, model, iterations)
            verify_results(cfg, results)
        return
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    trainer.train()
