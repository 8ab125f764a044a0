"""Repeated trainings with different seeds: `--trials`."""

import argparse
import json
import multiprocessing
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from detectron2.config import CfgNode

from jigclu.detection import checks, config_file, initial_weights, record, trials
from jigclu.detection.trials import Protocol, Trial
from jigclu.system import errors, files
from jigclu.system.errors import UserError

_RANDOM = "random backbone"
_RESULT = "result.json"
# Settings that do not influence the scores.
_FREE_SETTINGS = ("OUTPUT_DIR", "MODEL.DEVICE", "DATALOADER.NUM_WORKERS")

# Runs the command with parsed flags; returns its exit status.
Command = Callable[[argparse.Namespace], int]


class _Run(NamedTuple):
    """A trial that is planned.

    cfg: its configuration.
    changes: keys and values that distinguish it from other trials.
    """

    cfg: CfgNode
    changes: list[str]

    @property
    def folder(self) -> Path:
        return Path(self.cfg.OUTPUT_DIR)

    @property
    def result(self) -> Path:
        return self.folder / _RESULT

    def has_checkpoint(self) -> bool:
        return (self.folder / record.LAST_CHECKPOINT).exists()


def run(cfg: CfgNode, args: argparse.Namespace, command: Command) -> None:
    """Trains once per seed, each time in a new process, and writes trials.md and trials.json.

    Args:
      cfg: configuration of the trials, except for seed and folder.
      args: flags; --resume skips finished trials and continues the others.
      command: runs one training.

    Raises:
      UserError: flags or settings are invalid, or a trial failed.
    """
    _check_flags(cfg, args)
    plan = {Path(cfg.MODEL.WEIGHTS).name or _RANDOM: _plan(cfg, args.trials)}
    if args.with_random_backbone:
        plan[_RANDOM] = _plan(cfg, args.trials, is_random=True)
    _check_folders(cfg, args, [trial for group in plan.values() for trial in group])
    checks.check(cfg, _for_one_run(args, resume=False))
    groups = {
        title: [_finish(trial, title, args, command) for trial in group]
        for title, group in plan.items()
    }
    protocol = _protocol(cfg)
    figures = trials.published(protocol)
    schedule = trials.name_schedule(cfg.SOLVER.MAX_ITER, cfg.SOLVER.IMS_PER_BATCH)
    table = trials.table(groups, figures, protocol, schedule)
    folder = Path(cfg.OUTPUT_DIR)
    files.write_file(folder / "trials.md", f"{table}\n".encode())
    contents = trials.to_json(groups, figures, protocol)
    files.write_file(folder / "trials.json", json.dumps(contents, indent=2).encode())
    print(f"\n{table}\n\n{folder / 'trials.md'}")


def _check_flags(cfg: CfgNode, args: argparse.Namespace) -> None:
    errors.check(args.trials >= 2, "--trials", args.trials, "2 or more")
    if args.eval_only:
        raise UserError("--trials trains, but --eval-only does not: omit one of them")
    if args.num_machines > 1:
        raise UserError(
            f"--num-machines is {args.num_machines}, but --trials runs on one machine: start one "
            "run per SEED instead"
        )
    if args.with_random_backbone and not cfg.MODEL.WEIGHTS:
        raise UserError(
            "--with-random-backbone compares with MODEL.WEIGHTS, which is empty: omit the flag, "
            "because the backbone is random already"
        )


def _plan(cfg: CfgNode, count: int, *, is_random: bool = False) -> list[_Run]:
    parent = Path(cfg.OUTPUT_DIR)
    shared = []
    if is_random:
        parent /= _RANDOM.replace(" ", "_")
        # The depth may come from the weights.
        depth, width = str(cfg.MODEL.RESNETS.DEPTH), str(cfg.MODEL.RESNETS.RES2_OUT_CHANNELS)
        shared = ["MODEL.WEIGHTS", "", "MODEL.RESNETS.DEPTH", depth]
        shared += ["MODEL.RESNETS.RES2_OUT_CHANNELS", width]
    # detectron2 draws a seed itself if it is negative, which could not be repeated.
    first_seed = max(0, cfg.SEED)
    planned = []
    for number in range(count):
        seed, folder = str(first_seed + number), str(parent / f"trial_{number}")
        changes = [*shared, "SEED", seed, "OUTPUT_DIR", folder]
        own = cfg.clone()
        own.defrost()
        config_file.override(own, changes)
        planned.append(_Run(own, changes))
    return planned


def _check_folders(cfg: CfgNode, args: argparse.Namespace, planned: list[_Run]) -> None:
    folder = cfg.OUTPUT_DIR
    if args.resume and not any(trial.folder.exists() for trial in planned):
        raise UserError(
            f"--resume: OUTPUT_DIR {folder} holds no trials: give the OUTPUT_DIR of the trials, "
            "or omit --resume to start new ones"
        )
    begun = [trial for trial in planned if trial.has_checkpoint() or trial.result.exists()]
    if begun and not args.resume:
        raise UserError(
            f"OUTPUT_DIR {folder} already holds trials: give --resume to continue them, or "
            "another OUTPUT_DIR"
        )
    for trial in begun:
        _check_settings(trial)


def _check_settings(trial: _Run) -> None:
    """Rejects a trial that was begun with other settings, which the table would mix."""
    begun = _flatten(config_file.read(str(trial.folder / "config.yaml")))
    changed = [
        f"{key} is {value}, but trial {trial.folder} was started with {begun.get(key)}"
        for key, value in _flatten(trial.cfg).items()
        if key not in _FREE_SETTINGS and begun.get(key) != value
    ]
    if changed:
        raise UserError(
            f"--resume: {'; '.join(changed)}: use the same values, or another OUTPUT_DIR"
        )


def _flatten(cfg: CfgNode, prefix: str = "") -> dict[str, str]:
    values: dict[str, str] = {}
    for key, value in cfg.items():
        if isinstance(value, CfgNode):
            values |= _flatten(value, f"{prefix}{key}.")
        else:
            # As text, because files do not tell nested tuples from lists.
            values[f"{prefix}{key}"] = json.dumps(value)
    return values


def _for_one_run(args: argparse.Namespace, **changes: object) -> argparse.Namespace:
    alone = {"trials": None, "with_random_backbone": False}
    return argparse.Namespace(**vars(args) | alone | changes)


def _finish(trial: _Run, title: str, args: argparse.Namespace, command: Command) -> Trial:
    """Trains unless the trial is finished; returns its scores."""
    name = f"{title}, seed {trial.cfg.SEED}"
    if not trial.result.exists():
        print(f"{name}: {trial.folder}", flush=True)
        # The data have been checked already.
        own = _for_one_run(
            args,
            resume=trial.has_checkpoint(),
            headers_only=True,
            opts=[*args.opts, *trial.changes],
        )
        status = _in_new_process(command, own)
        if status:
            raise UserError(
                f"trial {trial.folder} stopped with exit status {status}: see its messages above, "
                "fix the cause, and continue with --resume"
            )
        contents = {
            "seed": trial.cfg.SEED,
            "weights": trial.cfg.MODEL.WEIGHTS,
            "metrics": _last_scores(trial.folder / "metrics.json"),
        }
        files.write_file(trial.result, json.dumps(contents, indent=2).encode())
    else:
        print(f"{name}: already finished")
    contents = json.loads(trial.result.read_text(encoding="utf-8"))
    return Trial(contents["seed"], contents["metrics"])


def _in_new_process(command: Command, args: argparse.Namespace) -> int | None:
    """Runs the command where no earlier trial has left loggers, data sets or memory."""
    process = multiprocessing.get_context("spawn").Process(target=_exit, args=(command, args))
    process.start()
    process.join()
    return process.exitcode


def _exit(command: Command, args: argparse.Namespace) -> None:
    sys.exit(command(args))


def _last_scores(path: Path) -> dict[str, float]:
    """Returns the scores of the last evaluation in detectron2's metrics.json."""
    for line in reversed(path.read_text(encoding="utf-8").splitlines()):
        scores = {key: value for key, value in json.loads(line).items() if "/AP" in key}
        if scores:
            return scores
    raise UserError(f"{path} holds no AP: remove the folder of this trial, and use --resume")


def _protocol(cfg: CfgNode) -> Protocol:
    detector = trials.name_detector(
        cfg.MODEL.META_ARCHITECTURE,
        cfg.MODEL.RESNETS.DEPTH,
        initial_weights.find_layout(cfg.MODEL.BACKBONE.NAME),
        has_masks=cfg.MODEL.MASK_ON,
    )
    return Protocol(tuple(cfg.DATASETS.TRAIN), tuple(cfg.DATASETS.TEST), detector)
