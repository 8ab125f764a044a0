"""Draws and writes a detector's predictions on the images of a folder: see detection/README.md.

python detection/predict.py --config-file runs/x/config.yaml --images photos --output predicted
"""

import sys

from jigclu.detection.start import run

if __name__ == "__main__":
    sys.exit(run("jigclu.detection.predict"))
