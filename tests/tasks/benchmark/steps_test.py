"""Tests of jigclu.tasks.benchmark.steps."""

from typing import Any
from unittest import mock

import torch
from absl.testing import absltest

from jigclu.tasks.benchmark import steps
from jigclu.tasks.benchmark.instruments import Action, device_instruments
from jigclu.tasks.benchmark.noise_steps import Operations
from jigclu.tasks.benchmark.steps import StepCost, StepCosts
from jigclu.tasks.benchmark.timing import Cost, Seconds
from jigclu.tasks.benchmark.workload import Arithmetic, Variant
from jigclu.tasks.pretrain import PretrainTask
from jigclu.training.settings import with_settings
from tests.samples import tiny_model
from tests.small_tasks import PRETRAINING
from tests.tasks.benchmark.fakes import FakeMachine

TASK = with_settings(PRETRAINING, small_stem=False, patch_size=32)
FLOAT32, BFLOAT16 = Arithmetic("float32", True), Arithmetic("bfloat16", False)
EAGER, COMPILED = Variant(False, FLOAT32), Variant(True, BFLOAT16)
RATES = {torch.float32: 1e12, torch.bfloat16: 4e12}
# Seconds of the first call, which compiles, and of the next two; bytes of a call.
COSTS: dict[tuple[Any, ...], tuple[tuple[float, ...], int]] = {
    ("published", False, "float32", False): ((9, 8, 10), 900),
    ("JigClu", False, "float32", True): ((19, 4, 6), 800),
    ("supervised", False, "float32", True): ((29, 3, 5), 700),
    ("JigClu", True, "bfloat16", False): ((399, 1, 2), 600),
    ("supervised", True, "bfloat16", False): ((499, 0.5, 1), 500),
}


class StepsTest(absltest.TestCase):
    def measure(
        self, task: PretrainTask, variants: list[Variant], machine: FakeMachine
    ) -> StepCosts:
        """Measures steps that cost what `COSTS` says of the tasks they are built from."""

        def builder(kind: str) -> Any:
            def build(task: PretrainTask, device: torch.device) -> Action:
                compute = task.compute
                key = (kind, compute.compile, compute.precision, compute.channels_last)
                seconds, memory = COSTS[key]
                return machine.action(*seconds, memory=memory)

            return build

        with mock.patch.multiple(
            steps,
            published_step=builder("published"),
            jigsaw_step=builder("JigClu"),
            supervised_step=builder("supervised"),
            network_operations=lambda _: Operations(jigclu=300, supervised=200),
            matmul_rate=lambda dtype, *_: RATES[dtype],
        ):
            return steps.measure_steps(task, variants, 2, machine.instruments)

    def test_every_kind_of_step_is_measured_in_every_variant(self) -> None:
        self.assertEqual(
            self.measure(TASK, [EAGER, COMPILED], FakeMachine()),
            StepCosts(
                steps=[
                    StepCost("published", steps.PUBLISHED, Cost(Seconds(9, 8, 10), 900), 300),
                    StepCost("JigClu", EAGER, Cost(Seconds(5, 4, 6), 800), 300),
                    StepCost("supervised", EAGER, Cost(Seconds(4, 3, 5), 700), 200),
                    StepCost("JigClu", COMPILED, Cost(Seconds(1.5, 1, 2), 600), 300),
                    StepCost("supervised", COMPILED, Cost(Seconds(0.75, 0.5, 1), 500), 200),
                ],
                matmul_rates={"bfloat16": 4e12, "float32": 1e12},
                tf32=False,
            ),
        )

    def test_a_small_stem_was_not_published(self) -> None:
        task = with_settings(TASK, small_stem=True)
        costs = self.measure(task, [COMPILED], FakeMachine())
        self.assertEqual([step.kind for step in costs.steps], ["JigClu", "supervised"])
        self.assertEqual(costs.matmul_rates, {"bfloat16": 4e12})

    def test_a_step_is_compared_with_the_supervised_one_of_its_variant(self) -> None:
        costs = self.measure(TASK, [EAGER, COMPILED], FakeMachine())
        twins = [costs.supervised_twin(step) for step in costs.steps]
        expected = [None, costs.steps[2], None, costs.steps[4], None]
        self.assertEqual(twins, expected)

    def test_float32_of_a_gpu_is_tf32_if_convolutions_are(self) -> None:
        before = torch.backends.cudnn.allow_tf32
        self.addCleanup(setattr, torch.backends.cudnn, "allow_tf32", before)
        for allowed in (True, False):
            torch.backends.cudnn.allow_tf32 = allowed
            for device in ("cuda", "cpu"):
                costs = self.measure(TASK, [EAGER], FakeMachine(device))
                self.assertEqual(costs.tf32, allowed and device == "cuda")

    def test_real_steps_run(self) -> None:
        with (
            mock.patch.object(steps, "matmul_rate", return_value=1e12),
            mock.patch.object(PretrainTask, "network", lambda _: tiny_model()),
        ):
            cpu = device_instruments(torch.device("cpu"))
            costs = steps.measure_steps(TASK, [EAGER], 1, cpu)
        self.assertLen(costs.steps, 3)
        for step in costs.steps:
            self.assertGreater(step.cost.seconds.least, 0)
            self.assertGreater(step.operations, 0)


if __name__ == "__main__":
    absltest.main()
