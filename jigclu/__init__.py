"""JigClu: self-supervised visual pre-training by jigsaw clustering (CVPR 2021)."""

__version__ = "0.3.0"
