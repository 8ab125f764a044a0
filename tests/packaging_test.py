"""Tests of what pip sees: packages, versions, requirements and their pins."""

import configparser
import importlib.metadata
from pathlib import Path

import setuptools
from absl.testing import absltest, parameterized
from packaging.requirements import Requirement

import jigclu

ROOT = Path(__file__).parents[1]


def _setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def _requirements(text: str) -> list[Requirement]:
    lines = (line.strip() for line in text.splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


INSTALL = _requirements(_setup()["options"]["install_requires"])
EXPORT, BENCHMARK, DEVELOP = (
    _requirements(_setup()["options.extras_require"][extra])
    for extra in ("export", "benchmark", "dev")
)
PINS = _requirements((ROOT / "constraints.txt").read_text())


class PackagingTest(parameterized.TestCase):
    def test_packages(self) -> None:
        include = _setup()["options.packages.find"]["include"].split()
        self.assertEqual(include, ["jigclu*"])
        packages = setuptools.find_packages(str(ROOT), include=include)
        files = (ROOT / "jigclu").rglob("*.py")
        folders = {".".join(file.relative_to(ROOT).parent.parts) for file in files}
        self.assertCountEqual(packages, folders)

    def test_gin_is_no_package(self) -> None:
        self.assertNotIn("gin", setuptools.find_packages(str(ROOT)))
        import gin  # From the root of the repository too it must be the library.

        self.assertTrue(hasattr(gin, "parse_config"))

    def test_lower_bounds(self) -> None:
        self.assertEqual(_setup()["options"]["python_requires"], ">=3.10")
        bounds = {requirement.name: str(requirement.specifier) for requirement in INSTALL}
        self.assertEqual(bounds["torch"], ">=2.11")
        self.assertEqual(bounds["torchvision"], ">=0.26")

    def test_version(self) -> None:
        self.assertRegex(jigclu.__version__, r"^\d+\.\d+\.\d+$")
        self.assertEqual(_setup()["metadata"]["version"], "attr: jigclu.__version__")

    def test_developing_tests_all_extras(self) -> None:
        own = next(requirement for requirement in DEVELOP if requirement.name == "jigclu")
        self.assertEqual(own.extras, {"export", "benchmark"})

    @parameterized.product(
        requirement=[*INSTALL, *EXPORT, *BENCHMARK, *(r for r in DEVELOP if r.name != "jigclu")],
        python=["3.10", "3.11", "3.12", "3.13", "3.14"],
    )
    def test_one_pin_that_satisfies_the_requirement(
        self, requirement: Requirement, python: str
    ) -> None:
        pins = [
            pin
            for pin in PINS
            if pin.name == requirement.name
            and (pin.marker is None or pin.marker.evaluate({"python_version": python}))
        ]
        self.assertLen(pins, 1)
        (specifier,) = pins[0].specifier
        self.assertEqual(specifier.operator, "==")
        self.assertTrue(requirement.specifier.contains(specifier.version))

    def test_what_runs_satisfies_the_requirements(self) -> None:
        for requirement in INSTALL:
            version = importlib.metadata.version(requirement.name)
            self.assertTrue(requirement.specifier.contains(version), f"{requirement} is {version}")


if __name__ == "__main__":
    absltest.main()
