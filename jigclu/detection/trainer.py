"""detectron2's trainer with COCO's and VOC's evaluators and pictures of predictions."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultTrainer, hooks
from detectron2.evaluation import DatasetEvaluator
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from detectron2.utils.events import EventStorage, JSONWriter, TensorboardXWriter
from torch import nn

from jigclu.detection import own_data, predictions, record, settings
from jigclu.detection.evaluators import CocoEvaluator, VocEvaluator
from jigclu.system.errors import UserError


class Trainer(DefaultTrainer):
    """Trains and evaluates, then draws predictions into OUTPUT_DIR/predictions."""

    def __init__(self, cfg: CfgNode, picture_score: float) -> None:
        """Pictures show the predictions with picture_score or more."""
        super().__init__(cfg)
        self._picture_score = picture_score

    def build_hooks(self) -> list[Any]:
        """Returns detectron2's hooks and one that draws predictions."""
        built: list[Any] = super().build_hooks()
        if comm.is_main_process():
            built.append(hooks.CallbackHook(after_train=lambda trainer: trainer.draw()))
        return built

    def draw(self) -> None:
        """Draws predictions after the last iteration, but not after a failure."""
        if self.iter >= self.max_iter:
            draw_predictions(self.cfg, self.model, self.max_iter, self._picture_score)

    def state_dict(self) -> dict[str, Any]:
        """Returns what checkpoints hold besides the model: also class names and settings."""
        state: dict[str, Any] = super().state_dict()
        classes = list(MetadataCatalog.get(self.cfg.DATASETS.TRAIN[0]).thing_classes)
        return state | {record.CLASSES: classes, record.SETTINGS: fixed_settings(self.cfg)}

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        """Returns the evaluator of a data set, which computes COCO's or VOC's AP."""
        kind = MetadataCatalog.get(dataset_name).evaluator_type
        folder = Path(cfg.OUTPUT_DIR) / "inference"
        if kind == own_data.VOC_LAYOUT:
            own_data.write_as_coco(dataset_name, folder)
        if kind in ("coco", own_data.VOC_LAYOUT):
            return CocoEvaluator(dataset_name, folder, masks=cfg.MODEL.MASK_ON)
        if kind == "pascal_voc":
            return VocEvaluator(dataset_name)
        raise UserError(
            f"data set {dataset_name} in DATASETS.TEST has the evaluator {kind!r}; expected 'coco' "
            "or 'pascal_voc': use another data set, or register it with --coco or --voc"
        )


def fixed_settings(cfg: CfgNode) -> dict[str, Any]:
    """Returns the settings that a resumed run must share with the run that it resumes."""
    return {key: settings.value(cfg, key) for key in record.FIXED_SETTINGS}


def write_metrics(cfg: CfgNode, results: Mapping[str, Any], step: int) -> None:
    """Appends the metrics of an evaluation to OUTPUT_DIR/metrics.json and TensorBoard's events."""
    folder = Path(cfg.OUTPUT_DIR)
    with EventStorage(step) as storage:
        storage.put_scalars(**flatten_results_dict(results), smoothing_hint=False)
        for writer in (JSONWriter(str(folder / "metrics.json")), TensorboardXWriter(str(folder))):
            writer.write()
            writer.close()


def draw_predictions(cfg: CfgNode, model: nn.Module, step: int, score: float) -> None:
    """Draws 8 images of DATASETS.TEST with their predictions into OUTPUT_DIR/predictions."""
    detector = getattr(model, "module", model)
    was_training = detector.training
    detector.eval()
    folder = Path(cfg.OUTPUT_DIR) / "predictions"
    paths = predictions.draw(cfg, detector, folder, images=8, step=step, score=score)
    detector.train(was_training)
    logging.getLogger(__name__).info("Predictions on %d images: %s", len(paths), folder)
