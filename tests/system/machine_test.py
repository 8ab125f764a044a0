"""Tests of jigclu.system.machine, mostly on simulated machines."""

import os
from typing import Any
from unittest import mock

import torch
from absl.testing import absltest, parameterized

from jigclu.system import allocator, machine
from jigclu.system.errors import UserError
from jigclu.system.machine import Choice

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def cpu(bfloat16: bool, slowdown: float = 1.0) -> mock._patch:
    """Simulates a CPU with or without bfloat16, and the measured slowdown."""
    return mock.patch.multiple(
        machine,
        _cpu_supports_bfloat16=lambda: bfloat16,
        precision_slowdown=lambda precision, device: slowdown,
    )


def gpu(bfloat16: bool) -> mock._patch:
    return mock.patch.multiple(
        torch.cuda,
        is_bf16_supported=lambda including_emulation: bfloat16 or including_emulation,
        get_device_name=lambda device: "some GPU",
    )


def cores(count: int, ranks: int = 1) -> mock._patch:
    return mock.patch.multiple(machine, available_cores=lambda: count, local_ranks=lambda: ranks)


def compiler(problem: str | None) -> mock._patch:
    return mock.patch.object(machine, "compiler_problem", lambda: problem)


class PrecisionTest(parameterized.TestCase):
    @parameterized.parameters(
        (False, 0.4, "float32", "neither avx512_bf16 nor AMX"),
        (True, 0.4, "bfloat16", "2.5 times as fast"),
        (True, 12.0, "float32", "bfloat16 takes 12.0 times as long"),
    )
    def test_cpu_uses_bfloat16_if_supported_and_fast(
        self, supported: bool, slowdown: float, expected: str, reason: str
    ) -> None:
        with cpu(supported, slowdown):
            chosen = machine.choose_precision("auto", CPU, None)
        self.assertEqual(chosen.value, expected)
        self.assertIn(reason, chosen.reason)

    @parameterized.parameters((True, "bfloat16"), (False, "float16"))
    def test_gpus_without_bfloat16_use_float16(self, native: bool, expected: str) -> None:
        with gpu(native):
            chosen = machine.choose_precision("auto", GPU, None)
        self.assertEqual(chosen.value, expected)
        self.assertIn("some GPU has", chosen.reason)

    def test_resumed_run_keeps_its_precision(self) -> None:
        with cpu(False):
            chosen = machine.choose_precision("auto", CPU, "bfloat16")
        self.assertEqual(chosen, Choice("bfloat16", "precision of the resumed run"))

    @parameterized.parameters((None, "bound"), ("float16", "bound"))
    def test_bound_precision_is_used(self, started: str | None, reason: str) -> None:
        self.assertEqual(
            machine.choose_precision("float16", CPU, started), Choice("float16", reason)
        )

    def test_reason_names_the_earlier_precision_of_a_resumed_run(self) -> None:
        chosen = machine.choose_precision("float32", CPU, "bfloat16")
        self.assertEqual(chosen, Choice("float32", "bound; this run started in bfloat16"))

    @parameterized.parameters("auto", "float32", "bfloat16", "float16")
    def test_accepts_known_precisions(self, precision: str) -> None:
        machine.check_precision(precision)

    def test_rejects_an_unknown_precision(self) -> None:
        with self.assertRaisesRegex(UserError, "precision is 'fp16'; .*'auto', 'float32'"):
            machine.check_precision("fp16")

    def test_slow_precision_causes_a_warning(self) -> None:
        with cpu(True, 12.3):
            warning = machine.precision_warning(Choice("bfloat16", "bound"), CPU)
            self.assertIsNone(machine.precision_warning(Choice("float32", "bound"), CPU))
        assert warning is not None
        self.assertRegex(
            warning, "'bfloat16', .* 12.3 times as long .*bind compute.precision = 'float32'"
        )

    def test_fast_precision_causes_no_warning(self) -> None:
        with cpu(True, 0.5):
            self.assertIsNone(machine.precision_warning(Choice("bfloat16", "bound"), CPU))

    def test_slowdown_is_the_ratio_of_convolution_times(self) -> None:
        seconds = {torch.bfloat16: 6.0, torch.float32: 1.5}
        machine.precision_slowdown.cache_clear()
        self.addCleanup(machine.precision_slowdown.cache_clear)
        with mock.patch.object(
            machine, "_convolution_seconds", lambda dtype, device: seconds[dtype]
        ):
            self.assertEqual(machine.precision_slowdown("bfloat16", CPU), 4.0)

    def test_slowdown_is_measured_on_this_machine(self) -> None:
        self.assertGreater(machine.precision_slowdown("bfloat16", CPU), 0)


class CompileTest(parameterized.TestCase):
    @parameterized.parameters(
        ("auto", CPU, 10**6, None, False, "eager steps are as fast on a CPU"),
        ("auto", GPU, 10**6, None, True, "1,000,000 steps earn back"),
        ("auto", GPU, 20, None, False, "20 steps are too few"),
        ("auto", GPU, 10**6, "no g++", False, "no g[+][+]"),
        (True, CPU, 20, None, True, "bound"),
        (False, GPU, 10**6, None, False, "bound"),
    )
    def test_compiles_only_if_worthwhile(
        self,
        bound: Any,
        device: torch.device,
        steps: int,
        problem: str | None,
        expected: bool,
        reason: str,
    ) -> None:
        with compiler(problem):
            chosen = machine.choose_compile(bound, device, steps)
        self.assertEqual(chosen.value, expected)
        self.assertRegex(chosen.reason, reason)

    def test_does_not_compile_without_anything_to_compile(self) -> None:
        chosen = machine.choose_compile(True, GPU, 10**6, compilable=False)
        self.assertEqual(chosen, Choice(False, "nothing to compile"))


class ProcessesTest(parameterized.TestCase):
    @parameterized.parameters((CPU, 2, 1, 1), (CPU, 32, 1, 4), (CPU, 32, 4, 1), (CPU, 1, 2, 1))
    def test_workers_leave_most_of_a_cpu_to_training(
        self, device: torch.device, count: int, ranks: int, expected: int
    ) -> None:
        with cores(count, ranks):
            self.assertEqual(machine.choose_workers("auto", device).value, expected)

    @parameterized.parameters((1, 1, 1), (8, 1, 7), (128, 8, 15), (96, 1, 16))
    def test_workers_use_the_remaining_cores_beside_a_gpu(
        self, count: int, ranks: int, expected: int
    ) -> None:
        with cores(count, ranks):
            self.assertEqual(machine.choose_workers("auto", GPU).value, expected)

    def test_bound_workers_are_used(self) -> None:
        self.assertEqual(machine.choose_workers(0, GPU), Choice(0, "bound"))
        self.assertEqual(machine.choose_pack_workers(3), Choice(3, "bound"))

    def test_packing_uses_every_core(self) -> None:
        with cores(6):
            self.assertEqual(machine.choose_pack_workers("auto"), Choice(6, "6 cores"))

    def test_rejects_a_negative_number_of_workers(self) -> None:
        machine.check_workers("auto")
        machine.check_workers(0)
        with self.assertRaisesRegex(UserError, "workers is -1; it must be 0 or more, or 'auto'"):
            machine.check_workers(-1)
        with self.assertRaisesRegex(UserError, "workers is 0; it must be 1 or more"):
            machine.check_workers(0, least=1)

    @parameterized.parameters(
        (8, 1, None, 8),
        (8, 4, None, 2),
        (2, 4, None, 1),
        # torchrun's default, which would leave cores idle.
        (8, 4, "1", 2),
    )
    def test_processes_share_cores(
        self, count: int, ranks: int, bound: str | None, expected: int
    ) -> None:
        with cores(count, ranks), mock.patch.dict(os.environ):
            os.environ.pop("OMP_NUM_THREADS", None)
            if bound is not None:
                os.environ["OMP_NUM_THREADS"] = bound
            self.assertEqual(machine.choose_threads().value, expected)

    @parameterized.parameters((1, "1"), (4, "3"))
    def test_threads_set_by_the_user_are_kept(self, ranks: int, bound: str) -> None:
        with cores(8, ranks), mock.patch.dict(os.environ, OMP_NUM_THREADS=bound):
            chosen = machine.choose_threads()
        self.assertEqual(chosen, Choice(torch.get_num_threads(), "OMP_NUM_THREADS is set"))


class MachineTest(parameterized.TestCase):
    def choose(self, device: torch.device, precision: str) -> machine.Machine:
        with cores(8), compiler(None):
            return machine.choose_machine(
                device,
                precision=Choice(precision, "chosen"),
                use_compile="auto",
                channels_last="auto",
                workers="auto",
                steps=10**6,
            )

    def test_settings_on_a_gpu(self) -> None:
        chosen = self.choose(GPU, "float32")
        for choice in (chosen.pin_memory, chosen.cudnn_benchmark, chosen.tf32, chosen.compile):
            self.assertTrue(choice.value)

    def test_settings_on_a_cpu(self) -> None:
        chosen = self.choose(CPU, "float32")
        for choice in (chosen.pin_memory, chosen.cudnn_benchmark, chosen.tf32, chosen.compile):
            self.assertFalse(choice.value)
        self.assertTrue(chosen.channels_last.value)

    def test_summary_has_a_line_with_a_reason_for_each_setting(self) -> None:
        chosen = self.choose(CPU, "float32")
        title, *lines = chosen.summary().splitlines()
        self.assertEqual(title, "machine:")
        self.assertLen(lines, len(chosen))
        self.assertEqual(lines[0], "  precision: float32 (chosen)")
        for line in lines:
            self.assertRegex(line, r"^  \w+: \w+ \(.+\)$")

    def test_checkpoint_stores_values_and_reasons(self) -> None:
        kept = self.choose(CPU, "float32").to_checkpoint()
        self.assertEqual(kept["precision"], ["float32", "chosen"])
        self.assertEqual(kept["workers"][0], 1)

    def test_apply_sets_threads_and_convolutions(self) -> None:
        chosen = self.choose(GPU, "float32")
        with (
            mock.patch.object(torch, "set_num_threads") as threads,
            mock.patch.object(torch.backends, "cudnn") as cudnn,
        ):
            chosen.apply()
        threads.assert_called_once_with(chosen.threads.value)
        self.assertIs(cudnn.benchmark, True)
        self.assertIs(cudnn.allow_tf32, True)

    def test_only_processes_training_on_a_cpu_keep_freed_memory(self) -> None:
        for device in (CPU, GPU):
            chosen = self.choose(device, "float32")
            with (
                mock.patch.object(torch, "set_num_threads"),
                mock.patch.object(torch.backends, "cudnn"),
                mock.patch.object(allocator, "keep_freed_memory") as keep,
            ):
                chosen.apply()
            self.assertEqual(keep.call_count, 1 if device == CPU else 0)


if __name__ == "__main__":
    absltest.main()
