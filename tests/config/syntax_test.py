"""Corrections of lines and values that gin or a type rejects."""

from absl.testing import absltest, parameterized

from jigclu.config import syntax

NAMES = ("sgd", "knn_evaluator", "ImageFolder", "augmentation")


class CorrectTest(parameterized.TestCase):
    @parameterized.parameters(
        ("a.b = sgd()", "a.b = @sgd()"),
        ("a.b=sgd", "a.b = @sgd()"),
        ("a.b = val/ImageFolder()", "a.b = @val/ImageFolder()"),
        ("a.b = (knn_evaluator(),)", "a.b = (@knn_evaluator(),)"),
        ("a.b = resnet18", "a.b = 'resnet18'"),
        ("a.b = [fp16, 'bf16']", "a.b = ['fp16', 'bf16']"),
        ("a.b = /data/my images", "a.b = '/data/my images'"),
        ("a.b = ~/data", "a.b = '~/data'"),
        ("a.b = C:/data", "a.b = 'C:/data'"),
        ("a.b = runs/a.pt", "a.b = 'runs/a.pt'"),
        ("a.b = true", "a.b = True"),
        ("a.b = FALSE", "a.b = False"),
        ("a.b = null", "a.b = None"),
        ("a.b = (true, None)", "a.b = (True, None)"),
        ("a.b = 0.3, 1.0", "a.b = (0.3, 1.0)"),
        ("a.b == 3", "a.b = 3"),
        ("a.b: 3", "a.b = 3"),
        ("--a.b=3", "a.b = 3"),
        ("a.b = 'text", "a.b = 'text'"),
        ("a.b = resnet18  # comment", "a.b = 'resnet18'"),
        ("a.b = DATA", "a.b = %DATA"),
        ("include gin/demo.gin", "include 'gin/demo.gin'"),
        ('include "../my files/a.gin', "include '../my files/a.gin'"),
    )
    def test_common_mistakes(self, line: str, expected: str) -> None:
        self.assertEqual(syntax.correct(line, NAMES), [expected])

    @parameterized.parameters("a.b = 1 c.d = 2", "a.b=1,c.d=2", "a.b = 1; c.d = 2", "a.b=1 c.d=2,")
    def test_several_bindings_in_one_line(self, line: str) -> None:
        self.assertEqual(syntax.correct(line, NAMES), ["a.b = 1", "c.d = 2"])

    @parameterized.parameters("", "a.b", "= 3", "a.b = ", "a.b = 1e-3f", "a.b = (1", "$HOME = 3")
    def test_other_mistakes_have_no_correction(self, line: str) -> None:
        self.assertEmpty(syntax.correct(line, NAMES))


class SimilarValuesTest(parameterized.TestCase):
    @parameterized.parameters(
        ("'3'", "3"),
        ("'true'", "True"),
        ("@sgd", "@sgd()"),
        ("@val/ImageFolder", "@val/ImageFolder()"),
        ("@knn_evaluator()", "(@knn_evaluator(),)"),
        ("'sgd'", "@sgd()"),
        ("1000.0", "1000"),
        ("None", "()"),
        ("'@sgd()'", "@sgd()"),
    )
    def test_include_the_value_that_was_meant(self, value: str, meant: str) -> None:
        self.assertIn(meant, syntax.similar_values(value, NAMES))


class StatementsTest(absltest.TestCase):
    def test_references_and_macros_stay_as_they_are_written(self) -> None:
        (statement,) = syntax.statements("a/b.c = (@no/such(), @name, %MACRO, 'text')")
        self.assertEqual(repr(statement.value), "(@no/such(), @name, %MACRO, 'text')")


if __name__ == "__main__":
    absltest.main()
