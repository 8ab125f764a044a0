"""Draws docs/search.png: generated images, and those whose features are nearest to each.

    make demo
    PYTHONPATH=. .venv/bin/python docs/search.py runs/demo docs/search.png

The first column has one image of every other class, the others its nearest neighbors among 500
images that the encoder was not trained on.
"""

import sys

import torch
from torch.nn import functional
from torchvision.transforms.v2.functional import resize, to_pil_image
from torchvision.utils import make_grid

import jigclu
from jigclu.data.procedural import ProceduralImages

_NEIGHBORS = 7
_SIDE = 80  # Pixels of an image in the picture.
_GAP = 2  # Pixels between images; more of them set the queries apart.
_COLORS = 256  # Of the palette, with which the file takes a fraction of its size.


def main(weights: str, output: str) -> None:
    """Draws the picture, and prints how many neighbors are of the class of their query."""
    source = ProceduralImages(images=500, size=96, seed=0, split="val")
    features = jigclu.extract_features(jigclu.load_encoder(weights), source).features
    features = functional.normalize(features - features.mean(0), dim=1)
    queries, shown, of_class = range(0, len(source.classes), 2), [], 0
    for query in queries:
        order = (features @ features[query]).argsort(descending=True).tolist()
        order.remove(query)
        nearest = order[:_NEIGHBORS]
        of_class += sum(source.labels[index] == source.labels[query] for index in nearest)
        shown += [source.read(index) for index in (query, *nearest)]
    tiles = torch.stack([resize(image, [_SIDE, _SIDE]) for image in shown])
    grid = make_grid(tiles, _NEIGHBORS + 1, padding=_GAP, pad_value=255)
    left, others = grid.split([_SIDE + 2 * _GAP, grid.shape[2] - _SIDE - 2 * _GAP], 2)
    grid = torch.cat([left, grid.new_full((3, grid.shape[1], 4 * _GAP), 255), others], 2)
    to_pil_image(grid).quantize(_COLORS).save(output, optimize=True)
    print(f"{of_class} of {len(queries) * _NEIGHBORS} neighbors are of the class of their query")


if __name__ == "__main__":
    main(*sys.argv[1:])
