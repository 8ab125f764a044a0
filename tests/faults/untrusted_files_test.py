"""Files whose sizes are lies: they are rejected before they fill the memory."""

import io
import json
import pickle
import struct
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from absl.testing import absltest
from PIL import Image

from jigclu.data.packed import INDEX, RECORD, build_index, shard_files
from jigclu.data.webdataset import WebDatasetImages
from jigclu.system import files
from jigclu.system.errors import UserError
from tests.folder_case import FolderTestCase

BILLION = 10**9
# Reads the file of the first argument; prints the error, and the memory that it took, in MB.
READ = """
import resource, sys
from pathlib import Path
from jigclu.data.packed import PackedImages
from jigclu.data.decode import UnreadableImageError
from jigclu.data.webdataset import WebDatasetImages
from jigclu.system import input_files, tensor_files
from jigclu.system.errors import UserError

def read(path):
    if (path / "pack.json").exists():
        PackedImages(str(path), verify=False).read(0)
    elif path.is_dir():
        WebDatasetImages(str(path), "*.tar", str(path.parent / "index"))
    elif path.suffix == ".npy":
        input_files.load_array(path)
    else:
        tensor_files.read(path, "cpu")

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000

for name in sys.argv[1:]:
    before = peak()
    try:
        read(Path(name))
        print("accepted")
    except (UserError, UnreadableImageError, ValueError) as error:
        print(error)
    print(peak() - before)
"""


class _Call:
    """Is pickled as a call, whose result is never built here."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self._call = (function, arguments)

    def __reduce__(self) -> Any:
        return self._call


def _pack(root: Path, data: bytes, **values: int) -> None:
    """Writes a pack of one JPEG file; values replace those of its record."""
    root.mkdir()
    record = {"offset": 0, "length": len(data), "height": 8, "width": 8, "label": -1}
    record |= {"source_index": 0} | values
    images, records = shard_files(root, 0)
    images.write_bytes(data)
    np.save(records, np.array([tuple(record[name] for name in RECORD.names or ())], RECORD))
    shard = {"images": 1, "bytes": len(data), "sha256": files.sha256(images)}
    shard |= {"records_sha256": files.sha256(records)}
    (root / INDEX).write_text(json.dumps(build_index("jpeg", [], [shard])))


def _tar(root: Path, label: bytes, name: str = "0.cls") -> None:
    """Writes a shard of a label and an empty image."""
    root.mkdir()
    with tarfile.open(root / "0.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        for file, data in ((name, label), ("0.png", b"")):
            member = tarfile.TarInfo(file)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def _sparse_tar(root: Path) -> None:
    """Writes a label of 512 bytes that claims a hole of a billion."""
    _tar(root, b"7" * 512)
    data = bytearray((root / "0.tar").read_bytes())
    data[156:157] = tarfile.GNUTYPE_SPARSE
    data[386:410] = b"%011o\0%011o\0" % (BILLION, 512)
    data[483:495] = b"%011o\0" % (BILLION + 512)
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    (root / "0.tar").write_bytes(data)


def _change_sizes(path: Path, numel: bytes, stride: bytes) -> None:
    """Replaces the shape and the stride of the only tensor [6] in a file of torch.save."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    (name,) = (name for name in entries if name.endswith("data.pkl"))
    data = entries[name]
    shape = data.rindex(b"K\x06\x85")
    step = data.index(b"K\x01\x85", shape)
    entries[name] = data[:shape] + numel + data[shape + 2 : step] + stride + data[step + 2 :]
    with zipfile.ZipFile(path, "w") as archive:
        for entry, content in entries.items():
            archive.writestr(entry, content)


class UntrustedFilesTest(FolderTestCase):
    def _rejections(self, *paths: Path) -> list[str]:
        """Returns the errors of the files; reading them must not take memory."""
        printed = subprocess.run(
            [sys.executable, "-c", READ, *map(str, paths)],
            capture_output=True,
            text=True,
            check=True,
        )
        lines = printed.stdout.splitlines()
        self.assertLen(lines, 2 * len(paths))
        for path, error, megabytes in zip(paths, lines[::2], lines[1::2], strict=True):
            self.assertNotEqual(error, "accepted", path)
            self.assertLess(float(megabytes), 100, path)
        return lines[::2]

    def test_checkpoints_with_wrong_sizes_take_no_memory(self) -> None:
        compressed = self.folder / "compressed.pt"
        torch.save({"a": torch.arange(6.0)}, compressed)
        with (
            zipfile.ZipFile(compressed, "a", zipfile.ZIP_DEFLATED) as archive,
            archive.open("compressed/data/1", "w", force_zip64=True) as entry,
        ):
            for _ in range(BILLION // 10**7):
                entry.write(bytes(10**7))
        repeated, beyond = self.folder / "repeated.pt", self.folder / "beyond.pt"
        many = b"J" + struct.pack("<i", BILLION)
        for path, stride in ((repeated, b"K\x00"), (beyond, b"K\x01")):
            torch.save({"a": torch.arange(6.0)}, path)
            _change_sizes(path, many, stride)
        scalar = self.folder / "scalar.pt"
        kind = np.dtype(f"S{BILLION}")
        torch.save({"a": _Call(np.float64(0).__reduce__()[0], kind)}, scalar)
        tensors = self.folder / "header.safetensors"
        header = json.dumps({"a": {"dtype": "F32", "shape": [BILLION], "data_offsets": [0, 24]}})
        tensors.write_bytes(struct.pack("<Q", len(header)) + header.encode() + bytes(24))
        long = self.folder / "long.safetensors"
        long.write_bytes(struct.pack("<Q", 2**40) + b"{}")
        errors = self._rejections(compressed, repeated, beyond, scalar, tensors, long)
        self.assertRegex(errors[0], r"it unpacks to 1,000,00\d,\d{3} bytes, more than the file has")
        self.assertIn("a tensor of shape (1000000000,) that is sparse or repeats", errors[1])
        for error in errors:
            self.assertRegex(error, "^checkpoint .* cannot be read")

    def test_arrays_with_wrong_sizes_take_no_memory(self) -> None:
        paths = []
        for number, shape in enumerate(((BILLION,), (2**62, 2**62), (-1,))):
            paths.append(self.folder / f"{number}.npy")
            with open(paths[-1], "wb") as file:
                header = {"descr": "<f8", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                file.write(bytes(64))
        objects = self.folder / "objects.npy"
        np.save(objects, np.array([{}], object), allow_pickle=True)
        zipped = self.folder / "zip.npy"
        np.savez(self.folder / "a.npz", a=np.zeros(3))
        (self.folder / "a.npz").rename(zipped)
        pickled = self.folder / "pickle.npy"
        pickled.write_bytes(pickle.dumps({}))
        self._rejections(*paths, objects, zipped, pickled)

    def test_packs_with_wrong_positions_and_sizes_take_no_memory(self) -> None:
        file = io.BytesIO()
        Image.new("RGB", (8, 8)).save(file, "JPEG")
        data = file.getvalue()
        frame = data.index(b"\xff\xc0")
        huge = data[: frame + 5] + b"\xff\xdc\xff\xdc" + data[frame + 9 :]
        wrong: list[dict[str, int]] = [
            {"offset": -1},
            {"offset": 1},
            {"length": 2**62},
            {"offset": 2**62, "length": 2**62},
            {"length": 0},
            {"height": 0},
            {"label": 5},
        ]
        for number, values in enumerate(wrong):
            _pack(self.folder / f"record_{number}", data, **values)
        _pack(self.folder / "header", huge)
        _pack(self.folder / "both", huge, height=65500, width=65500)
        errors = self._rejections(*(self.folder / f"record_{n}" for n in range(len(wrong))))
        for error in errors:
            self.assertRegex(error, "shard_00000.npy is corrupt: image 0 lies outside")
        header, both = self._rejections(self.folder / "header", self.folder / "both")
        self.assertIn("(height, width) are (65500, 65500), expected (8, 8)", header)
        self.assertIn("65500x65500 pixels are more than", both)

    def test_shards_with_wrong_sizes_take_no_memory(self) -> None:
        _sparse_tar(self.folder / "sparse")
        _tar(self.folder / "long", b"7" * (2**20 + 1))
        sparse, long = self._rejections(self.folder / "sparse", self.folder / "long")
        self.assertIn("0.cls is a sparse file", sparse)
        self.assertIn("0.cls has 1,048,577 bytes; expected at most 1,048,576", long)
        for label in (b"[" * 10**5, b"3", b"null"):
            root = self.folder / f"json_{len(label)}"
            _tar(root, label, "0.json")
            with self.assertRaisesRegex(UserError, "0.json is not (a )?JSON"):
                WebDatasetImages(str(root), "*.tar", str(self.folder / "index"))

    def test_invalid_index_of_a_shard_is_replaced(self) -> None:
        root, index = self.folder / "shards", str(self.folder / "index")
        _tar(root, b"7")
        WebDatasetImages(str(root), "*.tar", index)
        (saved,) = Path(index).glob("*.npy")
        rows = np.load(saved)
        rows["offset"] = BILLION
        np.save(saved, rows)
        WebDatasetImages(str(root), "*.tar", index)
        self.assertLess(np.load(saved)["offset"][0], BILLION)


if __name__ == "__main__":
    absltest.main()
