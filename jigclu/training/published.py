"""Published results of the recipes that the shipped gin files follow."""

SOURCE = "Chen et al., CVPR 2021"

_LINEAR, _ONE_PERCENT, _TEN_PERCENT = {"top1": 0.664}, {"top1": 0.407}, {"top1": 0.63}
# Scores by name, of each file; those of a reproduction also name its stage.
PUBLISHED: dict[str, dict[str, float]] = {
    "gin/linear_r50.gin": _LINEAR,
    "gin/linear_r50_imagenet100.gin": {"top1": 0.809},
    "gin/semi_r50_1pct.gin": _ONE_PERCENT,
    "gin/semi_r50_10pct.gin": _TEN_PERCENT,
    "gin/reproduce_r50.gin": {
        "linear/top1": _LINEAR["top1"],
        "semi_1pct/top1": _ONE_PERCENT["top1"],
        "semi_10pct/top1": _TEN_PERCENT["top1"],
    },
}
