"""Tests of jigclu.system.device."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
from absl.testing import absltest

from jigclu import config
from jigclu.system import device
from jigclu.system.errors import UserError

# Joins and leaves a process group three times, as the stages of a longer command do.
STAGES = """
import sys, time
from pathlib import Path
import torch
import torch.distributed as dist
from jigclu.system.device import launched_rank, process_group

for stage in range(3):
    with process_group(torch.device("cpu"), 60):
        values = torch.ones(1) * (1 + dist.get_rank())
        dist.all_reduce(values)
        assert values == 3, values
        file = Path(sys.argv[1]) / str(stage)
        if launched_rank() == 0:
            time.sleep(0.5)
            file.touch()
    assert file.exists(), "left before the first rank had written"
"""


def gpus(count: int) -> mock._patch_dict | mock._patch:
    """Makes torch report so many GPUs."""
    return mock.patch.multiple(
        torch.cuda, is_available=lambda: count > 0, device_count=lambda: count
    )


class DeviceTest(absltest.TestCase):
    def test_auto_chooses_a_gpu_if_there_is_one(self) -> None:
        with gpus(0):
            self.assertEqual(device.local_device("auto"), torch.device("cpu"))
        with gpus(2):
            self.assertEqual(device.local_device("auto"), torch.device("cuda", 0))
            self.assertEqual(device.local_device("cpu"), torch.device("cpu"))

    def test_local_rank_selects_the_gpu(self) -> None:
        with gpus(2), mock.patch.dict(os.environ, LOCAL_RANK="1"):
            self.assertEqual(device.local_device("cuda"), torch.device("cuda", 1))

    def test_rejects_unknown_and_missing_devices(self) -> None:
        with self.assertRaisesRegex(UserError, "compute.device is 'tpu'; .* 'auto', 'cpu', 'cuda'"):
            device.local_device("tpu")
        with gpus(0), self.assertRaisesRegex(UserError, "'cuda', but torch sees no GPU"):
            device.local_device("cuda")
        with (
            gpus(2),
            mock.patch.dict(os.environ, LOCAL_RANK="2"),
            self.assertRaisesRegex(
                UserError, "local rank 2 has no GPU.* only 2: .*--nproc-per-node=2"
            ),
        ):
            device.local_device("auto")

    def test_several_processes_need_all_variables_of_torchrun(self) -> None:
        with mock.patch.dict(os.environ):
            os.environ.pop("WORLD_SIZE", None)
            self.assertEqual(device.launched_processes(), 1)
            os.environ["WORLD_SIZE"] = "16"
            for name in ("RANK", "MASTER_ADDR"):
                os.environ[name] = "0"
            os.environ.pop("MASTER_PORT", None)
            with self.assertRaisesRegex(UserError, "WORLD_SIZE is 16, but .* lacks MASTER_PORT: "):
                device.launched_processes()
            os.environ["MASTER_PORT"] = "29500"
            self.assertEqual(device.launched_processes(), 16)

    def test_rejects_other_values_of_the_variables_of_torchrun(self) -> None:
        for value in ("", "abc"):
            with (
                mock.patch.dict(os.environ, WORLD_SIZE=value),
                self.assertRaisesRegex(UserError, f"WORLD_SIZE is '{value}'; it must be a number"),
            ):
                device.launched_processes()
            with (
                mock.patch.dict(os.environ, RANK=value),
                self.assertRaisesRegex(UserError, f"RANK is '{value}'; it must be a number"),
            ):
                device.launched_rank()

    def test_single_process_has_no_process_group(self) -> None:
        with device.process_group(torch.device("cpu"), 60):
            self.assertFalse(dist.is_initialized())

    def test_processes_join_repeatedly_and_leave_together(self) -> None:
        folder = Path(self.create_tempdir().full_path)
        (folder / "stages.py").write_text(STAGES)
        done = subprocess.run(
            (
                *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
                *("--nproc-per-node=2", folder / "stages.py", folder),
            ),
            env=os.environ
            | {
                "PYTHONPATH": str(config.ROOT),
                "OMP_NUM_THREADS": "1",
                "GLOO_SOCKET_IFNAME": socket.if_nameindex()[0][1],
            },
            capture_output=True,
            text=True,
            timeout=120,
        )
        self.assertEqual(done.returncode, 0, done.stderr)

    def test_compilation_needs_a_compiler(self) -> None:
        with (
            mock.patch("shutil.which", lambda name: None),
            self.assertRaisesRegex(
                UserError, r"no C\+\+ compiler.*bind compute.compile = 'auto' or False"
            ),
        ):
            device.check_compiler()
        with (
            mock.patch("shutil.which", lambda name: name if name == "my-cc" else None),
            mock.patch.dict(os.environ, CXX="my-cc"),
        ):
            device.check_compiler()

    def test_compilation_needs_a_writable_cache(self) -> None:
        file = self.create_tempfile().full_path
        with (
            mock.patch.dict(os.environ, TORCHINDUCTOR_CACHE_DIR=f"{file}/compiled"),
            self.assertRaisesRegex(UserError, "is not writable .Not a directory.: set"),
        ):
            device.check_compiler()


if __name__ == "__main__":
    absltest.main()
