"""Tests of jigclu.tasks.doctor.finding."""

from typing import Any

from absl.testing import absltest

from jigclu.system import collectives
from jigclu.tasks.doctor.finding import Finding, worst_of_ranks
from tests.ranks import run_on_ranks


def check_rank(bad_rank: int) -> tuple[Any, ...]:
    """Returns the fields of the finding of all ranks, of which one finds an error."""
    own = Finding("disk", "ok", f"rank {collectives.rank()} is fine")
    if collectives.rank() == bad_rank:
        own = Finding("disk", "error", "is full", "free space")
    return tuple(worst_of_ranks(own))


class WorstOfRanksTest(absltest.TestCase):
    def test_one_rank_keeps_its_finding(self) -> None:
        self.assertEqual(Finding(*check_rank(0)), Finding("disk", "error", "is full", "free space"))

    def test_an_error_of_one_rank_is_the_finding_of_all_with_its_machine(self) -> None:
        first, second = (Finding(*found) for found in run_on_ranks(check_rank, 2, 1))
        self.assertEqual(first, second)
        self.assertEqual((first.level, first.remedy), ("error", "free space"))
        self.assertRegex(first.text, "^on .+: is full$")

    def test_without_problems_the_first_rank_speaks(self) -> None:
        for finding in run_on_ranks(check_rank, 2, 2):
            self.assertEqual(Finding(*finding), Finding("disk", "ok", "rank 0 is fine"))


if __name__ == "__main__":
    absltest.main()
