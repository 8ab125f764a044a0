"""kNN evaluation of an encoder."""

from dataclasses import dataclass
from pathlib import Path

from jigclu.models.encoder import Encoder, encoder_tensors
from jigclu.system import collectives, machine, progress, seeds
from jigclu.system.device import launched_processes, local_device, process_group
from jigclu.training.bad_samples import recording
from jigclu.training.encoder_task import EncoderTask
from jigclu.training.evaluation_report import EvaluationReport
from jigclu.training.initial_weights import load_into
from jigclu.training.knn_evaluator import KnnEvaluator
from jigclu.training.loop import RunResult
from jigclu.training.monitor import Monitor
from jigclu.training.settings import Compute, learning_settings


@dataclass(frozen=True, kw_only=True)
class KnnTask(EncoderTask):
    """Evaluates an encoder by weighted nearest neighbors.

    Attributes:
      evaluator: bank, queries and settings of the classification.
      seed: of the random weights, if init_from is None.
      compute: device and precision.
    """

    evaluator: KnnEvaluator
    seed: int
    compute: Compute

    def __post_init__(self) -> None:
        seeds.check_seed(self.seed)

    def check(self, workdir: Path) -> None:
        """Raises UserError for a missing device, or weights that do not fit the encoder."""
        del workdir
        local_device(self.compute.device)
        self.check_encoder()

    def plan(self, workdir: Path) -> str:
        """Returns what a run would do, in several lines."""
        del workdir
        evaluator, precision = self.evaluator, self._precision()
        stem = " with a small stem" if self.small_stem else ""
        return (
            f"encoder: {self.encoder}{stem}\n"
            f"precision: {precision.value} ({precision.reason})\n"
            f"devices: {launched_processes()} x {local_device(self.compute.device).type}\n"
            f"data: {len(evaluator.queries):,} images to classify by {len(evaluator.bank):,} "
            f"labeled images, {len(evaluator.bank.classes)} classes"
        )

    def run(self, workdir: Path, config: str) -> RunResult:
        """Evaluates the encoder, and writes its accuracy to TensorBoard."""
        device = local_device(self.compute.device)
        with process_group(device, self.compute.rank_timeout), recording(workdir):
            with seeds.initial_weights(self.seed):
                encoder = self.new_encoder().to(device)
            with Monitor.of_one_step(workdir, collectives.rank() == 0) as monitor:
                monitor.message(self._load(encoder))
                precision = collectives.broadcast(self._precision())
                warning = machine.precision_warning(precision, device)
                if warning is not None:
                    monitor.message(f"warning: {warning}")
                with progress.status("evaluating"):
                    report = EvaluationReport(monitor, 0)
                    scores = self.evaluator(encoder, machine.PRECISIONS[precision.value], report)
                monitor.text("config", 0, f"```\n{config}\n```")
                monitor.numbers(0, scores)
                monitor.settings(learning_settings(self), scores)
                accuracy, chance = scores["knn_accuracy"], scores["knn_accuracy_chance"]
                monitor.message(f"kNN accuracy {accuracy:.1%}, chance {chance:.1%}")
        return RunResult(scores, None)

    def _precision(self) -> machine.Choice[str]:
        device = local_device(self.compute.device)
        return machine.choose_precision(self.compute.precision, device, started=None)

    def _load(self, encoder: Encoder) -> str:
        if self.init_from is None:
            return f"no init_from: random weights of seed {self.seed}"
        return load_into(self.init_from, encoder_tensors(encoder), self.encoder)
