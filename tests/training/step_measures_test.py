"""Measured steps: norms and health of modules, equal across ranks."""

import torch
from absl.testing import absltest
from torch import Tensor, nn

from tests.ranks import run_on_ranks
from tests.samples import JIGSAW, jigsaw_inputs, method_inputs, tiny_model
from tests.step_case import StepTestCase, double_model, on_cpu, pretrain_step


def measure(norm_layer: type[nn.Module]) -> dict[str, Tensor]:
    """Returns the measures of a first step."""
    step = pretrain_step(build=double_model, norm_layer=norm_layer)
    inputs = method_inputs(JIGSAW, 0, "cpu")
    return step(step.initial_state(), inputs, 0.03, measured=True).measures


class MeasuresTest(StepTestCase):
    def test_measured_steps_take_the_same_step_without_recompilation(self) -> None:
        torch._dynamo.reset()
        results = {}
        for use_compile, measured in ((False, False), (False, True), (True, True)):
            step = pretrain_step(use_compile, build=tiny_model)
            state = step.initial_state()
            for number in range(3):
                with torch._dynamo.config.patch(error_on_recompile=number > 0):
                    inputs = jigsaw_inputs(number)
                    # The first step is not measured.
                    state, _, measures = step(state, inputs, 0.03, measured and number > 0)
            results[use_compile, measured] = (on_cpu(state.parameters), measures)
        plain, eager, compiled = results.values()
        self.assertEqual(plain[1], {})
        for name, value in plain[0].items():
            self.assertTrue(torch.equal(eager[0][name], value), name)
        for name, value in eager[1].items():
            torch.testing.assert_close(compiled[1][name], value, rtol=2e-2, atol=1e-3)

    def test_norms_of_modules(self) -> None:
        step = pretrain_step(build=tiny_model)
        state = step.initial_state()
        before = {name: value.clone() for name, value in state.parameters.items()}
        state, metrics, measures = step(state, jigsaw_inputs(0), 0.03, measured=True)

        def norm(values: dict[str, Tensor], module: str) -> float:
            own = [value for name, value in values.items() if name.startswith(f"{module}.")]
            return torch.cat([value.flatten() for value in own]).norm().item()

        changes = {name: state.parameters[name] - value for name, value in before.items()}
        squares = 0.0
        for module in ("encoder", "fc_clu", "fc_loc"):
            size = norm(before, module)
            self.assertAlmostEqual(measures[f"parameter_norm/{module}"].item() / size, 1.0, 5)
            ratio = measures[f"update_ratio/{module}"].item()
            self.assertAlmostEqual(ratio * size / norm(changes, module), 1.0, delta=1e-4)
            squares += measures[f"gradient_norm/{module}"].item() ** 2
        self.assertAlmostEqual(squares**0.5 / metrics["gradient_norm"].item(), 1.0, places=5)

    def test_measures_are_of_all_ranks(self) -> None:
        first, second = run_on_ranks(measure, 2, nn.Identity)
        alone = measure(nn.Identity)
        for name, value in alone.items():
            self.assertTrue(torch.equal(first[name], second[name]), name)
            torch.testing.assert_close(first[name], value, rtol=1e-3, atol=1e-4)


if __name__ == "__main__":
    absltest.main()
