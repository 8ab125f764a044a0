"""Tests of jigclu.system.tensor_files."""

import re

import safetensors.torch
import torch
from absl.testing import absltest, parameterized

from jigclu.system import tensor_files
from jigclu.system.errors import UserError
from tests.folder_case import FolderTestCase


class TensorFilesTest(FolderTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.path = self.folder / "weights.pt"
        torch.save({"step": 7, "weights": {"a": torch.arange(6.0)}}, self.path)

    def test_reads_values_and_tensors(self) -> None:
        contents = tensor_files.read(self.path, "cpu")
        self.assertEqual(contents["step"], 7)
        self.assertTrue(torch.equal(contents["weights"]["a"], torch.arange(6.0)))

    def test_reads_safetensors(self) -> None:
        path = self.folder / "weights.safetensors"
        safetensors.torch.save_file({"a": torch.arange(6.0)}, path)
        contents = tensor_files.read(path, "cpu")
        self.assertEqual(list(contents), ["a"])
        self.assertTrue(torch.equal(contents["a"], torch.arange(6.0)))

    def test_missing_file_is_named_with_its_neighbors(self) -> None:
        with self.assertRaisesRegex(UserError, r"other\.pt does not exist; .*weights\.pt"):
            tensor_files.read(self.folder / "other.pt", "cpu")
        with self.assertRaisesRegex(UserError, r"its folder .*no does not exist either"):
            tensor_files.read(self.folder / "no" / "weights.pt", "cpu")

    def test_only_weights_are_suggested_for_a_missing_file(self) -> None:
        (self.folder / "card.md").touch()
        with self.assertRaisesRegex(UserError, r"its folder contains weights\.pt: choose"):
            tensor_files.read(self.folder / "other.pt", "cpu")
        self.path.unlink()
        with self.assertRaisesRegex(UserError, r"its folder contains no file of weights"):
            tensor_files.read(self.folder / "other.pt", "cpu")

    def test_rejects_a_folder(self) -> None:
        with self.assertRaisesRegex(UserError, r"is a folder: expected a file; .*weights\.pt"):
            tensor_files.check_exists(self.folder)

    @parameterized.parameters(0, 1, 100, 1000, -1)
    def test_rejects_a_truncated_file(self, size: int) -> None:
        self.path.write_bytes(self.path.read_bytes()[:size])
        with self.assertRaisesRegex(UserError, r"weights\.pt cannot be read"):
            tensor_files.read(self.path, "cpu")

    def test_detects_a_changed_byte(self) -> None:
        data = bytearray(self.path.read_bytes())
        data[data.index(torch.arange(3.0).numpy().tobytes())] ^= 1
        self.path.write_bytes(data)
        with self.assertRaisesRegex(UserError, r"weights\.pt cannot be read: it is corrupt"):
            tensor_files.read(self.path, "cpu")

    def test_rejects_a_file_that_would_run_code(self) -> None:
        torch.save({"step": re.compile("x")}, self.path)
        with self.assertRaisesRegex(UserError, "more than plain values"):
            tensor_files.read(self.path, "cpu")

    def test_rejects_contents_that_are_not_a_dict(self) -> None:
        torch.save([1, 2], self.path)
        with self.assertRaisesRegex(UserError, "holds a list; expected a dict"):
            tensor_files.read(self.path, "cpu")


if __name__ == "__main__":
    absltest.main()
