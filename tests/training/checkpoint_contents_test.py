"""Contents of checkpoints that cannot be used are reported in one line."""

from pathlib import Path
from typing import Any

import torch
from absl.testing import absltest, parameterized

from jigclu.system.errors import UserError
from jigclu.system.tensor_files import UnusableFileError
from jigclu.training import checkpoint
from jigclu.training.checkpoint_contents import KEYS, check_contents


def contents(step: int = 7) -> dict[str, Any]:
    """Returns small contents of a checkpoint."""
    return {
        "step": step,
        "parameters": {"encoder.conv1.weight": torch.arange(6.0).reshape(2, 3)},
        "buffers": {"encoder.bn1.running_mean": torch.tensor([1.5, -2.0])},
        "optimizer": {
            "momentum": {"encoder.conv1.weight": torch.full((2, 3), 0.25)},
            "updates": torch.tensor(step),
            "loss_scale": torch.tensor(1.0),
            "good_steps": torch.tensor(0),
        },
        "rng": {"cpu": torch.get_rng_state()},
        "config": "pretrain.batch_size = 4\n",
        "settings": {"batch_size": "4"},
        "versions": {"torch": "2", "jigclu": "0", "torchvision": "0"},
        "scores": [(0, {"knn_accuracy": 0.25})],
        "data": "ab12",
        "machine": {"precision": ["float32", "bound"]},
    }


OPTIMIZER = contents()["optimizer"]


class ContentsTest(parameterized.TestCase):
    def assert_rejected(self, values: dict[str, Any], message: str) -> None:
        path = Path(self.create_tempdir().full_path) / "other.pt"
        torch.save(values, path)
        for read in (lambda: checkpoint.load(path, "cpu"), lambda: checkpoint.peek(path)):
            with self.assertRaisesRegex(UserError, rf"checkpoint \S+/other\.pt {message}") as error:
                read()
            self.assertNotIn("\n", str(error.exception))

    def test_rejects_files_of_other_projects(self) -> None:
        self.assert_rejected(
            {"step": 1, "parameters": {}, "buffers": {}, "config": ""},
            "lacks optimizer, rng, settings, versions, scores, data, machine: .*bind init_from",
        )

    @parameterized.parameters(*KEYS)
    def test_rejects_a_checkpoint_that_lacks_a_key(self, key: str) -> None:
        values = contents()
        del values[key]
        self.assert_rejected(values, f"lacks {key}: ")

    def test_rejects_values_of_unexpected_types(self) -> None:
        self.assert_rejected(
            contents() | {"step": "7", "scores": {}},
            "is corrupt: step, scores have unexpected types",
        )
        self.assert_rejected(
            contents() | {"settings": [], "machine": "cpu"},
            "is corrupt: settings, machine have unexpected types",
        )

    @parameterized.parameters("0.1.0", "0.2.0")
    def test_rejects_checkpoints_of_versions_with_other_settings(self, version: str) -> None:
        values = contents() | {"versions": {"jigclu": version}}
        del values["settings"]
        self.assert_rejected(
            values, rf"was written by version {version}, .*bind init_from to this file"
        )

    @parameterized.parameters(
        ({"step": -1}, "its step is -1"),
        ({"step": True}, "its step is True"),
        ({"parameters": {"w": "0.5"}}, "parameters are not tensors"),
        ({"buffers": {3: torch.zeros(1)}}, "buffers are not tensors"),
        ({"optimizer": {}}, "its optimizer lacks moments"),
        (
            {"optimizer": {key: v for key, v in OPTIMIZER.items() if key != "momentum"}},
            "its optimizer lacks moments",
        ),
        ({"optimizer": OPTIMIZER | {"momentum": 0.9}}, "momentum of its optimizer are not tens"),
        (
            {"optimizer": OPTIMIZER | {"momentum": {"encoder.conv1.weight": torch.zeros(3)}}},
            "momentum of its optimizer does not match its parameters: 1 of another shape",
        ),
        ({"optimizer": OPTIMIZER | {"momentum": {}}}, "momentum .* 1 missing"),
        ({"optimizer": OPTIMIZER | {"loss_scale": "1.0"}}, "loss_scale .* is not a number"),
        ({"optimizer": OPTIMIZER | {"updates": torch.zeros(2)}}, "updates .* is not a number"),
        ({"rng": {}}, "torch does not accept its random state"),
        ({"rng": {"cpu": torch.zeros(0, dtype=torch.uint8)}}, "torch does not accept its random"),
        ({"rng": {"cpu": torch.zeros(5056, dtype=torch.uint8)}}, "torch does not accept its rand"),
        ({"rng": {"cpu": torch.zeros(5056)}}, "its random state .* is not a tensor of bytes"),
        ({"rng": {"cpu": "0"}}, "its random state .* is not a tensor of bytes"),
        ({"settings": {"seed": 0}}, "settings are not texts"),
        ({"scores": [3]}, "scores are not pairs"),
        ({"scores": [(0, {"knn_accuracy": "high"})]}, "scores are not pairs"),
        ({"machine": {}}, "its machine has no precision"),
        ({"machine": {"precision": "float32"}}, "precision of its machine is not a pair"),
        ({"machine": {"precision": [32, "bound"]}}, "its machine has no precision"),
    )
    def test_rejects_values_that_cannot_be_used(self, change: dict[str, Any], message: str) -> None:
        self.assert_rejected(contents() | change, f"is corrupt: {message}")

    def test_rejects_a_step_that_differs_from_the_name(self) -> None:
        check_contents(contents(7), Path("step_00000007.pt"))
        with self.assertRaisesRegex(UnusableFileError, "its step is 1000000000000, which its name"):
            check_contents(contents(10**12), Path("step_00000007.pt"))


if __name__ == "__main__":
    absltest.main()
