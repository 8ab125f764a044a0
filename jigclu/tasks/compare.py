"""Comparison of methods under equal budgets of training time and of images seen.

First, the speed of every method is measured, in turns. Then one method after the other tries the
same number of candidate settings for a share of its budget, if it has more than one, and the one
with the best score on held-out training images is trained for the whole budget, with each seed, and
scored on val. All of this runs in one precision. A run that diverges is reported as such, and the
comparison continues.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jigclu.system import machine
from jigclu.system.device import launched_processes, local_device
from jigclu.system.errors import UserError, check
from jigclu.system.files import read_json, sha256, write_file
from jigclu.system.seeds import check_seed
from jigclu.tasks.compare_methods import (
    Method,
    Scoring,
    check_conditions,
    check_names,
    training_task,
)
from jigclu.tasks.compare_report import (
    RESULTS,
    Comparison,
    Result,
    Trial,
    chance,
    curve,
    describe_machine,
    health,
    write_comparison,
)
from jigclu.tasks.short_run import measure_speeds
from jigclu.tasks.stages import (
    Load,
    Stage,
    check_stage,
    load_stage,
    load_with,
    record_scores,
    run_stage,
)
from jigclu.training import checkpoint, run_records
from jigclu.training.finite import Diverged
from jigclu.training.loop import RunResult
from jigclu.training.monitor import Monitor
from jigclu.training.run_records import SCORES
from jigclu.training.task import TrainingTask

BUDGETS = ("time", "images")
_ROUNDS = 3  # Measurements of the speed of each method.
_SPEED = "speed.json"  # Seconds of training per image, by method.
_DIVERGED = "diverged"  # The only score of a stage that diverged.


@dataclass(frozen=True, kw_only=True)
class CompareTask:
    """Settings of a comparison; gin/results/compare_tiny.gin describes each of them.

    Attributes:
      methods: name, gin file, bindings over it, and candidates (further bindings of each trial) of
        each method; all have equally many candidates, and a single one is taken without trials.
      reference: name of the method whose budget is stated.
      epochs: of the reference.
      budgets: "time": as much training time as the reference takes; "images": as many epochs.
      trial_share: epochs of a trial as a share of those of the first budget.
      trial_bindings: with which trials train and score on parts of the training images.
      seeds: of the runs; the macro SEED.
      data: folder of the training data, DATA in their files; None: as the file binds it.
      scorings: name, gin file, task, folder of the data (as `data`) and bindings of each
        evaluation, of trained and of random weights.
      load: reads gin files.
    """

    methods: Sequence[tuple[str, str, tuple[str, ...], Sequence[tuple[str, ...]]]]
    reference: str
    epochs: float
    budgets: tuple[str, ...]
    trial_share: float
    trial_bindings: tuple[str, ...]
    seeds: tuple[int, ...]
    data: str | None
    scorings: Sequence[tuple[str, str, str, str | None, tuple[str, ...]]]
    load: Load

    def __post_init__(self) -> None:
        names = [method.name for method in self._methods()]
        check_names("methods", names)
        check(len(names) >= 1, "methods", names, "one or more")
        check_names("scorings", [scoring.name for scoring in self._scorings()])
        check(self.reference in names, "reference", self.reference, f"one of {names}")
        counts = {method.name: len(method.candidates) for method in self._methods()}
        equal = len(set(counts.values())) == 1 and min(counts.values()) >= 1
        check(equal, "methods", counts, "equally many candidates for each, one or more")
        check(0 < self.epochs < math.inf, "epochs", self.epochs, "above 0, and finite")
        known = bool(self.budgets) and set(self.budgets) <= set(BUDGETS)
        known = known and len(set(self.budgets)) == len(self.budgets)
        check(known, "budgets", self.budgets, f"some of {BUDGETS}, each once")
        check(0 < self.trial_share <= 1, "trial_share", self.trial_share, "in (0, 1]")
        unique = 0 < len(set(self.seeds)) == len(self.seeds)
        check(unique, "seeds", self.seeds, "one or more, which differ")
        for seed in self.seeds:
            check_seed(seed)

    def check(self, workdir: Path) -> None:
        """Raises UserError for a mistake in any stage that can be found before training."""
        if launched_processes() > 1:
            raise UserError("compare runs in a single process: start it without torchrun")
        known = self._known_speeds(workdir)
        equal = dict.fromkeys((method.name for method in self._methods()), 1.0)
        # Before all speeds are measured, the methods count as equally fast.
        self._check_trainings(known if known.keys() >= equal.keys() else equal, workdir)
        reference = self._first_training(self._reference_method()).task
        # In a dry run whose data would have to be downloaded, the encoder is not known.
        if isinstance(reference, TrainingTask):
            # Those of weights that do not exist yet only differ in the weights.
            for name, stage in self._untrained(reference):
                check_stage(name, stage, workdir / "new")

    def plan(self, workdir: Path) -> str:
        """Returns what a run would do, in several lines."""
        lines = [f"methods: {', '.join(method.name for method in self._methods())}"]
        trials = sum(len(method.trial_candidates) for method in self._methods())
        runs = len(self.methods) * len(self.budgets) * len(self.seeds)
        lines += [
            f"budgets: equal {' and '.join(self.budgets)}; {self.epochs:g} epochs of "
            f"{self.reference}",
            f"trainings: {trials} trials of {self.trial_share:.0%} of the budget, then {runs} runs",
            f"results: {workdir / 'report.html'} and {RESULTS}, after every run",
        ]
        return "\n".join(lines)

    def run(self, workdir: Path, config: str) -> RunResult:
        """Trains what is not finished, and reports after every run."""
        with Monitor.of_one_step(workdir, True) as monitor:
            monitor.text("config", 0, f"```\n{config}\n```")
            precision = self._choose_precision(workdir)
            monitor.message(f"all stages run in {precision}")
            in_precision = replace(
                self, load=load_with(self.load, [f"compute.precision={precision!r}"])
            )
            results = in_precision._run_all(precision, workdir, monitor.message)
            monitor.message(f"the comparison is in {workdir / 'report.html'}")
        scores = {
            f"{result.budget}/{result.method}/{result.seed}/{name}": value
            for result in results
            for name, value in result.scores.items()
        }
        return RunResult(scores, None)

    def _run_all(
        self, precision: str, workdir: Path, message: Callable[[str], None]
    ) -> list[Result]:
        """Returns all results; reports after each of them."""
        known = self._known_speeds(workdir)
        seconds = self._measure_speed(known, workdir, message)
        # Otherwise, `check` has already checked the same trainings.
        if "time" in self.budgets and seconds.keys() - known.keys():
            self._check_trainings(seconds, workdir)
        untrained = self._score_untrained(workdir, message)
        results: list[Result] = []
        trials: list[Trial] = []
        for result in self._results(trials, seconds, workdir, message):
            results.append(result)
            write_comparison(workdir, Comparison(results, untrained, seconds, trials, precision))
        return results

    # ---- Budgets -----------------------------------------------------------------------

    def _choose_precision(self, workdir: Path) -> str:
        """Returns the precision of all stages; 'auto' is chosen only once for a workdir."""
        path = workdir / "precision.json"
        started: str | None = read_json(path, None)
        compute = self._training_task(self._reference_method()).compute
        device = local_device(compute.device)
        chosen = machine.choose_precision(compute.precision, device, started).value
        write_file(path, json.dumps(chosen).encode())
        return chosen

    def _known_speeds(self, workdir: Path) -> dict[str, float]:
        """Returns the seconds per image that earlier starts have measured."""
        known: dict[str, float] = read_json(workdir / _SPEED, {})
        return known

    def _measure_speed(
        self, known: dict[str, float], workdir: Path, message: Callable[[str], None]
    ) -> dict[str, float]:
        """Returns the seconds of training per image of each method, measured only once."""
        path = workdir / _SPEED
        if known:
            message(
                f"speeds of {', '.join(known)} are those of {path}; in a new --workdir, they are "
                "measured again"
            )
        missing = {
            method.name: self._training_task(method)
            for method in self._methods()
            if method.name not in known
        }
        found = known | measure_speeds(missing, _ROUNDS, message)
        write_file(path, json.dumps(found, indent=1).encode())
        return {method.name: found[method.name] for method in self._methods()}

    def _budget(self, method: str, budget: str, seconds: dict[str, float]) -> float:
        """Returns the epochs of a method."""
        if budget == "images":
            return self.epochs
        return self.epochs * seconds[self.reference] / seconds[method]

    # ---- Trials ------------------------------------------------------------------------

    def _try(
        self,
        method: Method,
        seconds: dict[str, float],
        workdir: Path,
        message: Callable[[str], None],
    ) -> list[Trial]:
        """Returns the held-out score of each candidate that is tried."""
        trials = []
        for number, settings in enumerate(method.trial_candidates):
            name = f"trials/{method.name}/{number}"
            stage = self._trial(method, settings, seconds)
            found = _run(name, stage, workdir / name, {"settings": list(settings)}, message)
            known = [found[key] for key in SCORES if key in found] if found else []
            if found is not None and not known:
                raise UserError(
                    f"{method.name} has none of the scores {SCORES} to choose its settings by: "
                    "bind pretrain.evaluators, or a single candidate"
                )
            score = known[0] if known else None
            trials.append(Trial(method.name, settings, score))
            described = "diverged" if score is None else f"{score:.1%}"
            message(f"{name}: {described} with {', '.join(settings)}")
        return trials

    # ---- Runs --------------------------------------------------------------------------

    def _results(
        self,
        trials: list[Trial],
        seconds: dict[str, float],
        workdir: Path,
        message: Callable[[str], None],
    ) -> Iterator[Result]:
        """Yields the result of each run; adds the trials of a method before its first run."""
        chosen: dict[str, tuple[str, ...]] = {}
        for seed in self.seeds:
            for budget in self.budgets:
                for method in self._methods():
                    if method.name not in chosen:
                        own = self._try(method, seconds, workdir, message)
                        trials += own
                        chosen[method.name] = _best(method, own)
                    settings = chosen[method.name]
                    yield self._train(method, settings, budget, seed, seconds, workdir, message)

    def _train(
        self,
        method: Method,
        settings: tuple[str, ...],
        budget: str,
        seed: int,
        seconds: dict[str, float],
        workdir: Path,
        message: Callable[[str], None],
    ) -> Result:
        """Returns the result of a run with the chosen candidate of a method."""
        epochs = self._budget(method.name, budget, seconds)
        name = f"{budget}/{method.name}/seed_{seed}"
        folder = workdir / name
        stage = self._training(method, settings, epochs, seed, False)
        scores = _run(name, stage, folder, {"settings": list(settings)}, message)
        if scores is not None:
            scores = scores | self._score(folder, message)
        run = run_records.read(folder)
        return Result(
            method=method.name,
            budget=budget,
            seed=seed,
            settings=settings,
            epochs=epochs,
            images=run.images,
            hours=run.images * seconds[method.name] / 3600,
            scores=scores or {},
            curve=curve(run, seconds[method.name]),
            chance=chance(run),
            health=health(run),
            machine=describe_machine(run),
        )

    def _score(self, folder: Path, message: Callable[[str], None]) -> dict[str, float]:
        """Returns the scores of the weights of a finished run; none of what diverged."""
        scores: dict[str, float] = {}
        weights = checkpoint.latest(folder)
        assert weights is not None
        for scoring in self._scorings():
            own = folder / scoring.name
            stage = self._scoring(scoring, [f"init_from={str(weights)!r}"]).for_workdir(own)
            found = _run(str(own), stage, own, {"weights": sha256(weights)}, message) or {}
            scores |= {f"{scoring.name}/{name}": value for name, value in found.items()}
        return scores

    def _score_untrained(self, workdir: Path, message: Callable[[str], None]) -> dict[str, float]:
        scores: dict[str, float] = {}
        for scoring, stage in self._untrained(self._training_task(self._reference_method())):
            own = workdir / "untrained" / scoring
            found = _run(str(own), stage, own, {}, message) or {}
            scores |= {f"{scoring}/{name}": value for name, value in found.items()}
        return scores

    # ---- Stages ------------------------------------------------------------------------

    def _methods(self) -> list[Method]:
        return [Method(*item) for item in self.methods]

    def _scorings(self) -> list[Scoring]:
        return [Scoring(*item) for item in self.scorings]

    def _reference_method(self) -> Method:
        (method,) = (method for method in self._methods() if method.name == self.reference)
        return method

    def _training_task(self, method: Method) -> TrainingTask:
        """Returns the task of a method's first candidate."""
        return training_task(method.name, self._first_training(method).task)

    def _first_training(self, method: Method) -> Stage:
        """Returns the training of a method's first candidate."""
        return self._training(method, method.candidates[0], self.epochs, 0, False)

    def _check_trainings(self, seconds: dict[str, float], workdir: Path) -> None:
        """Checks all trials, and a run of each method, with the epochs of these speeds."""
        trials, runs = {}, {}
        for method in self._methods():
            for number, settings in enumerate(method.trial_candidates):
                name = f"{method.name}, candidate {number}"
                trials[name] = self._trial(method, settings, seconds)
            for budget in self.budgets:
                epochs = self._budget(method.name, budget, seconds)
                name = f"{method.name}, {epochs:g} epochs"
                runs[name] = self._training(method, method.candidates[0], epochs, 0, False)
        for stages in (trials, runs):
            for name, stage in stages.items():
                check_stage(name, stage, workdir / "new")
            check_conditions({name: stage.task for name, stage in stages.items()})

    def _trial(self, method: Method, settings: Sequence[str], seconds: dict[str, float]) -> Stage:
        """Returns the trial of a candidate of a method."""
        epochs = self.trial_share * self._budget(method.name, self.budgets[0], seconds)
        return self._training(method, settings, epochs, 0, True)

    def _training(
        self, method: Method, settings: Sequence[str], epochs: float, seed: int, trial: bool
    ) -> Stage:
        """Returns the training of a candidate of a method."""
        bindings = [*method.bindings, *settings, f"schedule.epochs={epochs:.6g}", f"SEED={seed}"]
        bindings += [*_folder(self.data), *(self.trial_bindings if trial else ())]
        return load_stage(self.load, method.name, method.file, bindings, None)

    def _scoring(self, scoring: Scoring, weights: Sequence[str]) -> Stage:
        """Returns an evaluation with bindings of the weights, such as init_from='...'."""
        bindings = [f"{scoring.task}.{binding}" for binding in weights]
        bindings += [*scoring.bindings, *_folder(scoring.data)]
        return load_stage(self.load, scoring.name, scoring.file, bindings, None)

    def _untrained(self, like: TrainingTask) -> Iterator[tuple[str, Stage]]:
        """Yields name and stage of each evaluation of random weights of a task's encoder."""
        weights = ["init_from=None", f"encoder={like.encoder!r}", f"small_stem={like.small_stem}"]
        for scoring in self._scorings():
            yield scoring.name, self._scoring(scoring, weights)


def _run(
    name: str,
    stage: Stage,
    folder: Path,
    inputs: Mapping[str, Any],
    message: Callable[[str], None],
) -> dict[str, float] | None:
    """Returns the scores of a stage; None if it diverged, after which it does not run again."""
    try:
        found = run_stage(name, stage, folder, inputs, message)
    except Diverged as error:
        message(f"{name} diverged: {error}")
        record_scores(folder, {_DIVERGED: 1.0})
        return None
    if _DIVERGED in found:
        message(f"{name} diverged before; remove {folder} to run it again")
        return None
    return found


def _best(method: Method, trials: Sequence[Trial]) -> tuple[str, ...]:
    """Returns the candidate of a method with the best score, or its only one."""
    if not trials:
        return tuple(method.candidates[0])
    return max(trials, key=lambda trial: trial.score or 0.0).settings


def _folder(data: str | None) -> list[str]:
    """Returns the binding of a folder of data."""
    return [] if data is None else [f"DATA={data!r}"]
