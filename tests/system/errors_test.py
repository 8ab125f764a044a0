"""Tests of jigclu.system.errors."""

import os
import pickle

from absl.testing import absltest
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from jigclu.system.errors import UserError, check, naming


class Broken(Dataset[Tensor]):
    """A data set whose items raise a UserError, caused by another error."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Tensor:
        try:
            raise OSError("truncated")
        except OSError as error:
            raise UserError("image a.png is unreadable: fix or remove it") from error


class UserErrorTest(absltest.TestCase):
    def test_message_is_one_line(self) -> None:
        error = UserError("data are missing (no file\n  a.png): \nadd it\n")
        self.assertEqual(str(error), "data are missing (no file a.png): add it")

    def test_message_of_a_worker_process_has_no_traceback(self) -> None:
        with self.assertRaises(UserError) as caught:
            list(DataLoader(Broken(), num_workers=1))
        self.assertEqual(str(caught.exception), "image a.png is unreadable: fix or remove it")

    def test_message_can_be_printed_whatever_the_encoding_of_file_names(self) -> None:
        message = str(UserError(os.fsdecode(b"caf\xe9.png is missing")))
        self.assertEqual(message.encode(), rb"caf\udce9.png is missing")

    def test_survives_pickling(self) -> None:
        copy = pickle.loads(pickle.dumps(UserError("epochs is 0")))
        self.assertEqual((type(copy), str(copy)), (UserError, "epochs is 0"))


class CheckTest(absltest.TestCase):
    def test_accepts_a_value_in_range(self) -> None:
        check(True, "epochs", 1, "1 or more")

    def test_message_names_setting_value_and_expectation(self) -> None:
        with self.assertRaises(UserError) as caught:
            check(False, "part", "test", "'train' or 'held_out'")
        self.assertEqual(str(caught.exception), "part is 'test'; it must be 'train' or 'held_out'")


class NamingTest(absltest.TestCase):
    def test_setting_comes_before_the_message(self) -> None:
        with self.assertRaises(UserError) as caught, naming("root"):
            raise UserError("/data is not a folder")
        self.assertEqual(str(caught.exception), "root: /data is not a folder")

    def test_other_errors_stay(self) -> None:
        with self.assertRaisesRegex(KeyError, "^'a'$"), naming("root"):
            raise KeyError("a")


if __name__ == "__main__":
    absltest.main()
