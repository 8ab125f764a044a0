"""Fine-tunes or evaluates a detector: see detection/README.md.

python detection/train_net.py --config-file detection/configs/R50-JigClu.yaml --num-gpus 8
"""

import sys

from jigclu.detection.start import run

if __name__ == "__main__":
    sys.exit(run("jigclu.detection.command"))
