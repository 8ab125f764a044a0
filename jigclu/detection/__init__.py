"""Fine-tuning of detectors with detectron2; the command is `detection/train_net.py`.

The import registers with detectron2 the heads that the configurations name.
"""

import importlib.util

# Some checks of data also run without detectron2.
if importlib.util.find_spec("detectron2") is not None:
    from jigclu.detection import extra_norm as extra_norm
