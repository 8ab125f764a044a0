"""Tests of jigclu.system.tensor_files."""

import argparse
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import safetensors.torch
import torch
from absl.testing import absltest, parameterized
from torch import nn

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
        safetensors.torch.save_file({"a": torch.arange(6.0)}, path, {"encoder": "resnet18"})
        contents = tensor_files.read(path, "cpu")
        self.assertEqual(list(contents), [tensor_files.METADATA, "a"])
        self.assertEqual(contents[tensor_files.METADATA], {"encoder": "resnet18"})
        self.assertTrue(torch.equal(contents["a"], torch.arange(6.0)))

    def test_missing_file_is_named_with_its_neighbors(self) -> None:
        with self.assertRaisesRegex(UserError, r"other\.pt does not exist; .*weights\.pt"):
            tensor_files.read(self.folder / "other.pt", "cpu")
        with self.assertRaisesRegex(UserError, r"its folder .*no does not exist either"):
            tensor_files.read(self.folder / "no" / "weights.pt", "cpu")

    def test_a_file_that_vanishes_while_it_is_read_is_named(self) -> None:
        def vanish(*arguments: Any, **options: Any) -> None:
            self.path.unlink()
            raise RuntimeError("unable to open file in read-only mode")

        with (
            mock.patch.object(torch, "load", vanish),
            self.assertRaisesRegex(UserError, r"weights\.pt does not exist"),
        ):
            tensor_files.read(self.path, "cpu")

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
        with self.assertRaisesRegex(
            UserError, r"weights\.pt cannot be read: a checksum .* is corrupt"
        ):
            tensor_files.read(self.path, "cpu")

    @parameterized.product(
        score=[
            *(np.float64(0.5), np.float32(0.5), np.float16(0.5), np.int64(3), np.uint8(3)),
            *(np.bool_(True), np.str_("best"), np.complex64(1j)),
        ],
        new_format=(True, False),
    )
    def test_reads_scores_of_numpy_and_arguments_of_scripts(
        self, score: Any, new_format: bool
    ) -> None:
        arguments = argparse.Namespace(lr=0.1, sizes=[224, None], device=torch.device("cpu"))
        contents = {"best": score, "args": arguments}
        torch.save(contents, self.path, _use_new_zipfile_serialization=new_format)
        for read in (tensor_files.read(self.path, "cpu"), tensor_files.peek(self.path)):
            self.assertEqual(read, contents)
            self.assertIs(type(read["best"]), type(score))

    def test_reads_scores_written_with_numpy_1(self) -> None:
        torch.save({"best": np.float64(0.5)}, self.path)
        with zipfile.ZipFile(self.path) as archive:
            entries = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(self.path, "w") as archive:
            for name, data in entries.items():
                archive.writestr(
                    name, data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
                )
        self.assertIn(b"numpy.core.multiarray", self.path.read_bytes())
        self.assertEqual(tensor_files.read(self.path, "cpu"), {"best": 0.5})

    @parameterized.named_parameters(
        ("beside_weights", lambda code: {"weights": {"a": torch.zeros(1)}, "arch": code}),
        ("in_arguments", lambda code: {"args": argparse.Namespace(hook=code)}),
        ("as_the_file", lambda code: code),
    )
    def test_never_runs_code_in_a_file(self, contents: Callable[[Any], Any]) -> None:
        marker = self.folder / "ran"
        for new_format in (True, False):
            torch.save(
                contents(_RunsCode(marker)), self.path, _use_new_zipfile_serialization=new_format
            )
            for read in (lambda path: tensor_files.read(path, "cpu"), tensor_files.peek):
                with self.assertRaisesRegex(UserError, r"holds a \w+\.mkdir, and building that"):
                    read(self.path)
                self.assertFalse(marker.exists())
        torch.load(self.path, weights_only=False)
        self.assertTrue(marker.exists())

    @parameterized.named_parameters(
        ("a_module", lambda path: torch.save(nn.Linear(2, 2), path)),
        ("an_object", lambda path: torch.save({"step": re.compile("x")}, path)),
        ("an_array", lambda path: torch.save({"weights": np.zeros(3)}, path)),
        (
            "another_protocol",
            lambda path: torch.save({"a": torch.ones(1)}, path, pickle_protocol=4),
        ),
        ("a_pickle", lambda path: path.write_bytes(pickle.dumps({"weights": np.zeros(3)}))),
        ("a_text", lambda path: path.write_text("not a file of torch")),
    )
    def test_no_intact_file_is_called_damaged(self, write: Callable[[Path], object]) -> None:
        write(self.path)
        for read in (lambda path: tensor_files.read(path, "cpu"), tensor_files.peek):
            with self.assertRaisesRegex(UserError, "cannot be read") as raised:
                read(self.path)
            message = str(raised.exception).replace(str(self.path), "")
            self.assertNotRegex(message, "corrupt|damaged|truncated|missing|remove|delete|again")

    def test_a_file_without_permission_is_not_called_damaged(self) -> None:
        with (
            mock.patch.object(torch, "load", side_effect=PermissionError(13, "Permission denied")),
            self.assertRaisesRegex(UserError, "cannot be read: you have no permission"),
        ):
            tensor_files.read(self.path, "cpu")

    def test_rejects_contents_that_are_not_a_dict(self) -> None:
        torch.save([1, 2], self.path)
        with self.assertRaisesRegex(UserError, "holds a list; expected a dict"):
            tensor_files.read(self.path, "cpu")


class _RunsCode:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._path),)


if __name__ == "__main__":
    absltest.main()
