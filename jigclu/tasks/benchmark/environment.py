"""The machine and the versions that measurements depend on."""

import importlib.metadata
import os
import platform
import subprocess

import torch

from jigclu.system.environment import processor

_PACKAGES = ("torchvision", "pillow", "numpy")


def describe_environment(device: torch.device) -> dict[str, str]:
    """Returns the machine and the versions that measurements depend on, by name."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "processor": processor(),
        "processors": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{name: _version(name) for name in _PACKAGES},
        **(_cuda(device) if device.type == "cuda" else {}),
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _cuda(device: torch.device) -> dict[str, str]:
    properties = torch.cuda.get_device_properties(device)
    return {
        "devices": str(torch.cuda.device_count()),
        "compute capability": f"{properties.major}.{properties.minor}",
        "device memory": f"{properties.total_memory / 1e9:.1f} GB",
        "driver": _driver(),
        "cuda": str(torch.version.cuda),
        "cudnn": str(torch.backends.cudnn.version()),
        "float32 convolutions in TF32": str(torch.backends.cudnn.allow_tf32),
    }


def _driver() -> str:
    """Returns the version of the NVIDIA driver, which torch does not report."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return "unknown: nvidia-smi does not answer"
    return printed.stdout.split("\n", 1)[0].strip()
