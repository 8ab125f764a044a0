"""Types and values of bindings; every mistake is reported under the binding's own name."""

import dataclasses
import shutil
from unittest import mock

import gin
from absl.testing import absltest, parameterized

from jigclu import config
from jigclu.config import registry
from jigclu.tasks.linear import LinearTask
from tests.config.config_test_case import DEMO, ConfigTestCase
from tests.small_tasks import KNN, PRETRAINING

SOURCES = (
    "@ImageFolder(), @UnlabeledImages(), @open_folder(), @ImageList(), @TorchvisionImages(), "
    "@HuggingFaceImages(), @PackedImages(), @WebDatasetImages(), @ProceduralImages(), "
    "@VocSegmentation(), @SegmentationFolders(), @ListedSubset(), @BalancedSubset(), @HeldOut()"
)
TASKS = (
    "@pretrain(), @linear(), @finetune(), @segment(), @knn(), @features(), @export(), @pack(), "
    "@report(), @benchmark(), @reproduce(), @compare()"
)


class TypesTest(ConfigTestCase):
    @parameterized.parameters(
        (
            "pretrain.batch_size='64'",
            "'64', of type str; expected int; write pretrain.batch_size = 64",
        ),
        (
            "pretrain.batch_size=1e3",
            "1000.0, of type float; expected int; write pretrain.batch_size = 1000",
        ),
        ("pretrain.batch_size=64.5", "64.5, of type float; expected int"),
        ("pretrain.batch_size=True", "True, of type bool; expected int"),
        ("pretrain.batch_size=None", "None, of type NoneType; expected int"),
        ("compute.compile=1", "1, of type int; expected bool or 'auto'"),
        ("loading.workers='many'", "'many', of type str; expected int or 'auto'"),
        ("evaluation/loading.workers=0.5", "0.5, of type float; expected int or 'auto'"),
        (
            "schedule.stop_after_steps='3'",
            "'3', of type str; expected int or None; write schedule.stop_after_steps = 3",
        ),
        ("pretrain.encoder=18", "18, of type int; expected str"),
        ("pretrain.init_from=3", "3, of type int; expected str or None"),
        (
            "jigsaw.crop_scale=(0.2, 1.0, 2.0)",
            "(0.2, 1.0, 2.0), of type tuple; expected tuple[float, float]",
        ),
        ("jigsaw.crop_scale=0.2", "0.2, of type float; expected tuple[float, float]"),
        ("augmentation.hue='a'", "'a', of type str; expected float"),
    )
    def test_rejects_values_of_other_types(self, binding: str, message: str) -> None:
        name = binding.split("=")[0]
        self.assertEqual(self.rejected(binding), f"{name} is {message}")

    @parameterized.parameters(
        (
            "pretrain.optimizer=@cosine_decay()",
            "a reference to cosine_decay",
            "one of @sgd(), @lars(), @adamw()",
        ),
        ("schedule.decay=@sgd()", "a reference to sgd", "one of @cosine_decay(), @step_decay()"),
        ("pretrain.source=@sgd()", "a reference to sgd", f"one of {SOURCES}"),
        (
            "pretrain.source=@ProceduralImages",
            "@ProceduralImages without parentheses",
            f"one of {SOURCES}; write pretrain.source = @ProceduralImages()",
        ),
        (
            "pretrain.method=@sgd()",
            "a reference to sgd",
            "one of @jigsaw(), @simclr(), @moco(), @simsiam(), @byol()",
        ),
        ("pretrain.schedule=@sgd()", "a reference to sgd", "one of @schedule()"),
        ("knn_evaluator.loading=@sgd()", "a reference to sgd", "one of @loading()"),
        (
            "jigsaw.augmentation=@loss_scaling()",
            "a reference to loss_scaling",
            "one of @augmentation()",
        ),
        (
            "pretrain.evaluators=@sgd()",
            "a reference to sgd",
            "a tuple of @knn_evaluator(), @probe_evaluator()",
        ),
        (
            "pretrain.evaluators=@knn_evaluator()",
            "a reference to knn_evaluator",
            "a tuple of @knn_evaluator(), @probe_evaluator(); "
            "write pretrain.evaluators = (@knn_evaluator(),)",
        ),
        ("launch.task=@sgd()", "a reference to sgd", f"one of {TASKS}"),
    )
    def test_rejects_references_to_others(self, binding: str, made: str, expected: str) -> None:
        name = binding.split("=")[0]
        message = f"{name} is {made}; expected {expected}"
        self.assertEqual(self.rejected(binding), message)

    def test_rejects_a_tuple_with_an_item_of_another_type(self) -> None:
        message = self.rejected("pretrain.evaluators=(@knn_evaluator(), @sgd(), @sgd, 3)")
        self.assertStartsWith(
            message,
            "pretrain.evaluators is (a reference to knn_evaluator, a reference to sgd, @sgd "
            "without parentheses, 3, of type int)",
        )
        self.assertEndsWith(message, "expected a tuple of @knn_evaluator(), @probe_evaluator()")

    def test_an_option_of_a_union_is_listed_with_none(self) -> None:
        message = self.rejected("linear.cache=@loading()", files=(self.linear_file(),))
        expected = "linear.cache is a reference to loading; expected one of @feature_cache(), None"
        self.assertEqual(message, expected)

    def test_missing_bindings_are_counted(self) -> None:
        self.assertStartsWith(
            self.rejected("schedule.decay=@step_decay()"),
            "not bound: step_decay.milestones, step_decay.factor; bind every value",
        )
        more = len(dataclasses.fields(LinearTask)) - 3
        self.assertStartsWith(
            self.rejected("launch.task=@linear()"),
            "not bound: linear.encoder, linear.small_stem, linear.init_from "
            f"and {more} more; bind every",
        )

    @parameterized.parameters(
        ("pretrain.optimizer=@lars()", "gin/base/lars.gin"),
        ("pretrain.optimizer=@adamw()", "gin/base/convnext.gin"),
        ("pretrain.method=@simclr()", "gin/base/simclr_method.gin"),
        ("schedule.decay=@step_decay()", "gin/base"),  # Several files bind it.
    )
    def test_missing_bindings_come_with_the_file_of_their_usual_values(
        self, binding: str, file: str
    ) -> None:
        self.assertIn(f" in a gin file ({file} has the usual values) ", self.rejected(binding))

    def test_data_has_no_usual_values(self) -> None:
        self.assertEqual(
            self.rejected("pretrain.source=@ImageFolder()", "ImageFolder.split='train'"),
            "not bound: ImageFolder.root; bind every value in a gin file or with --gin_bindings",
        )


class ValuesTest(ConfigTestCase):
    @parameterized.parameters(
        ("schedule.epochs=0", "it must be above 0, and finite"),
        ("schedule.warmup_epochs=7", "it must be in [0, epochs = 7)"),
        ("compute.precision='fp16'", "one of 'auto', 'float32', 'bfloat16', 'float16'"),
        ("compute.device='tpu'", "one of 'auto', 'cpu', 'cuda'"),
        ("loading.workers=-1", "0 or more, or 'auto'"),
        ("evaluation/loading.workers=-1", "0 or more, or 'auto'"),
        ("train_split/ProceduralImages.images=0", "1 or more"),
        ("saving.keep_last=0", "1 or more"),
        ("saving.keep_every=-1", "0 or more"),
        ("reporting.log_every=0", "1 or more"),
        ("eval_transform.crop=97", "in [1, resize = 96]"),
        ("eval_transform.std=(1.0, 0.0, 1.0)", "three numbers above 0"),
        ("knn_evaluator.neighbors=0", "in [1, 2000], the number of images of the bank"),
        ("knn_evaluator.neighbors=2001", "in [1, 2000], the number of images of the bank"),
        ("knn_evaluator.batch_size=0", "1 or more"),
        ("knn_evaluator.temperature=0.0", "above 0"),
        ("knn_evaluator.every=-1", "0 or more epochs"),
        ("pretrain.seed=-1", "in [0, 2**63)"),
        ("pretrain.batch_size=1", "2 or more images"),
        ("pretrain.learning_rate=-1.0", "above 0"),
        ("jigsaw.grid=1", "2 or more"),
        ("jigsaw.pooling_map=7", "multiple of grid = 2"),
        ("jigsaw.siblings='near'", "one of 'anywhere', 'apart', 'together'"),
        ("jigsaw.queue_size=-1", "0 or more"),
        ("jigsaw.single_every=-1", "0 or more steps"),
        ("jigsaw.projection_layers=0", "1 or more"),
        ("jigsaw.temperature=0.0", "above 0, and finite"),
        ("jigsaw.crop_scale=(0.5, 0.2)", "(least, most) in (0, 1]"),
        ("augmentation.hue=3.0", "in [0, 0.5]"),
        ("sgd.momentum=2.0", "in [0, 1)"),
        ("loss_scaling.growth=0.5", "1"),
    )
    def test_value_out_of_range_is_reported_under_its_binding(
        self, binding: str, expected: str
    ) -> None:
        name, _, value = binding.partition("=")
        message = self.rejected(binding)
        self.assertStartsWith(message, f"{name} is {value}; it must be ")
        self.assertIn(expected, message)

    def test_message_names_binding_value_and_range(self) -> None:
        self.assertEqual(
            self.rejected("schedule.epochs=0"),
            "schedule.epochs is 0; it must be above 0, and finite",
        )

    def test_scope_of_a_file_is_part_of_the_name(self) -> None:
        text = "include 'gin/demo.gin'\nevaluation/loading.workers = -1\n"
        self.assertEqual(
            self.rejected(files=(self.file(text),)),
            "evaluation/loading.workers is -1; it must be 0 or more, or 'auto'",
        )

    def test_value_without_a_scope_is_named_without_one(self) -> None:
        # References within scopes read it, but the scopes are not part of the binding.
        message = self.rejected("ProceduralImages.size=8")
        self.assertStartsWith(message, "ProceduralImages.size is 8; it must be 16 or more")

    def test_value_of_a_reference_within_a_binding(self) -> None:
        message = self.rejected(
            "schedule.decay=@step_decay()", "step_decay.milestones=()", "step_decay.factor=-3.0"
        )
        self.assertEqual(message, "step_decay.factor is -3.0; it must be in [0, 1]")

    def test_initial_weights_exclude_a_checkpoint_to_resume(self) -> None:
        message = self.rejected("pretrain.init_from='a.pt'", "pretrain.resume_from='b.pt'")
        self.assertStartsWith(message, "pretrain.init_from is 'a.pt', but resume_from is 'b.pt'")


class CheckTest(ConfigTestCase):
    """Mistakes that only `Configuration.check` can find."""

    def test_accepts_the_demo(self) -> None:
        config.load([DEMO], []).check(self.folder / "run")

    @parameterized.parameters(
        ("jigsaw.patch_size=4", "montages of 8 pixels into 1x1 features"),
        ("pretrain.batch_size=2001", "at most 2000, the training images"),
        ("pretrain.micro_batch_size=5", "it must divide the 64 images per device"),
        ("pretrain.micro_batch_size=0", "it must divide the 64 images per device"),
        ("jigsaw.smaller_patches=((1, 64),)", "less than jigsaw.patch_size = 48"),
        ("jigsaw.smaller_patches=((8, 32),)", "within (0, 7)"),
    )
    def test_error_names_the_binding(self, binding: str, expected: str) -> None:
        name, _, value = binding.partition("=")
        message = self.rejected_by_check(binding)
        self.assertStartsWith(message, f"{name} is {value}; ")
        self.assertIn(expected, message)

    def test_unknown_encoder_and_missing_device(self) -> None:
        message = self.rejected_by_check("pretrain.encoder='resnet19'")
        self.assertStartsWith(message, "pretrain.encoder 'resnet19' is unknown; did you mean")
        with mock.patch("torch.cuda.is_available", return_value=False):
            message = self.rejected_by_check("compute.device='cuda'")
        self.assertStartsWith(message, "compute.device is 'cuda', but torch sees no GPU")

    @parameterized.parameters("linear.cache=None", "pretrain.seed=0")
    def test_compiler_is_missed_under_the_group_that_every_task_shares(self, binding: str) -> None:
        files = (self.linear_file(),) if binding.startswith("linear") else (DEMO,)
        with mock.patch.object(shutil, "which", return_value=None):
            config.load(files, [binding, "compute.compile='auto'"]).check(self.folder / "run")
            message = self.rejected_by_check(binding, "compute.compile=True", files=files)
        self.assertStartsWith(message, "compute.compile is True, but there is no C++ compiler")

    def test_cached_features_need_no_compiler(self) -> None:
        with mock.patch.object(shutil, "which", return_value=None):
            loaded = config.load([self.linear_file()], ["compute.compile=True"])
            assert isinstance(loaded.task, LinearTask) and loaded.task.cache is not None
            loaded.check(self.folder / "run")


class NameSettingTest(absltest.TestCase):
    def test_field_is_found_wherever_it_is(self) -> None:
        task = dataclasses.replace(PRETRAINING, evaluators=(KNN,))
        for message, expected in (
            ("batch_size is 5; x", "pretrain.batch_size is 5; x"),
            ("init_from: a.pth is gone", "pretrain.init_from: a.pth is gone"),
            ("epochs is 0", "schedule.epochs is 0"),
            ("patch_size is 4", "jigsaw.patch_size is 4"),
            ("hue is 2", "augmentation.hue is 2"),
            ("neighbors is 0", "knn_evaluator.neighbors is 0"),
            ("method.augmentation.hue was 1", "augmentation.hue was 1"),
            ("schedule.decay was 1", "schedule.decay was 1"),
            ("method was 'Jigsaw'", "pretrain.method was 'Jigsaw'"),
        ):
            self.assertEqual(registry.name_setting(message, task), expected)

    def test_owner_nearest_to_the_task_wins(self) -> None:
        # The evaluator has a batch_size, too.
        task = dataclasses.replace(PRETRAINING, evaluators=(KNN,))
        self.assertEqual(registry.name_setting("batch_size is", task), "pretrain.batch_size is")

    def test_fields_within_a_sentence_are_named_too(self) -> None:
        message = "seed was 0: bind init_from to /data/init_from/a.pt, or 'batch_size'; keep_last"
        self.assertEqual(
            registry.name_setting(message, PRETRAINING),
            "pretrain.seed was 0: bind pretrain.init_from to /data/init_from/a.pt, or "
            "'batch_size'; saving.keep_last",
        )

    def test_other_messages_stay(self) -> None:
        for message in ("checkpoint a.pt does not exist", "schedule.grid was 2", "", "devices"):
            self.assertEqual(registry.name_setting(message, PRETRAINING), message)


class RegisterTest(absltest.TestCase):
    def test_binding_names(self) -> None:
        names = registry.binding_names()
        for name in ("schedule.epochs", "knn_evaluator.neighbors", "reproduce.stages"):
            self.assertIn(name, names)
        self.assertLen(set(names), len(names))

    def test_gin_knows_every_configurable(self) -> None:
        for name in registry.CONFIGURABLES:
            self.assertEqual(gin.get_configurable(name).__name__, name)

    def test_loader_itself_cannot_be_bound(self) -> None:
        self.assertNotIn("reproduce.load", registry.binding_names())


if __name__ == "__main__":
    absltest.main()
