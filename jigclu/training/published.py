"""Published results of the recipes that the shipped gin files follow."""

SOURCE = "Chen et al., CVPR 2021"

# Scores by name, of each file.
PUBLISHED: dict[str, dict[str, float]] = {
    "gin/linear_r50.gin": {"top1": 0.664},
    "gin/linear_r50_imagenet100.gin": {"top1": 0.809},
    "gin/semi_r50_1pct.gin": {"top1": 0.407},
    "gin/semi_r50_10pct.gin": {"top1": 0.63},
}
