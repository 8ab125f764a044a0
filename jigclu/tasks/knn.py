"""The task of scoring the weights of a file by nearest neighbors."""

from dataclasses import dataclass
from pathlib import Path

from jigclu.models.encoder import Encoder, create_encoder, encoder_tensors
from jigclu.models.weights import check_encoder, load_into
from jigclu.system import collectives, machine, progress, seeds
from jigclu.system.device import launched_processes, local_device, process_group
from jigclu.training.knn_evaluator import KnnEvaluation
from jigclu.training.monitor import Monitor


@dataclass(frozen=True, kw_only=True)
class KnnTask:
    """Scores the encoder of a file by its nearest neighbors.

    init_from: file of weights; None: random ones of the seed, for comparison.
    encoder, small_stem: of `create_encoder`. device, precision: as in training.
    """

    evaluation: KnnEvaluation
    init_from: str | None
    seed: int
    encoder: str
    small_stem: bool
    device: str
    precision: str

    def check(self, workdir: Path, config: str) -> None:
        """Raises UserError for a value out of range, or weights that do not fit."""
        del workdir, config
        machine.check_precision(self.precision)
        local_device(self.device)
        self.evaluation.check()
        check_encoder(self.init_from, self.encoder, self.small_stem)

    def plan(self, workdir: Path) -> str:
        """Returns what a run would do, several lines."""
        del workdir
        evaluation = self.evaluation
        precision = self._precision()
        return (
            f"precision: {precision.value} ({precision.reason})\n"
            f"devices: {launched_processes()} x {local_device(self.device).type}\n"
            f"data: {len(evaluation.queries):,} images to classify by {len(evaluation.bank):,} "
            f"others, {len(evaluation.bank.classes)} classes"
        )

    def run(self, workdir: Path, config: str) -> dict[str, float]:
        """Scores, prints the score and writes it to TensorBoard; returns it by name."""
        device = local_device(self.device)
        with process_group(device):
            with seeds.initial_weights(self.seed):
                encoder = create_encoder(self.encoder, self.small_stem).to(device)
            with Monitor.of_one_step(workdir, collectives.rank() == 0) as monitor:
                monitor.message(self._load(encoder))
                precision = collectives.broadcast(self._precision())
                warning = machine.precision_warning(precision, device)
                if warning is not None:
                    monitor.message(f"warning: {warning}")
                with progress.status("scoring"):
                    score = self.evaluation(encoder, machine.PRECISIONS[precision.value])
                monitor.text("config", 0, f"```\n{config}\n```")
                scores = {"knn_accuracy": score.accuracy, "knn_accuracy_chance": score.chance}
                for name, value in scores.items():
                    monitor.scalar(name, 0, value)
                monitor.message(f"kNN accuracy {score.accuracy:.2%}, chance {score.chance:.2%}")
        return scores

    def _precision(self) -> machine.Choice:
        return machine.choose_precision(self.precision, local_device(self.device), started=None)

    def _load(self, encoder: Encoder) -> str:
        if self.init_from is None:
            return f"no init_from: random weights of seed {self.seed}"
        return load_into(Path(self.init_from), encoder_tensors(encoder))
