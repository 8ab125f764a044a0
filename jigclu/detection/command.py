"""The command of detection/train_net.py: reads a configuration, checks it, and trains."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import default_setup, launch
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from jigclu.detection import (
    checks,
    coco_layout,
    config_file,
    flags,
    initial_weights,
    schedule,
    trial_runs,
)
from jigclu.detection.own_data import OwnData
from jigclu.detection.schedule import Schedule
from jigclu.detection.trainer import Trainer, draw_predictions, write_metrics
from jigclu.system.errors import UserError

_DEPTH = "MODEL.RESNETS.DEPTH"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status, which is 2 after an error of the user."""
    return run(flags.argument_parser().parse_args(arguments))


def run(args: argparse.Namespace) -> int:
    """Runs the command with parsed flags; returns the exit status, as `main` does."""
    own_data = flags.own_data(args)
    try:
        own_data.register()
        cfg = configuration(args)
        if args.trials is not None:
            trial_runs.run(cfg, args, run)
            return 0
        checks.check(cfg, args)
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
        published = _schedule(config_file.read(args.config_file))
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
    config_file.choose_device(cfg)
    cfg.freeze()
    return cfg


def _merge(args: argparse.Namespace) -> CfgNode:
    cfg = config_file.read(args.config_file)
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
    own = [name for name in names if name in flags.own_data(args).names()]
    if own:
        # The data determine the width of the head, whose key depends on the architecture.
        classes = len(_classes(own[0]))
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = cfg.MODEL.RETINANET.NUM_CLASSES = classes
    config_file.override(cfg, args.opts)
    if _DEPTH not in args.opts:
        _set_depth(cfg, args)
    return cfg


def _set_depth(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Builds the ResNet that the weights hold, and prints it if the configuration differs."""
    weights = checks.starting_weights(cfg, args) or cfg.MODEL.WEIGHTS
    layout = initial_weights.find_layout(cfg.MODEL.BACKBONE.NAME)
    depth = initial_weights.find_depth(weights, layout)
    if depth is not None and depth != cfg.MODEL.RESNETS.DEPTH:
        # The width of bottleneck blocks; basic blocks have only one.
        config_file.override(cfg, [_DEPTH, depth, "MODEL.RESNETS.RES2_OUT_CHANNELS", 256])
        print(f"{_DEPTH} is {depth}, as in {weights}")


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
            draw_predictions(cfg, model, iterations, args.picture_score)
            verify_results(cfg, results)
        return
    trainer = Trainer(cfg, args.picture_score)
    trainer.resume_or_load(resume=args.resume)
    trainer.train()
