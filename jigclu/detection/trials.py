"""Scores of repeated trainings: mean and standard deviation, next to published figures."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

# Metrics in the table; others are in its JSON file only.
_SHOWN = ("AP", "AP50", "AP75")


class Trial(NamedTuple):
    """A finished training.

    metrics: in percent, by detectron2's names, such as bbox/AP50.
    """

    seed: int
    metrics: Mapping[str, float]


class Protocol(NamedTuple):
    """Names of the data sets that train and evaluate, and the detector."""

    train: tuple[str, ...]
    test: tuple[str, ...]
    detector: str


class Figure(NamedTuple):
    """Published scores in percent.

    schedule: iterations, and images per batch.
    """

    source: str
    schedule: tuple[int, int]
    metrics: Mapping[str, float]


_PUBLISHED = {
    Protocol(
        ("voc_2007_trainval", "voc_2012_trainval"), ("voc_2007_test",), "Faster R-CNN R50-C4"
    ): (
        Figure(
            "MoCo v2 (Chen et al., 2020; 200 epochs)",
            (24_000, 16),
            {"bbox/AP": 57.0, "bbox/AP50": 82.4, "bbox/AP75": 63.6},
        ),
        Figure("DenseCL (Wang et al., CVPR 2021; 200 epochs)", (24_000, 16), {"bbox/AP": 58.7}),
    ),
    Protocol(("coco_2017_train",), ("coco_2017_val",), "Faster R-CNN R50-FPN"): (
        Figure("JigClu (Chen et al., CVPR 2021)", (180_000, 8), {"bbox/AP": 39.3}),
    ),
    Protocol(("coco_2017_train",), ("coco_2017_val",), "Mask R-CNN R50-FPN"): (
        Figure("MoCo (He et al., CVPR 2020)", (180_000, 16), {"bbox/AP": 40.8, "segm/AP": 36.9}),
    ),
    Protocol(("coco_2017_train",), ("coco_2017_val",), "Mask R-CNN R50-C4"): (
        Figure("MoCo (He et al., CVPR 2020)", (180_000, 16), {"bbox/AP": 40.7, "segm/AP": 35.4}),
    ),
}


def name_detector(architecture: str, depth: int, layout: str, *, has_masks: bool) -> str:
    """Returns such as "Faster R-CNN R50-FPN".

    Args:
      architecture: MODEL.META_ARCHITECTURE.
      depth: number of layers of the ResNet.
      layout: "fpn" or "c4".
      has_masks: whether the detector predicts masks.
    """
    if architecture == "GeneralizedRCNN":
        architecture = "Mask R-CNN" if has_masks else "Faster R-CNN"
    return f"{architecture} R{depth}-{layout.upper()}"


def published(protocol: Protocol) -> tuple[Figure, ...]:
    """Returns the published figures of the same data and detector; often none."""
    return _PUBLISHED.get(protocol._replace(train=tuple(sorted(protocol.train))), ())


def summarize(trials: Sequence[Trial]) -> dict[str, tuple[float, float]]:
    """Returns mean and sample standard deviation (n - 1) of each metric that all trials have."""
    values = {
        name: [trial.metrics[name] for trial in trials]
        for name in trials[0].metrics
        if all(name in trial.metrics for trial in trials)
    }
    return {name: (statistics.fmean(each), statistics.stdev(each)) for name, each in values.items()}


def name_schedule(iterations: int, images_per_batch: int) -> str:
    """Returns such as "24,000 iterations of 16 images"."""
    return f"{iterations:,} iterations of {images_per_batch} images"


def table(
    groups: Mapping[str, Sequence[Trial]],
    figures: Sequence[Figure],
    protocol: Protocol,
    schedule: str,
) -> str:
    """Returns a table in Markdown.

    Args:
      groups: two or more trials for each kind of initial weights, by title.
      figures: published figures.
      protocol, schedule: of the trials.
    """
    first = next(iter(groups.values()))
    metrics = [name for name in first[0].metrics if name.split("/")[-1] in _SHOWN]
    rows = [["", *map(_title, metrics)], ["---"] * (1 + len(metrics))]
    for title, trials in groups.items():
        for trial in trials:
            values = [_text(trial.metrics.get(name)) for name in metrics]
            rows.append([f"{title}, seed {trial.seed}", *values])
        summary = summarize(trials)
        values = [
            "{:.2f} ± {:.2f}".format(*summary[name]) if name in summary else "–" for name in metrics
        ]
        rows.append([f"{title}, mean ± std of {len(trials)} trials", *values])
    for figure in figures:
        values = [_text(figure.metrics.get(name)) for name in metrics]
        title = f"published: {figure.source}, {name_schedule(*figure.schedule)}"
        rows.append([title, *values])
    lines = [f"| {' | '.join(row)} |" for row in rows]
    lines += [
        "",
        f"{protocol.detector}, trained on {', '.join(protocol.train)} for {schedule}, evaluated on "
        f"{', '.join(protocol.test)}; percent. Std is the sample standard deviation (n - 1).",
    ]
    if not figures:
        lines.append("Published: none for this data and detector.")
    return "\n".join(lines)


def to_json(
    groups: Mapping[str, Sequence[Trial]], figures: Sequence[Figure], protocol: Protocol
) -> dict[str, Any]:
    """Returns what `table` shows, with all metrics."""
    return {
        "protocol": protocol._asdict(),
        "groups": {
            title: {
                "trials": [trial._asdict() for trial in trials],
                "mean": {name: mean for name, (mean, _) in summarize(trials).items()},
                "std": {name: deviation for name, (_, deviation) in summarize(trials).items()},
            }
            for title, trials in groups.items()
        },
        "published": [figure._asdict() for figure in figures],
    }


def _title(metric: str) -> str:
    return metric.replace("bbox", "box").replace("segm", "mask").replace("/", " ")


def _text(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
