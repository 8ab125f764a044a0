"""Tests of jigclu.detection.trial_runs."""

from tests import detectron2_needed  # noqa: F401  # isort: skip
import argparse
import json
from pathlib import Path
from unittest import mock

import torch
from absl.testing import absltest, parameterized

from jigclu.detection import command, flags, trial_runs
from tests.detection.command_case import CONFIGS, SHORT, CommandTestCase

WEIGHTS = ("MODEL.WEIGHTS", "encoder.pth")


class TrialRunsTest(CommandTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.ran: list[argparse.Namespace] = []
        self.fails_at = ""

    def _train(self, run: object, args: argparse.Namespace) -> int:
        """Stands for the training in a new process: leaves its files."""
        del run
        self.ran.append(args)
        folder = Path(args.opts[-1])
        cfg = command.configuration(args)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(cfg.dump(), encoding="utf-8")
        (folder / "last_checkpoint").write_text("model_0000000.pth", encoding="utf-8")
        if folder.name == self.fails_at:
            return 1
        scores = {"bbox/AP": 10.0 * cfg.SEED, "bbox/AP50": 50.0, "bbox/AP-cat": 1.0}
        lines = [{"iteration": 1, "total_loss": 1.0}, {"iteration": 1, **scores, "lr": 1.0}]
        text = "".join(f"{json.dumps(line)}\n" for line in lines)
        (folder / "metrics.json").write_text(text, encoding="utf-8")
        return 0

    def on_trials(self, *flags: str, pairs: tuple[str, ...] = ()) -> tuple[int, str, str]:
        """Runs trials without training or reading weights."""
        self.ran.clear()
        short = ("--images-per-batch", "2", "--schedule-as-given", *flags)
        with (
            mock.patch.object(trial_runs, "_in_new_process", self._train),
            mock.patch.object(trial_runs.checks, "_check_start"),
        ):
            return self.on_coco(*short, pairs=(*SHORT.split(), *WEIGHTS, *pairs))

    def assert_trials_rejected(
        self, message: str, *flags: str, pairs: tuple[str, ...] = ()
    ) -> None:
        status, _, errors = self.on_trials(*flags, pairs=pairs)
        self.assertEqual(status, 2)
        self.assertRegex(errors, f"^error: .*{message}")
        self.assertLen(errors.splitlines(), 1)
        self.assertEmpty(self.ran)

    def _changes(self) -> list[dict[str, str]]:
        """Returns what distinguishes the runs so far: the pairs at the end of their flags."""
        found = []
        for args in self.ran:
            pairs = dict(zip(args.opts[::2], args.opts[1::2], strict=True))
            folder = str(Path(pairs["OUTPUT_DIR"]).relative_to(self.output))
            found.append({"folder": folder, "seed": pairs["SEED"]} | {"w": pairs["MODEL.WEIGHTS"]})
        return found

    def test_trials_have_own_seeds_and_folders_and_give_one_table(self) -> None:
        status, out, errors = self.on_trials("--trials", "3", "--with-random-backbone")
        self.assertEqual(status, 0, errors)
        expected = [
            {"folder": f"{parent}trial_{number}", "seed": str(number), "w": weights}
            for parent, weights in (("", "encoder.pth"), ("random_backbone/", ""))
            for number in range(3)
        ]
        self.assertEqual(self._changes(), expected)
        for args in self.ran:
            self.assertIsNone(args.trials)
            self.assertFalse(args.with_random_backbone or args.resume)
        table = (self.output / "trials.md").read_text(encoding="utf-8")
        self.assertIn(
            "| encoder.pth, mean ± std of 3 trials | 10.00 ± 10.00 | 50.00 ± 0.00 |", table
        )
        self.assertIn("| random backbone, mean ± std of 3 trials | 10.00 ± 10.00 |", table)
        self.assertIn("trained on mine for 2 iterations of 2 images, evaluated on mine;", table)
        self.assertIn("Published: none for this data and detector.", table)
        self.assertIn(table, out)
        contents = json.loads((self.output / "trials.json").read_text(encoding="utf-8"))
        self.assertEqual(contents["groups"]["encoder.pth"]["mean"]["bbox/AP-cat"], 1.0)
        self.assertEqual(contents["protocol"]["detector"], "Faster R-CNN R18-FPN")
        result = json.loads((self.output / "trial_2/result.json").read_text(encoding="utf-8"))
        self.assertEqual((result["seed"], result["weights"]), (2, "encoder.pth"))
        self.assertEqual(
            result["metrics"], {"bbox/AP": 20.0, "bbox/AP50": 50.0, "bbox/AP-cat": 1.0}
        )

    def test_seeds_start_at_the_given_one(self) -> None:
        status, _, errors = self.on_trials("--trials", "2", pairs=("SEED", "7"))
        self.assertEqual(status, 0, errors)
        self.assertEqual([change["seed"] for change in self._changes()], ["7", "8"])

    def test_a_random_backbone_is_as_deep_as_the_weights(self) -> None:
        weights = self.write_weights()
        arguments = ["--config-file", str(CONFIGS / "R50-JigClu.yaml"), "--trials", "2"]
        args = flags.argument_parser().parse_args([*arguments, "MODEL.WEIGHTS", weights])
        cfg = command.configuration(args)
        for trial in trial_runs._plan(cfg, 2, is_random=True):
            args.opts = trial.changes
            found = command.configuration(args).MODEL
            self.assertEqual(found.WEIGHTS, "")
            self.assertEqual((found.RESNETS.DEPTH, found.RESNETS.RES2_OUT_CHANNELS), (18, 64))

    def test_finished_trials_are_skipped_and_the_interrupted_one_is_resumed(self) -> None:
        self.fails_at = "trial_1"
        status, _, errors = self.on_trials("--trials", "3")
        self.assertEqual(status, 2)
        self.assertRegex(errors, "trial .*trial_1 stopped with exit status 1: .* --resume")
        self.assertLen(self.ran, 2)
        self.assertFalse((self.output / "trials.md").exists())

        self.assert_trials_rejected("already holds trials: give --resume", "--trials", "3")
        self.fails_at = ""
        status, out, errors = self.on_trials("--trials", "3", "--resume")
        self.assertEqual(status, 0, errors)
        self.assertIn("seed 0: already finished", out)
        self.assertEqual([change["seed"] for change in self._changes()], ["1", "2"])
        self.assertEqual([args.resume for args in self.ran], [True, False])
        # More trials may follow, and give a new table.
        status, _, errors = self.on_trials("--trials", "4", "--resume", "--with-random-backbone")
        self.assertEqual(status, 0, errors)
        self.assertLen(self.ran, 1 + 4)
        table = (self.output / "trials.md").read_text(encoding="utf-8")
        self.assertIn("mean ± std of 4 trials | 15.00 ± 12.91 |", table)

    def test_trials_of_other_settings_are_not_mixed(self) -> None:
        self.on_trials("--trials", "2")
        resume = ("--trials", "2", "--resume")
        for pair, message in (
            ("SOLVER.MOMENTUM 0.5", "SOLVER.MOMENTUM is 0.5, but trial .* was started with 0.9"),
            ("SEED 5", "SEED is 5, but trial .*trial_0 was started with 0"),
            ("MODEL.WEIGHTS x.pth", 'MODEL.WEIGHTS is "x.pth", but .* started with "encoder.pth"'),
        ):
            self.assert_trials_rejected(message, *resume, pairs=tuple(pair.split()))
        status, _, errors = self.on_trials(*resume, pairs=("DATALOADER.NUM_WORKERS", "1"))
        self.assertEqual(status, 0, errors)

    @parameterized.parameters(
        (("--trials", "1"), "--trials is 1; it must be 2 or more"),
        (("--trials", "2", "--eval-only"), "--trials trains, but --eval-only does not"),
        (("--trials", "2", "--num-machines", "2"), "--num-machines is 2, but --trials runs on one"),
        (("--trials", "2", "--resume"), "--resume: OUTPUT_DIR .* holds no trials"),
    )
    def test_rejects_flags_that_do_not_fit(self, flags: tuple[str, ...], message: str) -> None:
        self.assert_trials_rejected(message, *flags)

    def test_a_random_backbone_is_compared_with_weights_in_trials_only(self) -> None:
        compare = "--with-random-backbone"
        self.assert_trials_rejected("--with-random-backbone needs --trials", compare)
        weights = ("MODEL.WEIGHTS", "")
        message = "--with-random-backbone compares with MODEL.WEIGHTS, which is empty"
        self.assert_trials_rejected(message, "--trials", "2", compare, pairs=weights)

    def test_seeds_change_the_training_and_repeat_it(self) -> None:
        short = ("--images-per-batch", "2", "--schedule-as-given")
        status, _, errors = self.on_coco(*short, "--trials", "2", pairs=tuple(SHORT.split()))
        self.assertEqual(status, 0, errors)
        again = self.folder / "again"
        pairs = (*SHORT.split(), "SEED", "1", "OUTPUT_DIR", str(again))
        status, _, errors = self.on_coco(*short, pairs=pairs)
        self.assertEqual(status, 0, errors)
        first, second, repeated = (
            torch.load(folder / "model_final.pth", weights_only=True)["model"]
            for folder in (self.output / "trial_0", self.output / "trial_1", again)
        )
        name = "backbone.bottom_up.stem.conv1.weight"
        self.assertFalse(torch.equal(first[name], second[name]))
        for name, value in second.items():
            self.assertTrue(torch.equal(value, repeated[name]), name)
        # A random backbone is the only kind of these trials.
        table = (self.output / "trials.md").read_text(encoding="utf-8")
        self.assertIn("| random backbone, seed 1 | ", table)


if __name__ == "__main__":
    absltest.main()
