#!/usr/bin/env python3
"""Tests and measures this project on an NVIDIA GPU in less than nine minutes.

    python launch/gpu_check.py      # or: make gpu-check

Runs the CUDA tests, and measures speed and memory. Installs and downloads nothing. Writes
gpu.md, gpu.json and gpu.log to $OUT or runs/gpu_check. Exit status: 0 if every part ran, 1 if
some failed or were skipped for lack of time, 2 without CUDA.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

try:
    from jigclu.tasks.benchmark.gpu_check import main
except ModuleNotFoundError as missing:
    print(f"error: gpu-check needs {missing.name}, which is not installed", file=sys.stderr)
    sys.exit(2)

if __name__ == "__main__":
    sys.exit(main())
