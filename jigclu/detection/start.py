"""Start of the scripts in `detection/`, whose commands need detectron2."""

import importlib
import importlib.util
import sys


def run(command: str) -> int:
    """Runs `main` of a module; returns its exit status, which is 2 without detectron2."""
    if importlib.util.find_spec("detectron2") is None:
        print(
            "error: detectron2 is not installed: run pip install ninja, then "
            "pip install --no-build-isolation git+https://github.com/facebookresearch/detectron2 "
            "(see detection/README.md)",
            file=sys.stderr,
        )
        return 2
    status: int = importlib.import_module(command).main()
    return status
