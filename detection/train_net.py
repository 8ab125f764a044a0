"""Fine-tunes or evaluates a detector: see detection/README.md.

python detection/train_net.py --config-file detection/configs/R50-JigClu.yaml --num-gpus 8
"""

import importlib.util
import sys


def main() -> int:
    """Runs the command; returns its exit status."""
    if importlib.util.find_spec("detectron2") is None:
        print(
            "error: detectron2 is not installed: run pip install ninja, then "
            "pip install --no-build-isolation git+https://github.com/facebookresearch/detectron2 "
            "(see detection/README.md)",
            file=sys.stderr,
        )
        return 2
    from jigclu.detection.command import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
