"""A small pre-training run: its output, resuming, initial weights and invalid settings."""

import dataclasses
import io
import math
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from absl.testing import absltest, parameterized
from PIL import Image
from torch import Tensor

from jigclu.data.folders import UnlabeledImages
from jigclu.data.procedural import ProceduralImages
from jigclu.models.encoder import Encoder
from jigclu.system import collectives, machine
from jigclu.system.errors import UserError
from jigclu.tasks.pretrain import PretrainTask
from jigclu.training import checkpoint, metrics_file
from jigclu.training.settings import with_settings
from jigclu.training.state import TrainState
from jigclu.training.step import StepResult, TrainingStep
from tests.ranks import run_on_ranks
from tests.samples import ADAMW, SIMCLR, published_checkpoint, tiny_model
from tests.small_tasks import KNN, PRETRAINING, TaskTestCase, final, run_task
from tests.terminal import progress_log

# A learning rate that hardly changes the weights: training on small batches is chaotic, so that
# rounding would soon make two runs differ.
STILL = 1e-12
CONFIG = "pretrain.seed = 0\nloading.workers = 0"
TASK = PRETRAINING
NINE_SIZES = {"smaller_patches": tuple((n, n + 7) for n in range(1, 9)), "epochs": 20}


def run(task: PretrainTask, workdir: Path) -> str:
    return run_task(task, workdir, CONFIG)


def changed(**changes: Any) -> PretrainTask:
    return with_settings(TASK, **changes)


# Statistics of batch normalization change, and so does their average.
STILL_TASK = changed(learning_rate=STILL, average_momentum=0.9)


def run_still(workdir: str) -> None:
    run(with_settings(STILL_TASK, evaluators=(RankComparison(),)), Path(workdir))


class RankComparison:
    """An evaluator that returns the largest difference between the encoders of the ranks."""

    every = 0

    def __call__(self, encoder: Encoder, *_: Any) -> dict[str, float]:
        values = torch.cat([value.flatten() for value in encoder.state_dict().values()])
        gathered = collectives.gather(values[None], dim=0)
        return {"difference": (gathered - gathered[0]).abs().max().item()}


def statistics(contents: dict[str, Any]) -> dict[str, Tensor]:
    """Returns those of batch normalization in a checkpoint, and their averages."""
    return {name: value for name, value in contents["buffers"].items() if ".running_" in name}


class PretrainTest(TaskTestCase):
    def test_writes_scores_curves_pictures_and_checkpoints(self) -> None:
        printed = run(changed(evaluators=(with_settings(KNN, every=1),)), self.folder)
        self.assertEqual(printed.count("knn_accuracy "), 3)  # Steps 0, 3 and 6.
        self.assertRegex(printed, r"at step 0, .* at step 6, chance 10.0%")
        self.assertRegex(printed, r"step 6/6  loss \d.* images/s \d.*  ETA 0:00:00")
        names = sorted(path.name for path in (self.folder / "checkpoints").iterdir())
        self.assertEqual(names, ["step_00000004.pt", "step_00000006.pt"])
        contents = final(self.folder)
        self.assertEqual(contents["config"], CONFIG)
        self.assertEqual([score[0] for score in contents["scores"]], [0, 3, 6])

        events = self.events(self.folder)
        steps = {tag: [e.step for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
        for tag in ("loss/loss", "loss/clustering_loss_chance", "accuracy/retrieval"):
            self.assertEqual(steps[tag], [2, 4, 6])
        for tag in ("speed/images_per_second", "health/feature_rank", "optim/update_ratio/fc_loc"):
            self.assertIn(tag, steps)
        self.assertEqual(steps["accuracy/knn_accuracy"], [0, 3, 6])
        self.assertEqual([e.step for e in events.Images("location_confusion")], [2, 4, 6])
        records = metrics_file.read(self.folder / "metrics.jsonl")
        self.assertEqual([values["step"] for values in records], [0, 2, 3, 4, 6])
        self.assertEqual(
            set(records[2]) - {"step", "epoch", "images", "time"}, set(contents["scores"][0][1])
        )
        self.assertEqual((records[4]["epoch"], records[4]["images"]), (2.0, 24))
        self.assertLessEqual({"loss", "knn_accuracy", "feature_rank"}, set(records[4]))
        self.assertEqual(events.Scalars("accuracy/location_accuracy_chance")[0].value, 0.25)
        # Steps 3 and 4 belong to epochs 0 and 1: the mean of their learning rates.
        self.assertAlmostEqual(events.Scalars("optim/learning_rate")[1].value, 0.0225, delta=1e-6)
        for tag in ("inputs", "predictions"):
            self.assertEqual([e.step for e in events.Images(tag)], [0, 4])
        for tag in ("knn_neighbors", "knn_confusion"):
            self.assertEqual([e.step for e in events.Images(tag)], [0, 3, 6])
        projector = (self.folder / "tensorboard" / "projector_config.pbtxt").read_text()
        self.assertEqual(projector.count('tensor_path: "00006/knn/tensors.tsv"'), 1)
        self.assertEqual(projector.count("tensor_path"), 1)
        self.assertIn("_hparams_/session_end_info", events.summary_metadata)

    def test_pictures_do_not_change_training(self) -> None:
        modes = []
        take_step = PretrainTask.take_step

        def watch(task: PretrainTask, step: TrainingStep, *arguments: Any) -> StepResult:
            modes.append(all(module.training for module in step.network.modules()))
            return take_step(task, step, *arguments)

        with mock.patch.object(PretrainTask, "take_step", watch):
            run(changed(picture_every=1, stop_after_steps=3), self.folder / "all")
        self.assertEqual(modes, [True] * 3)
        run(changed(picture_every=0, stop_after_steps=3), self.folder / "none")
        self.assert_same_training(final(self.folder / "all"), final(self.folder / "none"))
        self.assertNotIn("predictions", self.events(self.folder / "none").Tags()["images"])

    def test_everything_before_the_first_step_shows_progress(self) -> None:
        with progress_log() as log:
            run(changed(evaluators=(KNN,), stop_after_steps=1, log_every=1), self.folder)
        lines = [line.split(",")[0] for line in log.getvalue().splitlines()]
        waits = [
            *("building the network", "evaluating at step 0"),
            *["evaluating at step 0: encoding images"] * 2,
            "taking the first step",
        ]
        before = lines[: lines.index(next(line for line in lines if line.startswith("step 1/1")))]
        self.assertEqual([line for line in before if line in waits], waits)

    def test_interrupted_and_resumed_equals_uninterrupted(self) -> None:
        run(TASK, self.folder / "whole")
        run(changed(stop_after_steps=4), self.folder / "parts")  # Within the second epoch.
        self.assertEqual(final(self.folder / "parts")["step"], 4)
        printed = run(TASK, self.folder / "parts")
        self.assertIn("step_00000004.pt at step 4", printed)
        self.assert_same_training(final(self.folder / "parts"), final(self.folder / "whole"))

    def test_adamw_resumes_exactly(self) -> None:
        task = changed(optimizer=ADAMW, learning_rate=1e-3)
        with mock.patch.object(PretrainTask, "network", lambda _: tiny_model()):
            run(task, self.folder / "whole")
            run(with_settings(task, stop_after_steps=4), self.folder / "parts")
            run(task, self.folder / "parts")
        whole = final(self.folder / "whole")
        self.assertEqual(whole["optimizer"]["updates"].item(), 6)
        self.assert_same_training(final(self.folder / "parts"), whole)

    def test_resumes_with_workers_on_two_ranks(self) -> None:
        run(with_settings(STILL_TASK, workers=1), self.folder / "whole")
        run(with_settings(STILL_TASK, stop_after_steps=4), self.folder / "parts")
        run_on_ranks(run_still, 2, str(self.folder / "parts"))
        parts, whole = final(self.folder / "parts"), final(self.folder / "whole")
        # Statistics depend on every patch of every step, momentum on every gradient. In so small a
        # batch, rounding may flip a ReLU, which changes the momentum.
        self.assert_tensors_close(statistics(parts), statistics(whole), 1e-5)
        self.assertEqual(parts["scores"][-1], (6, {"difference": 0.0}))
        self.assert_tensors_close(
            parts["optimizer"]["momentum"], whole["optimizer"]["momentum"], 0.05
        )

    def test_patches_grow_with_the_epochs(self) -> None:
        run(changed(smaller_patches=((1, 8),), picture_every=3), self.folder)
        events = self.events(self.folder)
        images = [Image.open(io.BytesIO(e.encoded_image_string)) for e in events.Images("inputs")]
        # Four montages of two patches per side in a row, with two pixels around each.
        self.assertEqual([image.width for image in images], [4 * (16 + 2) + 2, 4 * (32 + 2) + 2])

    def test_finished_run_takes_no_step(self) -> None:
        run(changed(stop_after_steps=2), self.folder)
        before = final(self.folder)
        printed = run(changed(stop_after_steps=2), self.folder)
        self.assertIn("done: 2 steps", printed)
        self.assert_same_training(final(self.folder), before)

    def test_resumes_a_named_checkpoint_or_starts_from_its_weights(self) -> None:
        run(changed(stop_after_steps=2), self.folder / "first")
        path = str(checkpoint.latest(self.folder / "first"))
        printed = run(changed(resume_from=path), self.folder / "resumed")
        self.assertIn(f"resumed from {path} at step 2", printed)
        run(TASK, self.folder / "whole")
        self.assert_same_training(final(self.folder / "resumed"), final(self.folder / "whole"))

        task = changed(init_from=path, stop_after_steps=1, learning_rate=STILL)
        printed = run(task, self.folder / "begun")
        contents, weights = final(self.folder / "begun"), torch.load(path, weights_only=True)
        loaded = len(weights["parameters"]) + len(weights["buffers"])
        self.assertIn(f"loaded {loaded} tensors", printed)
        self.assertEqual(contents["step"], 1)
        for name, value in weights["parameters"].items():
            torch.testing.assert_close(contents["parameters"][name], value)

    def test_starts_from_a_published_checkpoint_with_its_heads(self) -> None:
        path = self.folder / "model_best.pth.tar"
        published = published_checkpoint("resnet18", 512)
        torch.save(published, path)
        task = changed(init_from=str(path), small_stem=False, patch_size=32)
        with mock.patch.object(PretrainTask, "take_step", take_no_step):
            printed = run(with_settings(task, stop_after_steps=1), self.folder / "run")
        self.assertIn(f"loaded {20 + 20 * 4 + 6} tensors", printed)
        contents = final(self.folder / "run")
        for name, value in {**contents["parameters"], **contents["buffers"]}.items():
            expected = published["state_dict"][f"module.encoder.{name.removeprefix('encoder.')}"]
            torch.testing.assert_close(value, expected, rtol=0, atol=0)
        self.assertIn("fc_loc.weight", contents["parameters"])
        with self.assertRaisesRegex(UserError, r"encoder = 'resnet18' and small_stem = False"):
            run(changed(init_from=str(path)), self.folder / "other")

    def test_unreadable_images_are_counted(self) -> None:
        data = self.folder / "data"
        data.mkdir()
        for index in range(4):
            Image.new("RGB", (40, 30), (60 * index, 0, 0)).save(data / f"{index}.png")
        (data / "2.png").write_bytes(b"no image")
        task = changed(source=UnlabeledImages(str(data)), epochs=3)
        self.assertIn("images, no labels\n", task.plan(self.folder / "run"))
        printed = run(task, self.folder / "run")
        self.assertIn("1 unreadable images were skipped", printed)

    def test_non_finite_loss_stops_the_run(self) -> None:
        with self.assertRaisesRegex(UserError, "loss is nan.*lower learning_rate"):
            run(changed(learning_rate=1e30), self.folder)

    def test_plan_lists_steps_memory_and_machine(self) -> None:
        plan = TASK.plan(Path("runs/none"))
        self.assertIn("devices: 1 x cpu", plan)
        self.assertIn("data: 14 images, 10 classes", plan)
        self.assertIn("steps: 6, 3 per epoch, 2 epochs", plan)
        self.assertIn("steps: 4 of 6, 3 per", changed(stop_after_steps=4).plan(Path("runs/none")))
        self.assertIn(
            "samples: 24 images, 4 per step\nmontages: 4 of 32x32 pixels per device", plan
        )
        # 11,168,832 parameters of the encoder with a small stem and 330,372 of the heads, 4 bytes
        # each, and 4800 channels of batch normalization.
        self.assertIn("state: 92.0 MB per device (parameters 46.0, momentum 46.0", plan)
        plan = changed(optimizer=ADAMW).plan(self.folder)
        self.assertIn(
            "state: 138.0 MB per device (parameters 46.0, first moment 46.0, second moment 46.0",
            plan,
        )
        self.assertIn("machine:\n  precision: float32 (bound)\n  compile: False (bound)", plan)

    @parameterized.parameters(
        ({"batch_size": 1}, "batch_size is 1"),
        ({"learning_rate": -1.0}, "learning_rate is -1"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**63}, "seed is"),
        ({"init_from": "a", "resume_from": "b"}, "init_from is 'a', but resume_from is 'b'"),
    )
    def test_rejects_settings_out_of_range(self, changes: dict[str, Any], message: str) -> None:
        with self.assertRaisesRegex(UserError, f"^{message}"):
            changed(**changes)

    @parameterized.parameters(
        ({"smaller_patches": ((1, 16),)}, r"smaller_patches is \(\(1, 16\),\); .* patch_size = 16"),
        ({"smaller_patches": ((2, 8),)}, r"smaller_patches is .* within \(0, 2\)"),
        (NINE_SIZES | {"compile": True}, "smaller_patches has 8 sizes.*at most 7"),
        (NINE_SIZES | {"compile": "auto"}, "smaller_patches has 8 sizes.*at most 7"),
        ({"small_stem": False}, "patch_size is 16; .*small_stem"),
        ({"batch_size": 15}, "batch_size is 15; it must be at most 14"),
        ({"micro_batch_size": 3}, "micro_batch_size is 3; it must divide the 4 images per device"),
        ({"micro_batch_size": 8}, "micro_batch_size is 8"),
        ({"micro_batch_size": 0}, "micro_batch_size is 0"),
        ({"encoder": "resnet19"}, "encoder 'resnet19' is unknown; did you mean 'resnet1"),
        ({"init_from": "/nowhere/w.pth"}, "init_from: checkpoint /nowhere/w.pth does not exist"),
        ({"resume_from": "/nowhere/c.pt"}, "resume_from: checkpoint /nowhere/c.pt does not exist"),
    )
    def test_mistakes_are_found_before_anything_is_written(
        self, changes: dict[str, Any], message: str
    ) -> None:
        with self.assertRaisesRegex(UserError, f"^{message}"):
            changed(**changes).check(self.folder / "run")
        self.assertFalse((self.folder / "run").exists())

    def test_auto_keeps_the_precision_in_which_a_run_started(self) -> None:
        run(changed(stop_after_steps=2), self.folder)
        auto = changed(precision="auto")
        with mock.patch.multiple(
            machine,
            _cpu_supports_bfloat16=lambda: True,
            precision_slowdown=lambda precision, device: 0.5,
        ):
            self.assertEqual(auto.choose_machine(None).precision.value, "bfloat16")
            kept = auto.choose_machine(self.folder).precision
        self.assertEqual(kept, machine.Choice("float32", "precision of the resumed run"))

    def test_resumes_in_another_precision_that_is_bound(self) -> None:
        with mock.patch.object(PretrainTask, "network", lambda _: tiny_model()):
            run(changed(stop_after_steps=2, precision="bfloat16"), self.folder)
            printed = run(changed(stop_after_steps=4), self.folder)
        self.assertIn("at step 2", printed)
        kept = final(self.folder)
        self.assertEqual(
            kept["machine"]["precision"], ["float32", "bound; this run started in bfloat16"]
        )

    def test_slow_precision_is_used_with_one_warning(self) -> None:
        with mock.patch.object(machine, "precision_warning", return_value="too slow"):
            printed = run(changed(stop_after_steps=2), self.folder)
        self.assertEqual(printed.count("warning: too slow\n"), 1)
        self.assertEqual(final(self.folder)["step"], 2)

    def test_rejects_the_workdir_of_a_run_with_other_settings(self) -> None:
        run(changed(stop_after_steps=2), self.folder)
        changed(workers=8, log_every=1, evaluators=(KNN,)).check(self.folder)
        for changes, message in (
            ({"seed": 1}, "seed was 0 and is 1: .*step_00000002.pt comes from another run"),
            ({"epochs": 3}, "schedule.epochs was 2 and is 3"),
            ({"temperature": 0.5}, "method.temperature was 0.3 and is 0.5"),
            ({"grid": 4, "seed": 1}, r"seed was 0 and is 1 \(1 more settings differ"),
            ({"source": ProceduralImages(images=15, size=32, seed=0, split="train")}, "source has"),
        ):
            with self.assertRaisesRegex(UserError, f"^{message}"):
                changed(**changes).check(self.folder)

    def test_trains_simclr(self) -> None:
        method = dataclasses.replace(SIMCLR, view_size=32)
        printed = run(changed(method=method, stop_after_steps=2, log_every=1), self.folder)
        self.assertIn("done: 2 steps", printed)
        events = self.events(self.folder)
        self.assertAlmostEqual(events.Scalars("loss/loss_chance")[0].value, math.log(7), places=5)
        self.assertEqual(events.Tags()["images"], ["inputs"])
        self.assertIn("projection.2.weight", final(self.folder)["parameters"])
        self.assertIn("views: 8 of 32x32 pixels", changed(method=method).plan(self.folder))


def take_no_step(task: PretrainTask, step: TrainingStep, state: TrainState, *_: Any) -> StepResult:
    return StepResult(state._replace(step=state.step + 1), {"loss": torch.zeros(())}, {})


if __name__ == "__main__":
    absltest.main()
