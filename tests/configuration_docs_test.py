"""docs/configuration.md is what its script writes, and complete."""

import dataclasses
import inspect
import re
import runpy
import sys
from pathlib import Path
from typing import Any
from unittest import mock

from absl.testing import absltest

from jigclu.config import registry
from jigclu.system.errors import check

DOCS = Path(__file__).parents[1] / "docs"
COMMAND = "PYTHONPATH=. python docs/configuration.py"


def load_script() -> dict[str, Any]:
    with mock.patch.object(sys, "path", [str(DOCS), *sys.path]):
        return runpy.run_path(str(DOCS / "configuration.py"))


@dataclasses.dataclass
class Undescribed:
    """Settings of which one is not described.

    Attributes:
      known: of something.
    """

    known: int
    unknown: int

    def __post_init__(self) -> None:
        for name in ("known", "unknown"):
            least = 3
            check(getattr(self, name) >= least, name, getattr(self, name), f"{least} or more")


class ConfigurationDocsTest(absltest.TestCase):
    script: dict[str, Any]

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls.script = load_script()

    def test_page_is_current(self) -> None:
        committed = (DOCS / "configuration.md").read_text(encoding="utf-8")
        is_current = committed == self.script["page"]()
        self.assertTrue(is_current, f"docs/configuration.md is stale; run: {COMMAND}")

    def test_every_setting_has_a_row_with_a_meaning_and_a_type(self) -> None:
        sections = re.split(r"^### ", self.script["page"](), flags=re.MULTILINE)[1:]
        by_name = {section.split("\n")[0]: section for section in sections}
        self.assertEqual(list(by_name), list(registry.CONFIGURABLES))
        for name, function in registry.CONFIGURABLES.items():
            cells = r"^\| `(\w+)` \| ([^|]+) \| ((?:[^|]|\\\|)+?) \|"
            rows = re.findall(cells, by_name[name], re.MULTILINE)
            self.assertEqual([row[0] for row in rows], list(inspect.signature(function).parameters))

    def test_rows_show_default_unit_range_and_source(self) -> None:
        page = self.script["page"]()
        (row,) = re.findall(r"^\| `temperature` .*clustering loss.*$", page, re.MULTILINE)
        for part in ("`float`", "`0.3`", "of cosines", "above 0, and finite", "| P |"):
            self.assertIn(part, row)
        # Files differ, a range has a variable, and a check is in a function that tasks share.
        (row,) = re.findall(r"^\| `warmup_epochs` .*$", page, re.MULTILINE)
        self.assertIn("`0` (training)", row)
        self.assertIn("| in [0, epochs) |", row)
        self.assertIn("| in [0, 2\\*\\*63) |", page)

    def test_missing_description_is_an_error_that_says_where_to_write_it(self) -> None:
        with (
            mock.patch.dict(registry.CONFIGURABLES, {"new": Undescribed}),
            self.assertRaisesRegex(ValueError, "description of new.unknown: .*Undescribed"),
        ):
            self.script["_section"]("new", {})

    def test_ranges_are_read_from_loops_and_local_names(self) -> None:
        found = self.script["find_ranges"](Undescribed)
        self.assertEqual(found, {"known": "3 or more", "unknown": "3 or more"})


if __name__ == "__main__":
    absltest.main()
