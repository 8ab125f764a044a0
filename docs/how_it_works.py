"""Draws docs/how_it_works.png: a jigsaw of generated images, and how a trained network solves it.

    make demo
    PYTHONPATH=. .venv/bin/python docs/how_it_works.py runs/demo docs/how_it_works.png

The network has not seen these images in training.
"""

import sys
from pathlib import Path

import torch
from PIL import Image
from torchvision.transforms.v2.functional import to_pil_image

from jigclu import config
from jigclu.data.procedural import ProceduralImages
from jigclu.methods.jigsaw import Jigsaw
from jigclu.models.encoder import create_encoder
from jigclu.training import checkpoint

# A palette takes a fraction of the file's size; this way to choose it keeps rare colors.
_COLORS, _PALETTE = 256, Image.Quantize.MAXCOVERAGE


@torch.no_grad()
def main(workdir: str, output: str) -> None:
    """Draws the picture with the last checkpoint of a run of gin/demo.gin."""
    task = config.load(["gin/demo.gin"], []).task
    method: Jigsaw = task.method
    network = method.network(create_encoder(task.encoder, task.small_stem)).eval()
    saved = checkpoint.load(checkpoint.latest(Path(workdir)), "cpu")
    network.load_state_dict(saved["parameters"] | saved["buffers"])
    unseen = ProceduralImages(images=500, size=96, seed=0, split="val")
    dataset = method.dataset(unseen, task.seed, task.batch_size)
    picture = method.draw_predictions(network, dataset, task.seed, torch.device("cpu"))
    to_pil_image(picture).quantize(_COLORS, _PALETTE).save(output, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
