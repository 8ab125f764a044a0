"""What may change when a run goes on, and the way of a state to a checkpoint and back."""

from pathlib import Path
from typing import Any

import torch
from absl.testing import absltest, parameterized

from jigclu.system.errors import UserError
from jigclu.training import checkpoint, resume
from jigclu.training.state import TrainState

OLD = "pretrain.seed = 0\ntrain.workers = 8\nknn.neighbors = 20\nImageFolder.root = 'a'"


MACHINE = {"precision": ["bfloat16", "a reason"]}


def contents_of(config: str, version: str = "0.2.0") -> dict[str, Any]:
    return {"config": config, "versions": {"jigclu": version}}


def state_of(value: float) -> TrainState:
    return TrainState(
        step=int(value),
        parameters={"w": torch.full((2, 3), value)},
        buffers={"running_mean": torch.full((3,), value + 1)},
        momentum={"w": torch.full((2, 3), value + 2)},
        loss_scale=torch.tensor(value + 3),
        good_steps=torch.tensor(int(value) + 4),
    )


class ResumeTest(parameterized.TestCase):
    @parameterized.parameters(
        ("loading.workers = 8", "loading.workers = 2"),
        ("knn_evaluator.neighbors = 20", "knn_evaluator.neighbors = 5"),
        ("ImageFolder.root = 'a'", "ImageFolder.root = 'b'"),
        ("loading.workers = 8", "loading.workers = 8\ntrain.device = 'cpu'"),
        ("loading.workers = 8", "loading.workers = 'auto'\ntrain.precision = 'float32'"),
    )
    def test_operation_may_change(self, old: str, new: str) -> None:
        resume.check_same_run(contents_of(OLD), OLD.replace(old, new), Path("c.pt"))

    @parameterized.parameters(
        ("pretrain.seed = 0", "pretrain.seed = 1", "pretrain.seed was 0 and is 1;"),
        ("pretrain.seed = 0\n", "", "pretrain.seed was 0 and is unbound;"),
        (
            "pretrain.seed = 0",
            "pretrain.seed = 0\nsgd.momentum = 0.5",
            "momentum was unbound and is",
        ),
        (
            "pretrain.seed = 0",
            "pretrain.seed = 2\ntrain.grid = 3",
            "jigsaw.grid .* and 1 more differ",
        ),
        ("ImageFolder.root = 'a'", "ImageList.path = 'a'", "c.pt .*ImageList.path was unbound"),
    )
    def test_learning_may_not(self, old: str, new: str, message: str) -> None:
        with self.assertRaisesRegex(UserError, message):
            resume.check_same_run(contents_of(OLD), OLD.replace(old, new), Path("c.pt"))

    def test_checkpoints_of_version_0_1_pooled_the_map_as_it_was(self) -> None:
        old, path = contents_of(OLD, "0.1.0"), Path("c.pt")
        resume.check_same_run(old, f"{OLD}\ntrain.pooling_map = None", path)
        with self.assertRaisesRegex(UserError, "c.pt .*jigsaw.pooling_map was None and is 8;"):
            resume.check_same_run(old, f"{OLD}\ntrain.pooling_map = 8", path)

    @parameterized.parameters("train", "finetune", "linear")
    def test_rejects_version_0_1_with_warm_up(self, task: str) -> None:
        config, path = f"{task}.seed = 0\n{task}.warmup_epochs = 0.5", Path("c.pt")
        resume.check_same_run(contents_of(config), config, path)
        with self.assertRaisesRegex(UserError, "c.pt was written by version 0.1.*init_from"):
            resume.check_same_run(contents_of(config, "0.1.0"), config, path)
        without = config.replace("0.5", "0")
        resume.check_same_run(contents_of(without, "0.1.0"), without, path)

    @parameterized.parameters(
        ({"machine": MACHINE, "config": "compute.precision = 'auto'"}, "bfloat16"),
        (
            {"config": "pretrain.seed = 0\nlinear.precision = 'float16'\nsgd.momentum = 0"},
            "float16",
        ),
        ({"config": "pretrain.seed = 0"}, None),
    )
    def test_says_in_which_precision_a_run_started(
        self, contents: dict[str, Any], precision: str | None
    ) -> None:
        self.assertEqual(resume.started_precision(contents), precision)

    def test_loss_scale_starts_anew_in_another_precision(self) -> None:
        contents = resume.to_checkpoint(state_of(5.0), OLD, "ab12", [], MACHINE)
        state = resume.restore(state_of(0.0), contents, Path("c.pt"), "float16")
        self.assertEqual((state.step, state.loss_scale, state.good_steps), (5, 3.0, 4))

    def test_data_may_not(self) -> None:
        resume.check_same_data("ab12", "ab12", Path("c.pt"))
        with self.assertRaisesRegex(UserError, "c.pt is of a run on other images"):
            resume.check_same_data("ab12", "cd34", Path("c.pt"))

    def test_state_survives_the_file(self) -> None:
        folder = Path(self.create_tempdir().full_path)
        torch.manual_seed(7)
        contents = resume.to_checkpoint(
            state_of(5.0), OLD, "ab12", [(0, {"knn_accuracy": 0.25})], MACHINE
        )
        self.assertCountEqual(contents, (*checkpoint.KEYS, "machine"))
        path = checkpoint.save(folder, contents, 5, keep_last=1, keep_every=0)
        expected = torch.rand(3)

        target = state_of(0.0)
        loaded = checkpoint.load(path, "cpu")
        filled = resume.restore(target, loaded, path, "bfloat16")
        for actual, wanted in zip(filled, state_of(5.0), strict=True):
            torch.testing.assert_close(actual, wanted, rtol=0, atol=0)
        # Into the tensors themselves, which the model holds.
        self.assertIs(filled.parameters["w"], target.parameters["w"])
        self.assertEqual(loaded["config"], OLD)
        self.assertEqual(loaded["scores"], [(0, {"knn_accuracy": 0.25})])
        self.assertTrue(torch.equal(torch.rand(3), expected))
        self.assertEqual(loaded["versions"]["torch"], str(torch.__version__))

    @parameterized.parameters("parameters", "buffers")
    def test_refuses_another_architecture(self, part: str) -> None:
        contents: dict[str, Any] = resume.to_checkpoint(state_of(5.0), OLD, "ab12", [], MACHINE)
        contents[part] = {"other": torch.zeros(1)}
        target = state_of(0.0)
        with self.assertRaisesRegex(UserError, "c.pt is of another architecture: .*missing"):
            resume.restore(target, contents, Path("c.pt"), "bfloat16")


if __name__ == "__main__":
    absltest.main()
