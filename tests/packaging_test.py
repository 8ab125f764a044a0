"""Tests of the package: metadata, requirements and their pins, and the wheel."""

import configparser
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

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
PYTHONS = ["3.10", "3.11", "3.12", "3.13", "3.14"]


class PackagingTest(parameterized.TestCase):
    def test_setup_lists_every_package(self) -> None:
        files = (ROOT / "jigclu").rglob("*.py")
        folders = {".".join(file.relative_to(ROOT).parent.parts) for file in files}
        listed = _setup()["options"]["packages"].split()
        self.assertCountEqual(listed, [*folders, "jigclu.gin"])

    def test_import_gin_is_the_library(self) -> None:
        import gin  # The working directory may contain the folder gin/.

        self.assertTrue(hasattr(gin, "parse_config"))

    def test_lower_bounds_of_versions(self) -> None:
        self.assertEqual(_setup()["options"]["python_requires"], ">=3.10")
        bounds = {requirement.name: str(requirement.specifier) for requirement in INSTALL}
        self.assertEqual(bounds["torch"], ">=2.11")
        self.assertEqual(bounds["torchvision"], ">=0.26")

    def test_version(self) -> None:
        self.assertRegex(jigclu.__version__, r"^\d+\.\d+\.\d+$")
        self.assertEqual(_setup()["metadata"]["version"], "attr: jigclu.__version__")

    def test_dev_extra_contains_all_others(self) -> None:
        own = next(requirement for requirement in DEVELOP if requirement.name == "jigclu")
        self.assertEqual(own.extras, {"export", "benchmark"})

    @parameterized.product(
        requirement=[*INSTALL, *EXPORT, *BENCHMARK, *(r for r in DEVELOP if r.name != "jigclu")],
        python=PYTHONS,
    )
    def test_every_requirement_has_one_pin(self, requirement: Requirement, python: str) -> None:
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

    def test_installed_packages_satisfy_the_requirements(self) -> None:
        for requirement in INSTALL:
            version = importlib.metadata.version(requirement.name)
            self.assertTrue(requirement.specifier.contains(version), f"{requirement} is {version}")


class WheelTest(absltest.TestCase):
    """The wheel, installed into its own folder and run from an empty one."""

    wheel: Path
    wheel_of_sdist: Path
    site: Path
    empty: Path

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        temporary = tempfile.TemporaryDirectory()
        cls.addClassCleanup(temporary.cleanup)
        folder = Path(temporary.name)
        checkout, cls.site, cls.empty = folder / "checkout", folder / "site", folder / "empty"
        cls.empty.mkdir()
        # Building in the checkout itself would leave files there.
        for name in ("jigclu", "gin", "detection", "launch", "tests"):
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, checkout / name, ignore=ignore)
        for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, checkout)
        sdist = "from setuptools import build_meta; build_meta.build_sdist('sdist')"
        cls._python("-c", sdist, cwd=checkout)
        (archive,) = (checkout / "sdist").iterdir()
        cls.wheel, cls.wheel_of_sdist = cls._build(checkout), cls._build(archive)
        cls._pip("install", "--no-index", "--no-compile", f"--target={cls.site}", str(cls.wheel))

    @classmethod
    def _build(cls, source: Path) -> Path:
        folder = cls.empty.with_name(f"wheel of {source.name}")
        cls._pip("wheel", "--no-build-isolation", f"--wheel-dir={folder}", str(source))
        (wheel,) = folder.iterdir()
        return wheel

    @classmethod
    def _pip(cls, command: str, *arguments: str) -> None:
        options = ("--quiet", "--no-deps", "--disable-pip-version-check")
        cls._python("-m", "pip", command, *options, *arguments, cwd=cls.empty)

    @staticmethod
    def _python(*arguments: str, cwd: Path) -> None:
        subprocess.run([sys.executable, *arguments], cwd=cwd, check=True, stdout=subprocess.DEVNULL)

    def run_installed(self, *command: str) -> "subprocess.CompletedProcess[str]":
        """Runs a command in an empty folder, with the installed files before all others."""
        environment = {
            "PYTHONPATH": str(self.site),
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }
        return subprocess.run(
            command,
            cwd=self.empty,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def module(self, *flags: str) -> "subprocess.CompletedProcess[str]":
        return self.run_installed(sys.executable, "-m", "jigclu.launch", *flags)

    def console(self, *flags: str) -> "subprocess.CompletedProcess[str]":
        return self.run_installed(str(self.site / "bin" / "jigclu"), *flags)

    def dry_run(self, done: "subprocess.CompletedProcess[str]") -> tuple[str, str]:
        """Returns the resolved configuration that a dry run printed, and its workdir line."""
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout.partition("\n\n")[0], done.stdout.splitlines()[-1]

    def test_holds_the_package_and_the_gin_files_and_nothing_else(self) -> None:
        expected = [
            str(file.relative_to(ROOT))
            for file in (ROOT / "jigclu").rglob("*")
            if file.suffix in (".py", ".typed")
        ]
        expected += [
            str("jigclu" / file.relative_to(ROOT)) for file in (ROOT / "gin").rglob("*.gin")
        ]
        with zipfile.ZipFile(self.wheel) as archive:
            names = [name for name in archive.namelist() if ".dist-info/" not in name]
        self.assertIn("jigclu/py.typed", names)
        self.assertIn("jigclu/gin/base/pretrain.gin", names)
        self.assertCountEqual(names, expected)

    def test_sdist_builds_the_same_wheel(self) -> None:
        with zipfile.ZipFile(self.wheel) as one, zipfile.ZipFile(self.wheel_of_sdist) as other:
            contents = [{info.filename: info.CRC for info in w.infolist()} for w in (one, other)]
        self.assertEqual(*contents)

    def test_metadata(self) -> None:
        (distribution,) = importlib.metadata.distributions(path=[str(self.site)])
        metadata = distribution.metadata.json
        self.assertEqual(metadata["name"], "jigclu")
        self.assertEqual(metadata["version"], jigclu.__version__)
        self.assertEqual(metadata["author"], "The JigClu authors")
        self.assertEqual(metadata["license_expression"], "Apache-2.0")
        self.assertEqual(metadata["requires_python"], ">=3.10")
        self.assertEqual(metadata["project_url"], ["Paper, https://arxiv.org/abs/2104.00323"])
        self.assertIn("self-supervised learning", " ".join(metadata["keywords"]))
        self.assertIn("Typing :: Typed", metadata["classifier"])
        for python in PYTHONS:
            self.assertIn(f"Programming Language :: Python :: {python}", metadata["classifier"])
        self.assertStartsWith(str(metadata["description"]), "# JigClu")

    def test_python_imports_the_installed_package(self) -> None:
        done = self.run_installed(sys.executable, "-c", "import jigclu; print(jigclu.__file__)")
        self.assertEqual(done.stdout.strip(), str(self.site / "jigclu" / "__init__.py"))

    def test_packaged_files_are_found_with_and_without_their_folder(self) -> None:
        from_module = self.dry_run(self.module("--gin_file=demo.gin", "--dry_run"))
        from_console = self.dry_run(self.console("--gin_file=gin/demo.gin", "--dry_run"))
        self.assertEqual(from_module, from_console)
        configuration, workdir = from_module
        self.assertIn("pretrain.batch_size = 64", configuration.splitlines())
        self.assertEqual(workdir, "workdir: runs/demo")

    def test_own_file_includes_packaged_files(self) -> None:
        folder = Path(self.create_tempdir().full_path)
        own = folder / "own.gin"
        own.write_text(
            "include 'gin/demo.gin'\ninclude 'base/imagenet_rgb.gin'\npretrain.seed = 7\n"
        )
        configuration, workdir = self.dry_run(self.module(f"--gin_file={own}", "--dry_run"))
        self.assertIn("pretrain.seed = 7", configuration.splitlines())
        self.assertEqual(workdir, "workdir: runs/own")

    def test_user_errors_are_one_line_with_status_2(self) -> None:
        done = self.console("--gin_file=dmeo.gin")
        self.assertEqual(done.returncode, 2, done.stderr)
        self.assertEqual(
            done.stderr.splitlines()[-1],
            "error: gin file dmeo.gin does not exist; did you mean gin/demo.gin?",
        )

    def test_help_of_the_console_command_lists_its_flags(self) -> None:
        printed = self.console("--help").stdout
        for flag in ("--gin_file", "--gin_bindings", "--workdir", "--[no]dry_run"):
            self.assertIn(flag, printed)


if __name__ == "__main__":
    absltest.main()
