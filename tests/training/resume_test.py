"""Settings that a resumed run may change, and conversion of a state to a checkpoint and back."""

from pathlib import Path
from typing import Any

import torch
from absl.testing import absltest, parameterized

from jigclu.system.errors import UserError
from jigclu.system.machine import Choice, Machine
from jigclu.system.on_resume import Rule
from jigclu.training import checkpoint, checkpoint_contents, resume
from jigclu.training.process import Process
from jigclu.training.resume import Recipe
from jigclu.training.state import TrainState
from tests.small_tasks import TaskTestCase

RECIPE = Recipe(
    task="pre-training",
    settings={
        "seed": "0",
        "schedule.epochs": "7",
        "method": "Jigsaw",
        "learning_rate": "0.1",
        "init_from": "None",
    },
    rules={
        "learning_rate": Rule.LOGGED,
        "init_from": Rule.INITIAL,
        "workers": Rule.FREE,
        "source": Rule.BY_CONTENT,
    },
    images="ab12",
    weights="",
)
PATH = Path("c.pt")
NEW_RUN = "--workdir=other"


def machine(precision: str) -> Machine:
    off = Choice(False, "a reason")
    return Machine(
        precision=Choice(precision, "a reason"),
        compile=off,
        channels_last=off,
        workers=Choice(0, "bound"),
        threads=Choice(1, "bound"),
        keep_freed_memory=off,
        pin_memory=off,
        cudnn_benchmark=off,
        tf32=off,
    )


def process(workdir: Path = Path("run"), precision: str = "bfloat16") -> Process:
    return Process(workdir, "pretrain.seed = 0", torch.device("cpu"), machine(precision))


def create_state(value: float) -> TrainState:
    return TrainState(
        step=int(value),
        parameters={"w": torch.full((2, 3), value)},
        buffers={"running_mean": torch.full((3,), value + 1)},
        moments={
            "first_moment": {"w": torch.full((2, 3), value + 2)},
            "second_moment": {"w": torch.full((2, 3), value + 6)},
        },
        updates=torch.tensor(int(value) + 5),
        loss_scale=torch.tensor(value + 3),
        good_steps=torch.tensor(int(value) + 4),
    )


def create_contents(value: float) -> dict[str, Any]:
    return resume.to_checkpoint(
        create_state(value), process(), RECIPE, [(0, {"knn_accuracy": 0.25})]
    )


class ResumeTest(TaskTestCase):
    def test_same_recipe_resumes(self) -> None:
        resume.check_same_run(create_contents(5.0), RECIPE, PATH, NEW_RUN, False)

    @parameterized.parameters(
        (
            {"seed": "1", "learning_rate": "0.2"},
            "seed was 0 and is 1: c.pt comes from another run; use the old values to resume it, "
            "another --workdir for a new run, or start one from its encoder by --workdir=other$",
        ),
        ({"method": None}, "method was Jigsaw and is absent: c.pt"),
        ({"optimizer.momentum": "0.5"}, "optimizer.momentum was absent and is 0.5: c.pt"),
        ({"seed": "2", "schedule.epochs": "8"}, r"seed .* \(1 more settings differ\): c.pt"),
    )
    def test_another_recipe_is_rejected(self, change: dict[str, Any], message: str) -> None:
        settings = {k: v for k, v in (RECIPE.settings | change).items() if v is not None}
        with self.assertRaisesRegex(UserError, f"^{message}"):
            resume.check_same_run(
                create_contents(5.0), RECIPE._replace(settings=settings), PATH, NEW_RUN, False
            )

    def test_other_images_are_rejected(self) -> None:
        with self.assertRaisesRegex(UserError, "^source has other images than before.*c.pt"):
            resume.check_same_run(
                create_contents(5.0), RECIPE._replace(images="cd34"), PATH, NEW_RUN, False
            )

    def changed(self, **settings: str) -> Recipe:
        return RECIPE._replace(settings=RECIPE.settings | settings)

    @parameterized.parameters(
        ({}, "bfloat16", ""),
        ({"learning_rate": "0.2"}, "bfloat16", "learning_rate was 0.1 and is 0.2"),
        ({}, "float32", "precision was 'bfloat16' and is 'float32'"),
        (
            {"learning_rate": "0.2", "init_from": "'w.pth'"},
            "float32",
            "learning_rate was 0.1 and is 0.2; init_from was None and is 'w.pth', which has no "
            "effect on a resumed run; precision was 'bfloat16' and is 'float32'",
        ),
    )
    def test_accepted_changes_are_described(
        self, changes: dict[str, str], precision: str, message: str
    ) -> None:
        recipe = self.changed(**changes)
        resume.check_same_run(create_contents(5.0), recipe, PATH, NEW_RUN, False)
        expected = f"changed since step 5: {message}" if message else ""
        self.assertEqual(resume.describe_changes(create_contents(5.0), recipe, precision), expected)

    def test_a_finished_run_rejects_settings_that_affect_only_its_steps(self) -> None:
        recipe = self.changed(learning_rate="0.2", init_from="'w.pth'")
        with self.assertRaisesRegex(UserError, "^learning_rate was 0.1 and is 0.2: c.pt"):
            resume.check_same_run(create_contents(5.0), recipe, PATH, NEW_RUN, True)
        resume.check_same_run(create_contents(5.0), RECIPE, PATH, NEW_RUN, True)

    @parameterized.parameters(
        ("'a'", "1f", "'a'", "1f", ""),
        ("'a'", "1f", "'b'", "1f", "init_from was 'a' and is 'b'"),
        ("'a'", "1f", "'a'", "", ""),
        ("'a'", "1f", "'a'", "2e", "init_from has other weights now, which have no effect on a "),
        ("'a'", "", "'a'", "2e", ""),
    )
    def test_the_same_weights_may_have_moved_or_be_missing(
        self, name: str, weights: str, now: str, weights_now: str, change: str
    ) -> None:
        contents, recipe = self.evaluation(name, weights), self.changed(init_from=now)
        rules = RECIPE.rules | {"init_from": Rule.SAME_WEIGHTS}
        recipe = recipe._replace(rules=rules, weights=weights_now)
        resume.check_same_run(contents, recipe, PATH, NEW_RUN, False)
        described = resume.describe_changes(contents, recipe, "bfloat16")
        self.assertStartsWith(described.removeprefix("changed since step 5: "), change)
        self.assertEqual(bool(described), bool(change))

    @parameterized.parameters(("1f", "2e"), ("1f", ""), ("", ""), ("", "2e"))
    def test_other_weights_are_rejected(self, weights: str, weights_now: str) -> None:
        recipe = self.changed(init_from="'b'")._replace(
            rules=RECIPE.rules | {"init_from": Rule.SAME_WEIGHTS}, weights=weights_now
        )
        with self.assertRaisesRegex(UserError, "^init_from was 'a' and is 'b': c.pt"):
            contents = self.evaluation("'a'", weights)
            resume.check_same_run(contents, recipe, PATH, NEW_RUN, False)

    def evaluation(self, init_from: str, weights: str) -> dict[str, Any]:
        """Returns the contents of a checkpoint whose run began with the given weights."""
        contents = create_contents(5.0)
        contents["settings"] |= {"init_from": init_from, "init_from.content": weights}
        return contents

    def test_a_checkpoint_of_another_task_is_rejected_by_the_name_of_its_task(self) -> None:
        recipe = RECIPE._replace(task="fine-tuning", settings={"seed": "1", "train_size": "32"})
        expected = (
            "^c.pt is a pre-training checkpoint, which a fine-tuning run cannot resume; start"
        )
        with self.assertRaisesRegex(UserError, expected):
            resume.check_same_run(create_contents(5.0), recipe, PATH, NEW_RUN, False)
        old = create_contents(5.0)
        del old["settings"]["task"]
        with self.assertRaisesRegex(UserError, expected):
            resume.check_same_run(old, recipe, PATH, NEW_RUN, False)

    def test_settings_that_need_not_be_compared_any_more_may_differ(self) -> None:
        contents = create_contents(5.0)
        del contents["settings"]["init_from"]
        contents["settings"]["workers"] = "7"
        resume.check_same_run(contents, RECIPE, PATH, NEW_RUN, False)
        self.assertEqual(resume.describe_changes(contents, RECIPE, "bfloat16"), "")

    def test_checkpoint_has_the_precision_of_its_run(self) -> None:
        self.assertEqual(resume.started_precision(create_contents(5.0)), "bfloat16")

    def test_loss_scale_starts_anew_in_another_precision(self) -> None:
        state = resume.restore(create_state(0.0), create_contents(5.0), PATH, "float16")
        self.assertEqual((state.step, state.loss_scale, state.good_steps), (5, 3.0, 4))

    def test_state_is_restored_from_a_file(self) -> None:
        torch.manual_seed(7)
        contents = create_contents(5.0)
        self.assertCountEqual(contents, checkpoint_contents.KEYS)
        path = checkpoint.save(self.folder, contents, 5, keep_last=1, keep_every=0)
        expected = torch.rand(3)

        target = create_state(0.0)
        loaded = checkpoint.load(path, "cpu")
        restored = resume.restore(target, loaded, path, "bfloat16")
        for actual, wanted in zip(restored, create_state(5.0), strict=True):
            torch.testing.assert_close(actual, wanted, rtol=0, atol=0)
        # Filled in place, since the network holds these tensors.
        self.assertIs(restored.parameters["w"], target.parameters["w"])
        self.assertEqual(loaded["config"], "pretrain.seed = 0")
        self.assertEqual(loaded["scores"], [(0, {"knn_accuracy": 0.25})])
        self.assertTrue(torch.equal(torch.rand(3), expected))
        self.assertEqual(loaded["versions"]["torch"], str(torch.__version__))

    def test_starts_from_a_checkpoint_rather_than_initial_weights(self) -> None:
        path = checkpoint.save(self.folder, create_contents(5.0), 5, keep_last=1, keep_every=0)
        recipe = self.changed(learning_rate="0.2")
        start = resume.start(
            path, "weights.pth", process(self.folder), create_state(0.0), recipe, self.fail
        )
        self.assertEqual((start.state.step, start.history), (5, [(0, {"knn_accuracy": 0.25})]))
        self.assertEqual(start.message, f"resumed from {path} at step 5")
        self.assertEqual(start.changes, "changed since step 5: learning_rate was 0.1 and is 0.2")

    def test_a_new_run_starts_from_initial_weights(self) -> None:
        loaded: list[str] = []

        def initialize(init_from: str) -> str:
            loaded.append(init_from)
            return "loaded"

        start = resume.start(None, "weights.pth", process(), create_state(0.0), RECIPE, initialize)
        self.assertEqual((start.state.step, start.history), (0, []))
        self.assertEqual((start.message, start.changes), ("loaded", ""))
        self.assertEqual(loaded, ["weights.pth"])
        start = resume.start(None, None, process(), create_state(0.0), RECIPE, self.fail)
        self.assertEqual(start.message, "")

    def test_state_of_version_0_3_0_is_restored(self) -> None:
        contents = create_contents(5.0)
        contents["optimizer"] = {
            "momentum": {"w": torch.full((2, 3), 9.0)},
            "loss_scale": torch.tensor(8.0),
            "good_steps": torch.tensor(2),
        }
        before = create_state(0.0)._replace(moments={"momentum": {"w": torch.zeros(2, 3)}})
        state = resume.restore(before, contents, PATH, "bfloat16")
        self.assertEqual(state.moments["momentum"]["w"].tolist(), [[9.0] * 3] * 2)
        self.assertEqual((state.step, state.loss_scale, state.good_steps), (5, 8.0, 2))

    def test_runs_of_version_0_3_0_resume_with_the_settings_that_it_had(self) -> None:
        had = {"optimizer.nesterov": "False", "optimizer.decay_norms_and_biases": "True"}
        now = RECIPE.settings | had | {"method.augmentation": "'ColorAugmentation'"}
        contents = create_contents(5.0)
        contents["settings"] = RECIPE.settings | {"method.augmentation": "'AugmentationSettings'"}
        resume.check_same_run(contents, RECIPE._replace(settings=now), PATH, NEW_RUN, False)
        changed = self.changed(**had | {"optimizer.nesterov": "True"})
        with self.assertRaisesRegex(UserError, "^optimizer.nesterov was False and is True"):
            resume.check_same_run(create_contents(5.0), changed, PATH, NEW_RUN, False)

    @parameterized.parameters("parameters", "buffers")
    def test_rejects_another_network(self, part: str) -> None:
        contents = create_contents(5.0)
        contents[part] = {"other": torch.zeros(1)}
        with self.assertRaisesRegex(UserError, "c.pt .*missing"):
            resume.restore(create_state(0.0), contents, PATH, "bfloat16")


if __name__ == "__main__":
    absltest.main()
