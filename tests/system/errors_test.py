"""Tests of jigclu.system.errors."""

from absl.testing import absltest

from jigclu.system.errors import UserError, check


class CheckTest(absltest.TestCase):
    def test_accepts_a_value_in_range(self) -> None:
        check(True, "epochs", 1, "1 or more")

    def test_message_names_setting_value_and_expectation(self) -> None:
        with self.assertRaises(UserError) as caught:
            check(False, "part", "test", "'train' or 'held_out'")
        self.assertEqual(str(caught.exception), "part is 'test'; it must be 'train' or 'held_out'")


if __name__ == "__main__":
    absltest.main()
