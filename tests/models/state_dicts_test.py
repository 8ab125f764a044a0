"""Tests of jigclu.models.state_dicts."""

from pathlib import Path

import torch
from absl.testing import absltest
from torch import Tensor

from jigclu.models import state_dicts
from jigclu.system.errors import UserError


def _zeros(**shapes: tuple[int, ...]) -> dict[str, Tensor]:
    return {key: torch.zeros(shape) for key, shape in shapes.items()}


class MismatchTest(absltest.TestCase):
    def test_equal_dicts_have_no_mismatch(self) -> None:
        self.assertIsNone(state_dicts.describe_mismatch(_zeros(a=(2,)), _zeros(a=(2,))))

    def test_mismatch_names_all_three_kinds(self) -> None:
        expected = _zeros(a=(1,), b=(2,), c=(3,), d=(4,), e=(5, 6))
        found = _zeros(e=(6, 5), z=())
        self.assertEqual(
            state_dicts.describe_mismatch(expected, found),
            "4 missing: a [1], b [2], c [3] and 1 more; 1 unexpected: z []; "
            "1 of another shape: e [6, 5] instead of [5, 6]",
        )

    def test_load_strict_reorders_and_rejects_other_keys(self) -> None:
        found = {"b": torch.ones(2), "a": torch.ones(1)}
        loaded = state_dicts.load_strict(found, _zeros(a=(1,), b=(2,)), Path("x.pt"))
        self.assertEqual(list(loaded), ["a", "b"])
        self.assertIs(loaded["a"], found["a"])
        with self.assertRaisesRegex(UserError, r"x\.pt is of another architecture: 1 missing: c"):
            state_dicts.load_strict(found, _zeros(a=(1,), b=(2,), c=(3,)), Path("x.pt"))


if __name__ == "__main__":
    absltest.main()
