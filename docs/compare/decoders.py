"""Compares image decoders on one thread: rate, memory, pixels and formats.

Needs the project on the path, and a separate environment with its requirements and `torchcodec`:

    PYTHONPATH=. OMP_NUM_THREADS=1 python docs/compare/decoders.py FOLDER

FOLDER is searched for JPEG files. Prints Markdown tables.
"""

import argparse
import importlib
import io
import itertools
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from torchvision.transforms.v2 import functional

_REPETITIONS = 9
_PACKAGES = ("torch", "torchvision", "torchcodec", "pillow")

Decoder = Callable[[bytes], torch.Tensor]


def _pillow() -> Decoder:
    return lambda data: functional.pil_to_tensor(Image.open(io.BytesIO(data)).convert("RGB"))


def _torchvision() -> Decoder:
    def decode(data: bytes) -> torch.Tensor:
        encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        return torchvision.io.decode_image(encoded, mode="RGB", apply_exif_orientation=True)

    return decode


def _torchcodec() -> Decoder:
    decode = importlib.import_module("torchcodec.decoders").decode_image
    return lambda data: decode(torch.frombuffer(bytearray(data), dtype=torch.uint8))


def _project() -> Decoder:
    return importlib.import_module("jigclu.data.decode").decode_image


DECODERS = {
    "Pillow": _pillow,
    "torchvision": _torchvision,
    "torchcodec": _torchcodec,
    "this project": _project,
}


def rates(files: list[bytes]) -> dict[str, list[float]]:
    """Returns the images/s of every decoder, one value per repetition; repetitions interleave."""
    decoders = {name: load() for name, load in DECODERS.items()}
    measured: dict[str, list[float]] = {name: [] for name in decoders}
    for _, (name, decode) in itertools.product(range(_REPETITIONS), decoders.items()):
        begin = time.perf_counter()
        for data in files:
            decode(data)
        measured[name].append(len(files) / (time.perf_counter() - begin))
    return measured


def memory(name: str, files: list[bytes]) -> float:
    """Returns the peak memory that a decoder, including its imports, adds to this process, in MB.

    Linux only. torch and torchvision, which training needs anyway, are imported before.
    """
    Path("/proc/self/clear_refs").write_text("5")  # Resets the peak to the current memory.
    before = _peak_memory()
    decode = DECODERS[name]()
    for data in files:
        decode(data)
    return _peak_memory() - before


def _peak_memory() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def samples() -> dict[str, bytes]:
    """Returns a small image in every format that the project reads, by description."""
    rows, columns = np.mgrid[0:24, 0:40]
    pixels = np.stack([rows * 10, columns * 6, 255 - rows * 5 - columns * 3], axis=-1)
    image = Image.fromarray(pixels.astype(np.uint8))
    rotation = Image.Exif()
    rotation[0x0112] = 6
    deep = Image.fromarray(np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16))
    frames = {"save_all": True, "append_images": [image.rotate(90)]}

    def encode(image: Image.Image, kind: str, **options: object) -> bytes:
        file = io.BytesIO()
        image.save(file, kind, **options)
        return file.getvalue()

    return {
        "JPEG": encode(image, "JPEG"),
        "JPEG, gray": encode(image.convert("L"), "JPEG"),
        "JPEG, CMYK": encode(image.convert("CMYK"), "JPEG"),
        "JPEG, rotated by EXIF": encode(image, "JPEG", exif=rotation),
        "PNG": encode(image, "PNG"),
        "PNG, 16-bit gray": encode(deep, "PNG"),
        "WebP": encode(image, "WEBP"),
        "GIF": encode(image, "GIF"),
        "GIF, animated": encode(image, "GIF", **frames),
        "BMP": encode(image, "BMP"),
        "TIFF": encode(image, "TIFF"),
        "PPM": encode(image, "PPM"),
    }


def outcome(decode: Decoder, reference: Decoder, images: list[bytes]) -> str:
    """Describes how a decoder's pixels differ from those of the reference."""
    largest = 0
    for data in images:
        expected = reference(data)
        try:
            pixels = decode(data)
        except Exception as error:  # Each library raises its own errors.
            return type(error).__name__
        if pixels.shape != expected.shape:
            return f"shape {tuple(pixels.shape)}"
        largest = max(largest, int((pixels.int() - expected.int()).abs().max()))
    return f"off by up to {largest}" if largest else "same"


def table(header: list[str], rows: list[list[str]]) -> str:
    """Returns a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--memory", choices=DECODERS, help="print this decoder's memory and exit")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    paths = sorted(p for p in arguments.folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))
    files = [path.read_bytes() for path in paths]
    if arguments.memory:
        print(memory(arguments.memory, files))
        return
    print(f"{len(files)} JPEG files, {platform.platform()},", end=" ")
    print(", ".join(f"{name} {version(name)}" for name in _PACKAGES), end="\n\n")
    rows = []
    for name, measured in rates(files).items():
        command = [sys.executable, __file__, str(arguments.folder), "--memory", name]
        added = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        rates_text = [f"{f(measured):,.0f}" for f in (statistics.median, min, max)]
        rows.append([name, *rates_text, f"{added:.0f}"])
    print(table(["decoder", "images/s", "min", "max", "memory, MB"], rows), end="\n\n")
    decoders = {name: load() for name, load in DECODERS.items()}
    reference = decoders["this project"]
    images = {"the files": files} | {kind: [data] for kind, data in samples().items()}
    rows = [
        [kind, *(outcome(decode, reference, images[kind]) for decode in decoders.values())]
        for kind in images
    ]
    print(table(["format", *decoders], rows))


if __name__ == "__main__":
    main()
