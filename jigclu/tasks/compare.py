"""Comparison of methods under equal budgets of training time and of images seen.

First, the speed of every method is measured, in turns. Then one method after the other tries the
same number of candidate settings for a share of its budget, and the one with the best score on
held-out training images is trained for the whole budget, with each seed, and scored on val.
"""

import json
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from jigclu.system.device import launched_processes
from jigclu.system.errors import UserError, check
from jigclu.system.files import sha256, write_file
from jigclu.tasks.compare_report import Result, report_comparison
from jigclu.tasks.short_run import measure_first_steps
from jigclu.tasks.stages import (
    PRETRAINED,
    Load,
    Stage,
    check_stage,
    fill,
    last_checkpoint,
    load_stage,
    run_stage,
)
from jigclu.training import checkpoint
from jigclu.training.finite import Diverged
from jigclu.training.loop import RunResult
from jigclu.training.monitor import Monitor
from jigclu.training.report import write_document
from jigclu.training.run_records import SCORES
from jigclu.training.task import TrainingTask

BUDGETS = ("time", "images")
_ROUNDS = 3  # Measurements of the speed of each method.


class Method(NamedTuple):
    """A compared method.

    name: and folder.
    file: gin file of its training.
    candidates: the bindings of each trial.
    """

    name: str
    file: str
    candidates: Sequence[tuple[str, ...]]


class Scoring(NamedTuple):
    """An evaluation of trained weights.

    name: and folder.
    file: gin file.
    bindings: over it; {pretrained} stands for the weights.
    """

    name: str
    file: str
    bindings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class CompareTask:
    """Settings of a comparison; gin/results/compare_tiny.gin describes each of them.

    Attributes:
      methods: name, gin file and candidate settings of each method; all have equally many.
      reference: name of the method whose budget is stated.
      epochs: of the reference.
      budgets: "time": as much training time as the reference takes; "images": as many epochs.
      trial_share: epochs of a trial as a share of those of the first budget.
      trial_bindings: with which trials train and score on parts of the training images.
      seeds: of the runs; the macro SEED.
      scorings: name, gin file and bindings of each evaluation of trained weights, for which
        {pretrained} stands.
      untrained: the same for random weights.
      data: folder of the data, DATA in every stage; None: as the stage's file binds it.
      load: reads gin files.
    """

    methods: Sequence[tuple[str, str, Sequence[tuple[str, ...]]]]
    reference: str
    epochs: float
    budgets: tuple[str, ...]
    trial_share: float
    trial_bindings: tuple[str, ...]
    seeds: tuple[int, ...]
    scorings: Sequence[tuple[str, str, tuple[str, ...]]]
    untrained: Sequence[tuple[str, str, tuple[str, ...]]]
    data: str | None
    load: Load

    def __post_init__(self) -> None:
        names = [name for name, _, _ in self.methods]
        unique = 0 < len(set(names)) == len(names)
        check(unique, "methods", names, "one or more, with different names")
        check(self.reference in names, "reference", self.reference, f"one of {names}")
        counts = {name: len(candidates) for name, _, candidates in self.methods}
        equal = len(set(counts.values())) == 1 and min(counts.values()) >= 1
        check(equal, "methods", counts, "equally many candidates for each, one or more")
        check(0 < self.epochs < math.inf, "epochs", self.epochs, "above 0, and finite")
        known = bool(self.budgets) and set(self.budgets) <= set(BUDGETS)
        check(known, "budgets", self.budgets, f"some of {BUDGETS}")
        check(0 < self.trial_share <= 1, "trial_share", self.trial_share, "in (0, 1]")
        check(len(self.seeds) >= 1, "seeds", self.seeds, "one or more")

    def check(self, workdir: Path) -> None:
        """Raises UserError for a mistake in any stage that can be found before training."""
        if launched_processes() > 1:
            raise UserError("compare runs in a single process: start it without torchrun")
        folder = workdir / "new"
        for method in self._methods():
            for number in range(len(method.candidates)):
                trial = self._training(method, number, self.epochs, 0, True)
                check_stage(f"{method.name}, candidate {number}", trial, folder)
            stage = self._training(method, 0, self.epochs, 0, False)
            check_stage(method.name, stage, folder)
        for scoring in self._scorings():
            check_stage(scoring.name, self._scoring(scoring, folder), folder, stage.task)
        for scoring in (Scoring(*item) for item in self.untrained):
            check_stage(scoring.name, self._scoring(scoring, folder), folder)

    def plan(self, workdir: Path) -> str:
        """Returns what a run would do, in several lines."""
        lines = [f"methods: {', '.join(method.name for method in self._methods())}"]
        trials = len(self.methods) * len(self.methods[0][2])
        runs = len(self.methods) * len(self.budgets) * len(self.seeds)
        lines += [
            f"budgets: equal {' and '.join(self.budgets)}; {self.epochs:g} epochs of "
            f"{self.reference}",
            f"trainings: {trials} trials of {self.trial_share:.0%} of the budget, then {runs} runs",
            f"results: {workdir / 'report.html'}, after every run",
        ]
        return "\n".join(lines)

    def run(self, workdir: Path, config: str) -> RunResult:
        """Trains what is not finished, and reports after every run."""
        with Monitor.of_one_step(workdir, True) as monitor:
            monitor.text("config", 0, f"```\n{config}\n```")
            seconds = self._measure_speed(workdir, monitor.message)
            untrained = self._score_untrained(workdir, monitor.message)
            results: list[Result] = []
            for result in self._results(seconds, workdir, monitor.message):
                results.append(result)
                document = report_comparison(results, untrained, seconds, self._tried(workdir))
                write_document(workdir, document)
            monitor.message(f"the comparison is in {workdir / 'report.html'}")
        scores = {
            f"{result.budget}/{result.method}/{result.seed}/{name}": value
            for result in results
            for name, value in result.scores.items()
        }
        return RunResult(scores, None)

    # ---- Budgets -----------------------------------------------------------------------

    def _measure_speed(self, workdir: Path, message: Callable[[str], None]) -> dict[str, float]:
        """Returns the seconds of training per image of each method, measured only once."""
        path = workdir / "speed.json"
        found: dict[str, float] = {}
        if path.exists():
            found = json.loads(path.read_text(encoding="utf-8"))
        missing = [method for method in self._methods() if method.name not in found]
        measured: dict[str, list[float]] = {method.name: [] for method in missing}
        for number in range(_ROUNDS):
            for method in missing:
                message(f"measuring the speed of {method.name}, {number + 1} of {_ROUNDS}")
                task = self._training(method, 0, self.epochs, 0, False).task
                assert isinstance(task, TrainingTask)
                record = measure_first_steps(task)
                assert record is not None
                measured[method.name].append(1 / record["images_per_second"])
        found |= {name: statistics.median(values) for name, values in measured.items()}
        write_file(path, json.dumps(found, indent=1).encode())
        return {method.name: found[method.name] for method in self._methods()}

    def _budget(self, method: str, budget: str, seconds: dict[str, float]) -> float:
        """Returns the epochs of a method."""
        if budget == "images":
            return self.epochs
        return self.epochs * seconds[self.reference] / seconds[method]

    # ---- Trials ------------------------------------------------------------------------

    def _choose(
        self,
        method: Method,
        seconds: dict[str, float],
        workdir: Path,
        message: Callable[[str], None],
    ) -> int:
        """Returns the number of the candidate with the best score on held-out training images."""
        epochs = self.trial_share * self._budget(method.name, self.budgets[0], seconds)
        scores = {}
        for number, bindings in enumerate(method.candidates):
            name = f"trials/{method.name}/{number}"
            stage = self._training(method, number, epochs, 0, True)
            try:
                found = run_stage(name, stage, workdir / name, {}, message)
                scores[number] = next(found[key] for key in SCORES if key in found)
            except Diverged as error:
                message(f"{name} diverged: {error}")
                scores[number] = 0.0
            message(f"{name}: {scores[number]:.1%} with {', '.join(bindings)}")
        path = workdir / "trials" / method.name / "scores.json"
        write_file(path, json.dumps(list(scores.values())).encode())
        return max(scores, key=lambda number: scores[number])

    def _tried(self, workdir: Path) -> list[tuple[str, str, float]]:
        """Returns method, bindings and score of every trial."""
        tried = []
        for method in self._methods():
            path = workdir / "trials" / method.name / "scores.json"
            if not path.exists():
                continue
            scores = json.loads(path.read_text(encoding="utf-8"))
            for bindings, score in zip(method.candidates, scores, strict=True):
                tried.append((method.name, ", ".join(bindings), score))
        return tried

    # ---- Runs --------------------------------------------------------------------------

    def _results(
        self,
        seconds: dict[str, float],
        workdir: Path,
        message: Callable[[str], None],
    ) -> Iterator[Result]:
        """Yields the result of each run; the first one of a method follows its trials."""
        chosen: dict[str, int] = {}
        for seed in self.seeds:
            for budget in self.budgets:
                for method in self._methods():
                    if method.name not in chosen:
                        chosen[method.name] = self._choose(method, seconds, workdir, message)
                    epochs = self._budget(method.name, budget, seconds)
                    name = f"{budget}/{method.name}/seed_{seed}"
                    folder = workdir / name
                    stage = self._training(method, chosen[method.name], epochs, seed, False)
                    scores = run_stage(name, stage, folder, {}, message)
                    scores = scores | self._score(folder, message)
                    yield Result(method.name, budget, seed, epochs, scores, folder)

    def _score(self, folder: Path, message: Callable[[str], None]) -> dict[str, float]:
        """Returns the scores of the weights of a finished run."""
        scores: dict[str, float] = {}
        weights = checkpoint.latest(folder)
        assert weights is not None
        for scoring in self._scorings():
            own = folder / scoring.name
            stage = self._scoring(scoring, folder).for_workdir(own)
            found = run_stage(str(own), stage, own, {"weights": sha256(weights)}, message)
            scores |= {f"{scoring.name}/{name}": value for name, value in found.items()}
        return scores

    def _score_untrained(self, workdir: Path, message: Callable[[str], None]) -> dict[str, float]:
        scores: dict[str, float] = {}
        for scoring in (Scoring(*item) for item in self.untrained):
            own = workdir / "untrained" / scoring.name
            found = run_stage(str(own), self._scoring(scoring, own), own, {}, message)
            scores |= {f"{scoring.name}/{name}": value for name, value in found.items()}
        return scores

    # ---- Stages ------------------------------------------------------------------------

    def _methods(self) -> list[Method]:
        return [Method(*item) for item in self.methods]

    def _scorings(self) -> list[Scoring]:
        return [Scoring(*item) for item in self.scorings]

    def _training(
        self, method: Method, number: int, epochs: float, seed: int, trial: bool
    ) -> Stage:
        """Returns the training of a candidate of a method."""
        bindings = [*method.candidates[number], f"schedule.epochs={epochs:.6g}", f"SEED={seed}"]
        bindings += [*self._data_binding(), *(self.trial_bindings if trial else ())]
        return load_stage(self.load, method.name, method.file, bindings, None)

    def _scoring(self, scoring: Scoring, folder: Path) -> Stage:
        """Returns an evaluation of the weights in a folder."""
        bindings = fill(scoring.bindings, {PRETRAINED: last_checkpoint(folder)})
        bindings += self._data_binding()
        return load_stage(self.load, scoring.name, scoring.file, bindings, None)

    def _data_binding(self) -> list[str]:
        return [] if self.data is None else [f"DATA={self.data!r}"]
