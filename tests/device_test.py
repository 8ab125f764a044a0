"""Which device a process takes, and what torchrun says of it."""

import os
from unittest import mock

import torch
import torch.distributed as dist
from absl.testing import absltest

from jigclu import device
from jigclu.errors import UserError


def gpus(count: int) -> mock._patch_dict | mock._patch:
    """Pretends that torch sees so many GPUs."""
    return mock.patch.multiple(
        torch.cuda, is_available=lambda: count > 0, device_count=lambda: count
    )


class DeviceTest(absltest.TestCase):
    def test_auto_takes_a_gpu_where_there_is_one(self) -> None:
        with gpus(0):
            self.assertEqual(device.local_device("auto"), torch.device("cpu"))
        with gpus(2):
            self.assertEqual(device.local_device("auto"), torch.device("cuda", 0))
            self.assertEqual(device.local_device("cpu"), torch.device("cpu"))

    def test_each_process_takes_the_gpu_of_its_local_rank(self) -> None:
        with gpus(2), mock.patch.dict(os.environ, LOCAL_RANK="1"):
            self.assertEqual(device.local_device("cuda"), torch.device("cuda", 1))

    def test_refuses(self) -> None:
        with self.assertRaisesRegex(UserError, "device is 'tpu'.*auto, cpu, cuda"):
            device.local_device("tpu")
        with gpus(0), self.assertRaisesRegex(UserError, "'cuda', but torch sees no GPU"):
            device.local_device("cuda")
        with (
            gpus(2),
            mock.patch.dict(os.environ, LOCAL_RANK="2"),
            self.assertRaisesRegex(UserError, "no GPU, torch sees 2.*--nproc-per-node=2"),
        ):
            device.local_device("auto")

    def test_launched_processes(self) -> None:
        with mock.patch.dict(os.environ):
            os.environ.pop("WORLD_SIZE", None)
            self.assertEqual(device.launched_processes(), 1)
            os.environ["WORLD_SIZE"] = "16"
            for name in ("RANK", "MASTER_ADDR"):
                os.environ[name] = "0"
            os.environ.pop("MASTER_PORT", None)
            with self.assertRaisesRegex(UserError, "WORLD_SIZE is 16, but MASTER_PORT are not"):
                device.launched_processes()
            os.environ["MASTER_PORT"] = "29500"
            self.assertEqual(device.launched_processes(), 16)

    def test_alone_there_is_no_process_group(self) -> None:
        with device.process_group(torch.device("cpu")):
            self.assertFalse(dist.is_initialized())

    def test_compiler(self) -> None:
        with (
            mock.patch("shutil.which", lambda name: None),
            self.assertRaisesRegex(UserError, r"no C\+\+ compiler.*train.compile = False"),
        ):
            device.check_compiler()
        with (
            mock.patch("shutil.which", lambda name: name if name == "my-cc" else None),
            mock.patch.dict(os.environ, CXX="my-cc"),
        ):
            device.check_compiler()


if __name__ == "__main__":
    absltest.main()
