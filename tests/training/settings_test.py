"""Groups of settings: ranges, the schedule by hand, and what may change on resume."""

import dataclasses
from typing import Any

from absl.testing import absltest, parameterized

from jigclu.data.procedural import ProceduralImages
from jigclu.ops import optim, schedules
from jigclu.system.errors import UserError
from jigclu.system.on_resume import Rule
from jigclu.tasks.feature_cache import FeatureCache
from jigclu.tasks.linear import LinearTask
from jigclu.training.settings import Schedule, learning_settings, resume_rules, with_settings
from jigclu.training.task import TrainingTask
from tests.samples import SIMCLR, eval_transform
from tests.small_tasks import COMPUTE, FINETUNING, KNN, LABELED, LOADING, PRETRAINING, SCHEDULE

SAVING, REPORTING = PRETRAINING.saving, PRETRAINING.reporting
TRAIN = ProceduralImages(images=20, size=32, seed=0, split="train")
VAL = ProceduralImages(images=10, size=32, seed=0, split="val")
OTHER_VAL = ProceduralImages(images=9, size=32, seed=1, split="val")
LINEAR = LinearTask(
    **LABELED,
    source=TRAIN,
    val=VAL,
    learning_rates=(1.0, 3.0),
    weight_decays=(0.0,),
    momentum=0.9,
    held_out=0.5,
    cache=FeatureCache(folder="cache", views=2),
)


class RangeTest(parameterized.TestCase):
    @parameterized.parameters(
        (COMPUTE, {"device": "gpu"}, "device is 'gpu'; it must be one of .*'cuda'"),
        (
            COMPUTE,
            {"precision": "fp16"},
            "precision is 'fp16'; it must be one of 'auto', 'float32'",
        ),
        (LOADING, {"workers": -1}, "workers is -1; it must be 0 or more, or 'auto'"),
        (LOADING, {"prefetch": 0}, "prefetch is 0; it must be 1 or more"),
        (SCHEDULE, {"epochs": 0}, "epochs is 0; it must be above 0, and finite"),
        (SCHEDULE, {"warmup_epochs": 2}, r"warmup_epochs is 2; it must be in \[0, epochs = 2\)"),
        (SCHEDULE, {"warmup_epochs": -0.5}, r"warmup_epochs is -0\.5; it must be in \[0, epochs"),
        (SCHEDULE, {"stop_after_steps": 0}, "stop_after_steps is 0; it must be 1 or more, or None"),
        (SAVING, {"every": 0}, "every is 0; it must be 1 or more"),
        (SAVING, {"keep_last": 0}, "keep_last is 0; it must be 1 or more"),
        (SAVING, {"keep_every": -1}, "keep_every is -1; it must be 0 or more"),
        (REPORTING, {"log_every": 0}, "log_every is 0; it must be 1 or more"),
        (REPORTING, {"picture_every": -1}, "picture_every is -1; it must be 0 or more"),
    )
    def test_error_names_field_value_and_range(
        self, group: Any, changes: dict[str, Any], message: str
    ) -> None:
        with self.assertRaisesRegex(UserError, f"^{message}"):
            dataclasses.replace(group, **changes)

    @parameterized.parameters(
        (COMPUTE, {"device": "auto", "precision": "auto", "compile": "auto"}),
        (LOADING, {"workers": "auto", "prefetch": 1}),
        (SCHEDULE, {"epochs": 1, "warmup_epochs": 0.99, "stop_after_steps": 1}),
        (SAVING, {"every": 1, "keep_last": 1, "keep_every": 0}),
        (REPORTING, {"log_every": 1, "picture_every": 0}),
    )
    def test_accepts_the_ends_of_ranges(self, group: Any, changes: dict[str, Any]) -> None:
        dataclasses.replace(group, **changes)


class ScheduleTest(parameterized.TestCase):
    @parameterized.parameters((None, 12), (5, 5), (12, 12), (100, 12))
    def test_total_steps(self, stop_after_steps: int | None, expected: int) -> None:
        schedule = dataclasses.replace(SCHEDULE, epochs=4, stop_after_steps=stop_after_steps)
        self.assertEqual(schedule.total_steps(steps_per_epoch=3), expected)

    def factors(self, schedule: Schedule) -> list[float]:
        return [schedule.factor(step, steps_per_epoch=3) for step in range(12)]

    def test_factor_rises_linearly_then_decays_at_every_step(self) -> None:
        schedule = dataclasses.replace(SCHEDULE, epochs=4, warmup_epochs=1, per_epoch=False)
        # Quarters up to the first step after warm-up, then (1 + cos(pi * k / 9)) / 2.
        expected = [0.25, 0.5, 0.75, 1.0, 0.969846, 0.883022]
        expected += [0.75, 0.586824, 0.413176, 0.25, 0.116978, 0.030154]
        self.assertSequenceAlmostEqual(self.factors(schedule), expected, places=6)

    def test_factor_is_constant_within_an_epoch(self) -> None:
        schedule = dataclasses.replace(SCHEDULE, epochs=4, warmup_epochs=1, per_epoch=True)
        expected = [0.25, 0.5, 0.75, *[1.0] * 3, *[0.75] * 3, *[0.25] * 3]
        self.assertSequenceAlmostEqual(self.factors(schedule), expected)

    def test_factor_follows_the_decay(self) -> None:
        decay = schedules.StepDecay(milestones=(1, 3), factor=0.1)
        schedule = dataclasses.replace(SCHEDULE, epochs=4, decay=decay)
        expected = [*[1.0] * 3, *[0.1] * 6, *[0.01] * 3]
        self.assertSequenceAlmostEqual(self.factors(schedule), expected)

    def test_stopping_early_keeps_the_schedule_of_the_whole_run(self) -> None:
        stopped = dataclasses.replace(SCHEDULE, stop_after_steps=2)
        self.assertEqual(self.factors(stopped), self.factors(SCHEDULE))


class WithSettingsTest(absltest.TestCase):
    def test_replaces_fields_of_the_task_and_of_its_groups(self) -> None:
        changed = with_settings(PRETRAINING, batch_size=7, epochs=3, workers=1, patch_size=20)
        self.assertEqual(changed.batch_size, 7)
        self.assertEqual(changed.schedule, dataclasses.replace(SCHEDULE, epochs=3))
        self.assertEqual(changed.loading, dataclasses.replace(LOADING, workers=1))
        self.assertEqual(changed.method, dataclasses.replace(PRETRAINING.method, patch_size=20))  # type: ignore[type-var]
        self.assertEqual(changed.saving, SAVING)
        self.assertEqual((PRETRAINING.batch_size, SCHEDULE.epochs), (4, 2))

    def test_changes_a_group_that_is_replaced_itself(self) -> None:
        schedule = dataclasses.replace(SCHEDULE, per_epoch=False)
        changed = with_settings(PRETRAINING, schedule=schedule, epochs=3)
        self.assertEqual(changed.schedule, dataclasses.replace(schedule, epochs=3))

    def test_checks_the_new_values(self) -> None:
        with self.assertRaisesRegex(UserError, "epochs is 0"):
            with_settings(PRETRAINING, epochs=0)

    def test_rejects_unknown_settings(self) -> None:
        with self.assertRaisesRegex(ValueError, "PretrainTask has no settings epoch, neighbors"):
            with_settings(PRETRAINING, epoch=3, seed=1, neighbors=3)


OPTIMIZER_FIELDS = [
    *("optimizer.momentum", "optimizer.nesterov", "optimizer.weight_decay"),
    "optimizer.decay_norms_and_biases",
]
AUGMENTATION_FIELDS = [
    *("brightness", "contrast", "saturation", "hue", "jitter_probability"),
    *("grayscale_probability", "blur_probability", "blur_sigma_min", "blur_sigma_max"),
    *("flip_probability", "mean", "std"),
]
TRAINING_FIELDS = [
    "resume_from",
    *("seed", "batch_size", "encoder", "small_stem"),
    *("schedule", "schedule.epochs", "schedule.warmup_epochs", "schedule.decay"),
    *("schedule.per_epoch", "schedule.bad_steps"),
]
SUPERVISED_FIELDS = [
    *TRAINING_FIELDS,
    *("schedule.decay.milestones", "schedule.decay.factor", "init_from"),
    *("train_size", "crop_scale", "crop_ratio", "flip_probability"),
    *("eval_transform", "eval_transform.mean", "eval_transform.std"),
]


class LearningSettingsTest(parameterized.TestCase):
    def test_fields_that_pre_training_compares_on_resume(self) -> None:
        expected = [
            *TRAINING_FIELDS,
            *("method", "method.grid", "method.cross_ratio", "method.patch_size"),
            *("method.smaller_patches", "method.crop_scale", "method.crop_ratio"),
            *("method.scaled_decoding", "method.augmentation"),
            *(f"method.augmentation.{name}" for name in AUGMENTATION_FIELDS),
            *("method.siblings", "method.queue_size", "method.single_every"),
            *("method.projection_layers", "method.projection_norm"),
            *("method.pooling_map", "method.embedding_channels", "method.temperature"),
            *("method.base_temperature", "method.clustering_weight", "method.location_weight"),
            *("micro_batch_size", "optimizer", *OPTIMIZER_FIELDS),
            *("learning_rate", "init_from", "average_momentum", "online_probe"),
        ]
        self.assertCountEqual(learning_settings(PRETRAINING), expected)

    def test_fields_that_linear_evaluation_compares_on_resume(self) -> None:
        expected = ["learning_rates", "weight_decays", "momentum", "held_out"]
        expected += ["cache", "cache.views"]
        self.assertCountEqual(learning_settings(LINEAR), [*SUPERVISED_FIELDS, *expected])

    def test_fields_that_fine_tuning_compares_on_resume(self) -> None:
        expected = ["optimizer", *OPTIMIZER_FIELDS]
        expected += ["learning_rate", "head_learning_rate"]
        self.assertCountEqual(learning_settings(FINETUNING), [*SUPERVISED_FIELDS, *expected])

    def test_values_are_spelled_as_in_python(self) -> None:
        settings = learning_settings(PRETRAINING)
        self.assertEqual(settings["schedule.epochs"], "2")
        self.assertEqual(settings["encoder"], "'resnet18'")
        self.assertEqual(settings["method.augmentation.mean"], "(0.485, 0.456, 0.406)")
        self.assertEqual(settings["method"], "'Jigsaw'")
        self.assertEqual(settings["optimizer"], "'SGD'")

    @parameterized.parameters(
        ({"epochs": 3}, "schedule.epochs"),
        ({"warmup_epochs": 1}, "schedule.warmup_epochs"),
        ({"per_epoch": False}, "schedule.per_epoch"),
        ({"grid": 4}, "method.grid"),
        ({"learning_rate": 0.1}, "learning_rate"),
        ({"seed": 1}, "seed"),
        ({"micro_batch_size": 2}, "micro_batch_size"),
        ({"average_momentum": 0.9}, "average_momentum"),
    )
    def test_changes_of_learning_settings_are_found(
        self, changes: dict[str, Any], name: str
    ) -> None:
        before = learning_settings(PRETRAINING)
        after = learning_settings(with_settings(PRETRAINING, **changes))
        self.assertEqual([key for key in before if before[key] != after[key]], [name])

    def test_another_method_optimizer_or_decay_is_found(self) -> None:
        before = learning_settings(PRETRAINING)
        lars = optim.LARS(momentum=0.9, weight_decay=1e-4, trust_coefficient=0.001)
        decay = schedules.StepDecay(milestones=(1,), factor=0.1)
        for changes, name in (
            ({"method": SIMCLR}, "method"),
            ({"optimizer": lars}, "optimizer"),
            ({"decay": decay}, "schedule.decay"),
        ):
            after = learning_settings(with_settings(PRETRAINING, **changes))
            self.assertNotEqual(before[name], after[name])

    @parameterized.parameters(
        (PRETRAINING, "micro_batch_size", Rule.LOGGED),
        (PRETRAINING, "learning_rate", Rule.LOGGED),
        (PRETRAINING, "init_from", Rule.INITIAL),
        (PRETRAINING, "resume_from", Rule.LOGGED),
        (PRETRAINING, "source", Rule.BY_CONTENT),
        (PRETRAINING, "evaluators", Rule.FREE),
        (PRETRAINING, "schedule.stop_after_steps", Rule.FREE),
        (PRETRAINING, "batch_size", None),
        (PRETRAINING, "method.grid", None),
        (FINETUNING, "head_learning_rate", Rule.LOGGED),
        (FINETUNING, "eval_transform.crop", Rule.FREE),
        (FINETUNING, "init_from", Rule.SAME_WEIGHTS),
        (LINEAR, "cache.folder", Rule.FREE),
        (LINEAR, "cache.views", None),
    )
    def test_rules_stand_next_to_the_fields(
        self, task: TrainingTask, path: str, rule: Rule | None
    ) -> None:
        self.assertIs(resume_rules(task).get(path), rule)

    def test_probes_without_views_learn_from_evaluation_crops(self) -> None:
        name = "eval_transform.crop"
        recipe = dataclasses.replace(LINEAR, cache=FeatureCache(folder="cache", views=0)).recipe()
        self.assertEqual(recipe.settings[name], "32")
        self.assertNotIn(name, recipe.rules)
        self.assertNotIn(name, LINEAR.recipe().settings)

    @parameterized.parameters(
        (PRETRAINING, {"device": "auto", "precision": "bfloat16", "compile": True}),
        (PRETRAINING, {"channels_last": False, "workers": 3, "prefetch": 1}),
        (PRETRAINING, {"loss_scaling": dataclasses.replace(COMPUTE.loss_scaling, initial=2.0)}),
        (PRETRAINING, {"stop_after_steps": 1}),
        (PRETRAINING, {"every": 1, "keep_last": 3, "keep_every": 0}),
        (PRETRAINING, {"log_every": 1, "picture_every": 0, "evaluators": (KNN,)}),
        (PRETRAINING, {"source": VAL}),
        (LINEAR, {"cache": FeatureCache(folder="other", views=2), "workers": 1}),
        (LINEAR, {"val": OTHER_VAL, "val_batch_size": 3}),
        (FINETUNING, {"evaluate_every": 0, "precision": "bfloat16"}),
        (FINETUNING, {"eval_transform": eval_transform(resize=40, crop=24)}),
    )
    def test_what_a_resumed_run_may_change(
        self, task: TrainingTask, changes: dict[str, Any]
    ) -> None:
        changed = with_settings(task, **changes)
        self.assertNotEqual(changed, task)
        self.assertEqual(learning_settings(changed), learning_settings(task))


if __name__ == "__main__":
    absltest.main()
