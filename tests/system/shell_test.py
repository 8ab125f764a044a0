"""Tests of jigclu.system.shell."""

import shlex

from absl.testing import absltest, parameterized

from jigclu.system import shell


class QuoteTest(parameterized.TestCase):
    @parameterized.parameters(
        ("pretrain.seed=3", "pretrain.seed=3"),
        ("DATA='/data/my photos'", "\"DATA='/data/my photos'\""),
        ("a='$HOME'", """'a='"'"'$HOME'"'"''"""),
        ("", '""'),
    )
    def test_uses_the_quotes_that_are_easier_to_read(self, word: str, expected: str) -> None:
        self.assertEqual(shell.quote(word), expected)

    def test_a_shell_reads_the_same_words(self) -> None:
        words = ["a", "b c", "'", '"', "$x", "`y`", "\\", "!", "%DATA", "é", "\n"]
        self.assertEqual(shlex.split(shell.join(words)), words)


if __name__ == "__main__":
    absltest.main()
