"""Half precision, loss scaling, and steps whose gradients are not finite."""

import torch
from absl.testing import absltest, parameterized

from tests.samples import ADAMW, jigsaw_inputs, tiny_model
from tests.step_case import StepTestCase, pretrain_step, train


class PrecisionTest(StepTestCase):
    def test_overflow_does_not_count_as_an_update(self) -> None:
        step = pretrain_step(precision="float16", build=tiny_model, optimizer=ADAMW)
        state = step.initial_state()._replace(loss_scale=torch.tensor(1e38))
        state, _, _ = step(state, jigsaw_inputs(0), 1e-3)
        self.assertEqual((state.step, state.updates.item()), (1, 0))
        self.assert_tensors_equal(
            state.moments["second_moment"],
            {name: torch.zeros_like(value) for name, value in state.parameters.items()},
        )
        state, _, _ = step(state._replace(loss_scale=torch.tensor(8.0)), jigsaw_inputs(1), 1e-3)
        self.assertEqual((state.step, state.updates.item()), (2, 1))

    def test_float16_overflow_skips_the_step_and_halves_the_scale(self) -> None:
        step = pretrain_step(precision="float16", build=tiny_model)
        state = step.initial_state()._replace(loss_scale=torch.tensor(1e38))
        before = {name: value.clone() for name, value in state.parameters.items()}
        state, metrics, _ = step(state, jigsaw_inputs(0), 0.03)
        self.assertEqual(metrics["skipped_steps"].item(), 1.0)
        self.assertEqual(metrics["gradient_norm"].item(), 0.0)
        self.assertEqual(state.loss_scale.item(), torch.tensor(5e37).item())
        self.assert_tensors_equal(state.parameters, before)
        self.assertEqual(state.step, 1)

        state, metrics, _ = step(
            state._replace(loss_scale=torch.tensor(8.0)), jigsaw_inputs(1), 0.03
        )
        self.assertEqual(metrics["skipped_steps"].item(), 0.0)
        self.assertFalse(torch.equal(state.parameters["fc_loc.weight"], before["fc_loc.weight"]))

    @parameterized.parameters(False, True)
    def test_bad_step_is_skipped_with_its_buffers(self, use_compile: bool) -> None:
        torch._dynamo.reset()
        step = pretrain_step(use_compile, build=tiny_model, skip_bad_steps=True)
        state, _, _ = step(step.initial_state(), jigsaw_inputs(0), 0.03)
        before = {name: value.clone() for name, value in state.tensors.items()}
        infinite = state._replace(loss_scale=torch.tensor(torch.inf))
        state, metrics, _ = step(infinite, jigsaw_inputs(1), 0.03)
        self.assertFalse(metrics["gradient_norm"].isfinite())
        self.assert_tensors_equal(state.tensors, before)
        self.assertEqual((state.step, state.updates.item()), (2, 1))
        state, _, _ = step(state._replace(loss_scale=torch.tensor(1.0)), jigsaw_inputs(2), 0.03)
        for name, value in state.tensors.items():
            self.assertFalse(torch.equal(value, before[name]), name)

    def test_skipping_bad_steps_changes_no_good_step(self) -> None:
        plain, skipping = train(3), train(3, skip_bad_steps=True)
        for part in ("parameters", "buffers", "gradients"):
            self.assert_tensors_equal(skipping[part], plain[part])

    def test_loss_scale_cancels_out(self) -> None:
        step = pretrain_step(precision="float16", build=tiny_model)
        norms = []
        for scale in (1.0, 4096.0):
            state = step.initial_state()._replace(loss_scale=torch.tensor(scale))
            _, metrics, _ = step(state, jigsaw_inputs(0), 1e-9)
            norms.append(metrics["gradient_norm"].item())
        self.assertAlmostEqual(norms[0], norms[1], delta=0.05 * norms[0])

    def test_non_finite_gradient_is_reported_and_changes_no_weight(self) -> None:
        step = pretrain_step()
        state = step.initial_state()
        with torch.no_grad():
            state.parameters["fc_loc.bias"][0] = torch.nan
        before = {name: value.clone() for name, value in state.parameters.items()}
        state, metrics, _ = step(state, jigsaw_inputs(0), 0.03)
        self.assertTrue(metrics["loss"].isnan())
        self.assertFalse(metrics["gradient_norm"].isfinite())
        self.assertNotIn("skipped_steps", metrics)
        self.assertTrue(torch.equal(state.parameters["fc_clu.0.bias"], before["fc_clu.0.bias"]))

    def test_bfloat16_is_near_float32(self) -> None:
        full = train(1, build=tiny_model)["metrics"][0]
        half = train(1, precision="bfloat16", build=tiny_model)["metrics"][0]
        self.assertAlmostEqual(half["loss"], full["loss"], delta=0.02 * full["loss"])
        self.assertNotEqual(half["loss"], full["loss"])
        self.assertEqual(list(half), list(full))


if __name__ == "__main__":
    absltest.main()
