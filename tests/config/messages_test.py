"""Mistakes in names and syntax: one line with the nearest valid name."""

import dataclasses
import logging
import shlex

import gin
from absl.testing import absltest, parameterized

from jigclu import config
from jigclu.config import messages
from jigclu.system.errors import UserError
from tests.config.config_test_case import DEMO, ConfigTestCase
from tests.small_tasks import KNN, PRETRAINING


class NamesTest(ConfigTestCase):
    @parameterized.parameters(
        ("pretrain.batchsize=3", "'batchsize'", "; did you mean pretrain.batch_size?"),
        ("pretrian.batch_size=3", "'pretrian'", "; did you mean pretrain?"),
        ("train.batch_size=3", "'train'", "; did you mean pretrain?"),
        ("knn_evaluator.neighbours=3", "'neighbours'", "; did you mean knn_evaluator.neighbors?"),
        ("knn_evaluator.neighbors_=3", "'neighbors_'", "; did you mean knn_evaluator.neighbors?"),
        ("pretrain.optimizer=@sgt()", "'@sgt()'", "; did you mean sgd?"),
        ("pretrain.optimizer=@SGD()", "'@SGD()'", "; did you mean sgd?"),
        ("eval_transform.normalisation=3", "; it has resize, crop, mean, std"),
        ("compute.amp=True", "; it has device, precision, compile, "),
        ("jigsaw.foo=3", "'foo'; it has grid, "),
        ("pretrain.method=@dino()", "'@dino()'; docs/configuration.md lists all names"),
    )
    def test_misspelled_name_gets_a_hint(self, binding: str, *parts: str) -> None:
        message = self.rejected(binding)
        self.assertStartsWith(message, f"--gin_bindings={binding!r}: ")
        for part in parts:
            self.assertIn(part, message)
        self.assertNotIn(".;", message)

    @parameterized.parameters(
        ("pretrain.epochs=3", "schedule.epochs"),
        ("pretrain.temperature=3", "jigsaw.temperature or knn_evaluator.temperature"),
        ("pretrain.precision='auto'", "compute.precision"),
        ("linear.resize=3", "eval_transform.resize"),
        ("linear.learning_rate_s=3", "linear.learning_rates"),
        ("linear.quality=3", "pack.quality"),
        ("pretrain.patch_size=3", "jigsaw.patch_size"),
    )
    def test_parameter_of_another_configurable_is_named(self, binding: str, names: str) -> None:
        self.assertEndsWith(self.rejected(binding), f"; did you mean {names}?")

    def test_misspelled_name_in_a_file_is_reported_with_its_line(self) -> None:
        file = self.file("include 'gin/demo.gin'\n\nknn_evaluator.neighbours = 3\n")
        message = self.rejected(files=(file,))
        self.assertStartsWith(message, f"{file}, line 3: Configurable")
        self.assertIn("did you mean knn_evaluator.neighbors?", message)


class SyntaxTest(ConfigTestCase):
    @parameterized.parameters(
        ("pretrain.seed=%SEED", "%SEED is read but not bound; bind it as SEED = …"),
        ("pretrain.seed=", "pretrain.seed=", "cannot read the value"),
        ("pretrain.seed", "expected name = value"),
        ("pretrain.learning_rate=1e-3f", "a binding must end after its value"),
        ("jigsaw.crop_scale=(1", "jigsaw.crop_scale=(1", ": ( is not closed"),
        ("=3", "expected name = value"),
        ("pretrain.seed=@pretrain()", "a reference or macro refers to itself"),
        ("ProceduralImages.size=%size", "bind it as size = …; did you mean SIZE?"),
        ("sizes=32", "sizes = 32 never takes effect", "did you mean SIZE?"),
        ("import no_such_module", "pass --allow_imports"),
        ("include 'gin/demo.gin'", "is not a binding; use --gin_file"),
        ("include gin/demo.gin", "is not a binding; use --gin_file"),
    )
    def test_is_reported_in_one_line(self, binding: str, *parts: str) -> None:
        message = self.rejected(binding)
        for part in parts:
            self.assertIn(part, message)

    @parameterized.parameters(
        ("pretrain.optimizer=sgd()", '"pretrain.optimizer = @sgd()"'),
        ("pretrain.encoder=resnet18", "\"pretrain.encoder = 'resnet18'\""),
        ("pretrain.small_stem=true", '"pretrain.small_stem = True"'),
        ("pretrain.init_from=/data/a b.pt", "\"pretrain.init_from = '/data/a b.pt'\""),
    )
    def test_mistake_on_the_command_line_is_answered_by_the_flag_to_use(
        self, binding: str, flag: str
    ) -> None:
        message = self.rejected(binding)
        self.assertEndsWith(message, f"; use --gin_bindings={flag}")
        (words,) = shlex.split(flag)
        self.assertNotIn("cannot read", self.message_after(words))

    def message_after(self, binding: str) -> str:
        """Returns the message about a binding that may be accepted, or none."""
        try:
            config.load([DEMO], [binding])
        except UserError as error:
            return str(error)
        return ""

    def test_two_bindings_in_one_flag_become_two_flags(self) -> None:
        message = self.rejected("pretrain.seed=1, schedule.epochs=3")
        self.assertEndsWith(
            message,
            '; use --gin_bindings="pretrain.seed = 1" --gin_bindings="schedule.epochs = 3"',
        )

    def test_mistake_in_a_file_is_reported_with_its_line_and_the_corrected_one(self) -> None:
        file = self.file("include 'gin/demo.gin'\npretrain.seed = 3\npretrain.encoder = resnet18\n")
        self.assertEqual(
            self.rejected(files=(file,)),
            f"{file}, line 3: cannot read the value resnet18 in 'pretrain.encoder = resnet18'; "
            "write pretrain.encoder = 'resnet18'",
        )

    @parameterized.parameters(
        "pretrain.evaluators = (@knn_evaluator(),\npretrain.seed = 3\n",
        "pretrain.evaluators = (@knn_evaluator(),\n",
    )
    def test_bracket_that_is_not_closed_is_reported_with_its_line(self, text: str) -> None:
        message = self.rejected(files=(self.file(f"include 'gin/demo.gin'\n{text}"),))
        self.assertEndsWith(
            message, ", line 2: ( is not closed in 'pretrain.evaluators = (@knn_evaluator(),'"
        )

    def test_include_without_quotes_is_corrected(self) -> None:
        file = self.file("pretrain.seed = 3\ninclude gin/demo.gin\n")
        message = self.rejected(files=(file,))
        self.assertStartsWith(message, f"{file}, line 2: ")
        self.assertEndsWith(message, "; write include 'gin/demo.gin'")

    def test_path_that_does_not_exist_is_reported_with_the_bindings_that_read_it(self) -> None:
        message = self.rejected(
            "pretrain.source=@UnlabeledImages()",
            f"UnlabeledImages.root='{config.ROOT}'",
            files=("gin/pretrain_r18_tinyimagenet.gin",),
        )
        self.assertStartsWith(message, "ImageFolder.root: ")
        self.assertEndsWith(message, " (read for knn_evaluator.bank)")


class OneLineErrorsTest(parameterized.TestCase):
    def caught(self, error: Exception) -> str:
        with self.assertRaises(UserError) as caught, messages.one_line_errors("a.gin", ["sgd"]):
            raise error
        return str(caught.exception)

    def test_names_the_place_and_joins_lines(self) -> None:
        self.assertEqual(self.caught(ValueError("one\n  two\n    ^\n")), "a.gin: one two")

    def test_drops_the_chain_of_calls_that_gin_appends_to_a_user_error(self) -> None:
        chain = "\n  In call to configurable 'schedule'"
        with self.assertRaises(UserError) as caught, messages.one_line_errors("a.gin", []):
            gin.utils.augment_exception_message_and_reraise(UserError("epochs is 0"), chain)
        self.assertEqual(str(caught.exception), "epochs is 0")

    def test_other_errors_pass(self) -> None:
        with self.assertRaises(KeyError), messages.one_line_errors("a.gin", []):
            raise KeyError("a mistake in this project")

    def test_logging_is_off_within_the_block_only(self) -> None:
        with self.assertNoLogs(), messages.one_line_errors("a.gin", []):
            logging.error("gin could not open a file")
        with self.assertLogs():
            logging.error("another error")

    def test_logging_is_on_after_an_error(self) -> None:
        self.caught(ValueError("wrong"))
        with self.assertLogs():
            logging.error("another error")


class HintTest(parameterized.TestCase):
    @parameterized.parameters(
        ("sgt", "; did you mean sgd?"), ("lasr", "; did you mean lars?"), ("adamw", "")
    )
    def test_nearest_name(self, name: str, expected: str) -> None:
        self.assertEqual(messages.hint(name, ["lars", "sgd"]), expected)

    def test_without_names(self) -> None:
        self.assertEqual(messages.hint("sgd", []), "")


class FindOwnerTest(absltest.TestCase):
    def test_searches_breadth_first(self) -> None:
        task = dataclasses.replace(PRETRAINING, evaluators=(KNN,))
        # The task, its loading and that of its evaluator: the outermost one.
        self.assertIs(messages.find_owner(task, [], "batch_size"), task)
        self.assertIs(messages.find_owner(task, [], "hue"), PRETRAINING.method.augmentation)
        self.assertIs(messages.find_owner(task, [], "neighbors"), KNN)
        self.assertIsNone(messages.find_owner(task, [], "no_such_field"))

    def test_follows_a_path(self) -> None:
        method = PRETRAINING.method
        found = messages.find_owner(PRETRAINING, ["method", "augmentation"], "hue")
        self.assertIs(found, method.augmentation)
        self.assertIs(messages.find_owner(PRETRAINING, ["method"], "grid"), method)
        self.assertIsNone(messages.find_owner(PRETRAINING, ["method"], "epochs"))
        self.assertIsNone(messages.find_owner(PRETRAINING, ["methods", "augmentation"], "hue"))

    def test_values_without_fields_have_none(self) -> None:
        self.assertIsNone(messages.find_owner(3, [], "grid"))


if __name__ == "__main__":
    absltest.main()
