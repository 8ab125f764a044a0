"""Commands, settings, links and messages in the documentation are real.

Each run of jigclu that a page shows is planned, as with --dry_run, on a few images in place of the
reader's data. `tests/api_docs_test.py` and the like run the Python examples.
"""

import ast
import os
import re
import shlex
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch
from absl.testing import absltest, parameterized
from PIL import Image

from jigclu import config
from jigclu.config.registry import CONFIGURABLES, binding_names
from jigclu.data.folders import UnlabeledImages
from jigclu.models.encoder import create_encoder
from jigclu.system.dry_run import dry_run
from jigclu.system.errors import UserError
from jigclu.tasks.pack import PackTask

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "detection/README.md", *(f"docs/{x.name}" for x in ROOT.glob("docs/*.md")))
TEXTS = {page: (ROOT / page).read_text(encoding="utf-8") for page in sorted(PAGES)}
# Reports of measurements, whose folders the reader does not have.
MEASURED = ("docs/results.md", "docs/performance.md")
SCRIPT = re.compile(r"launch/\w+\.(sh|sbatch)")
PROGRAMS = ("jigclu.launch", "jigclu.doctor")
# Folders of images and workdirs with weights, in bindings.
IMAGES = re.compile(r"(?:DATA|[\w/]+\.root)='([^']+)'")
WEIGHTS = re.compile(r"\w+\.init_from='(?!jigclu_200e)([^']+)'")
FILE_ENDINGS = ("html", "gin", "md", "npy", "py")
OWN_FILES = {
    "my_run.gin": re.findall(r"```gin\n(include.*?)```", TEXTS["docs/gin.md"], re.DOTALL)[0],
    "own.gin": "include 'gin/demo.gin'",
}
# The flags of the published main.py.
PUBLISHED_FLAGS = (
    *("data", "--arch", "--workers", "--epochs", "--start-epoch", "--batch-size", "--lr"),
    *("--min-lr", "--momentum", "--wd", "--print-freq", "--resume", "--save-dir", "--world-size"),
    *("--rank", "--dist-url", "--dist-backend", "--seed", "--gpu"),
    *("--multiprocessing-distributed", "--proj-dim", "--loss-t", "--crop-size", "--cross-ratio"),
    *("--loss_clu", "--loss_loc"),
)


class Command(NamedTuple):
    """A run that a page shows: its gin files and bindings."""

    files: tuple[str, ...]
    bindings: tuple[str, ...]


def shell_lines(page: str) -> Iterator[str]:
    """Yields the lines of a page's indented blocks and blocks of shell; broken ones are joined."""
    text = re.sub(r" *\\\n\s*", " ", TEXTS[page])
    fenced = r"^```(\w*)\n(.*?)^```"
    for language, block in re.findall(fenced, text, re.MULTILINE | re.DOTALL):
        if language == "sh":
            yield from block.splitlines()
    prose = re.sub(fenced, "", text, flags=re.MULTILINE | re.DOTALL)
    yield from re.findall(r"^ {4,}(\S.*)$", prose, re.MULTILINE)


def split(line: str) -> list[str]:
    """Returns the words of a line of shell; none for output that is not a command."""
    try:
        return shlex.split(line, comments=True)
    except ValueError:
        return []


def run_commands() -> Iterator[Command]:
    """Yields the runs of jigclu in all pages."""
    for page in TEXTS:
        for line in shell_lines(page):
            words = split(line)
            for index, word in enumerate(words):
                is_program = word in PROGRAMS or SCRIPT.fullmatch(word)
                if "…" not in line and (is_program or (word == "jigclu" and index == 0)):
                    yield parse(words[:index], word, words[index + 1 :])


def parse(before: list[str], program: str, flags: list[str]) -> Command:
    """Reads the flags of a run; a script takes the gin file from a variable before it."""
    files, bindings = [], []
    for flag in flags:
        name, _, value = flag.partition("=")
        if name == "--gin_file":
            files.append(value)
        elif name == "--gin_bindings":
            bindings.append(value)
        elif name not in ("--workdir", "--dry_run", "--allow_imports", "--json"):
            raise ValueError(f"unknown flag {flag}")
    if SCRIPT.fullmatch(program):
        named = re.search(r"GIN_FILE=([^ ,]+)", " ".join(before))
        files.append(named[1] if named else "gin/pretrain_r50.gin")
    return Command(tuple(files), tuple(bindings))


def write_images(folder: Path, count: int, masks: Path | None = None) -> None:
    """Writes images of 64 pixels, and masks with the same names."""
    folder.mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(folder / "0.png")
    content = (folder / "0.png").read_bytes()
    for number in range(1, count):
        (folder / f"{number}.png").write_bytes(content)
    if masks is not None:
        masks.mkdir()
        for number in range(count):
            Image.new("L", (64, 64)).save(masks / f"{number}.png")


class RunCommandsTest(parameterized.TestCase):
    home: Path

    @classmethod
    def setUpClass(cls) -> None:
        """Creates the folder in which the reader is: images, a pack, weights and own files."""
        super().setUpClass()
        temporary = tempfile.TemporaryDirectory()
        cls.addClassCleanup(temporary.cleanup)
        cls.home = Path(temporary.name)
        for split_name, count in (("train", 300), ("val", 20)):
            for label in "ab":
                write_images(cls.home / "images" / split_name / label, count)
            masked = cls.home / "CamVid"
            write_images(masked / split_name, 10, masked / f"{split_name}annot")
        source = UnlabeledImages(str(cls.home / "images" / "train"))
        pack = PackTask(
            source=source,
            image_format="raw",
            shorter_side=64,
            quality=90,
            images_per_shard=1000,
            workers=1,
        )
        # Processes would import torch again, which takes seconds.
        with (
            mock.patch("jigclu.tasks.pack.ProcessPoolExecutor", ThreadPoolExecutor),
            mock.patch("jigclu.tasks.pack.set_up_worker"),
        ):
            pack.run(cls.home / "data" / "imagenet_packed", "")
        for name in ("resnet18", "resnet50"):
            torch.save(create_encoder(name, False).state_dict(), cls.home / f"{name}.pth")
        for name, text in OWN_FILES.items():
            (cls.home / name).write_text(text)

    def setUp(self) -> None:
        super().setUp()
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(self.home)
        for folder in ("data/imagenet", "data/tiny-imagenet"):
            self.link(folder, "images")

    def link(self, name: str, target: str) -> None:
        """Makes a path that a command names lead to what this test has."""
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.symlink_to(self.home / target)

    @parameterized.parameters(*dict.fromkeys(run_commands()))
    def test_run_has_a_plan(self, files: tuple[str, ...], bindings: tuple[str, ...]) -> None:
        # The reader's /data is the folder data here.
        here = [text.replace("'/data/", "'data/") for text in bindings]
        network = "resnet18" if "'resnet18'" in str(here) else "resnet50"
        for text in here:
            if images := IMAGES.fullmatch(text):
                self.link(images[1], "images")
            if weights := WEIGHTS.fullmatch(text):
                self.link(weights[1], f"{network}.pth")
            for name in re.findall(r"'(.*?)'", text) if text.startswith("report.") else ():
                Path(name).mkdir(parents=True, exist_ok=True)
                (Path(name) / "config.gin").touch()
        if files[0].startswith("gin/results/compare_tiny"):
            # 1% of these labels are too few for a batch; tests/gin_files_test.py checks scorings.
            here = [text for text in here if not text.startswith("CAMVID=")]
            here.append("compare.scorings=()")
        workdir = Path("run")
        with dry_run():
            configuration = config.load(files, here).for_workdir(workdir)
            configuration.check(workdir)
            self.assertNotEmpty(configuration.plan(workdir))


class PagesTest(absltest.TestCase):
    def test_other_commands_name_files_and_targets_that_exist(self) -> None:
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        checked = 0
        for page in TEXTS:
            for words in map(split, shell_lines(page)):
                if words[:1] == ["make"]:
                    self.assertIn(words[1], targets, page)
                for word in words:
                    is_own = re.fullmatch(r"(gin|launch|detection|docs)/[\w/.-]+", word)
                    if is_own and "docs/compare/out" not in word:
                        self.assertTrue((ROOT / word).exists(), f"{page}: {word}")
                        checked += 1
        self.assertGreater(checked, 10)

    def test_every_page_is_in_the_lists_of_pages(self) -> None:
        navigation = (ROOT / "docs" / "index.rst").read_text(encoding="utf-8")
        for name in {Path(page).stem for page in TEXTS if page.startswith("docs/")} - {"README"}:
            self.assertIn(f"\n   {name}\n", navigation)
            self.assertIn(f"({name}.md)", TEXTS["docs/README.md"])

    def test_links_lead_to_files_and_headings(self) -> None:
        broken = []
        for page, text in TEXTS.items():
            for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text):
                path, _, heading = link.partition("#")
                target = (ROOT / page).parent / path if path else ROOT / page
                if not target.exists() or (heading and heading not in headings(target)):
                    broken.append((page, link))
        self.assertEmpty(broken)

    def test_validation_images_of_tiny_imagenet_are_sorted_into_classes(self) -> None:
        (script,) = re.findall(r"```sh\n(cd .*?)```", TEXTS["docs/recipes.md"], re.DOTALL)
        val = Path(self.create_tempdir().full_path) / "val"
        write_images(val / "images", 3)
        (val / "val_annotations.txt").write_text(
            "".join(f"{number}.png\tn0{number % 2}\t0\t0\t9\t9\n" for number in range(3))
        )
        subprocess.run(
            ["bash", "-ec", script.replace("/data/tiny-imagenet/val", str(val))], check=True
        )
        self.assertCountEqual(
            [str(path.relative_to(val)) for path in val.rglob("*.png")],
            ["n00/0.png", "n01/1.png", "n00/2.png"],
        )

    def test_settings_exist(self) -> None:
        known = set(binding_names())
        unknown = []
        for page in TEXTS.keys() - MEASURED:
            # Python has attributes of the same form, and mistakes are no settings.
            text = re.sub(
                r"```python\n.*?```|## Common mistakes.*", "", TEXTS[page], flags=re.DOTALL
            )
            for name in re.findall(r"(?<![\w./'-])(\w+\.\w+)(?![\w(/.])", text):
                owner, _, end = name.partition(".")
                if owner in CONFIGURABLES and end not in FILE_ENDINGS and name not in known:
                    unknown.append((page, name))
        self.assertEmpty(unknown)

    def test_every_published_flag_has_a_row(self) -> None:
        table = TEXTS["docs/moving.md"].partition("## Flags")[2].partition("\n## ")[0]
        rows = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
        self.assertLen(rows, len(PUBLISHED_FLAGS))
        for row, flag in zip(rows, PUBLISHED_FLAGS, strict=True):
            self.assertIn(f"`{flag}`", row)

    def test_messages_about_mistakes_are_what_the_program_says(self) -> None:
        table = TEXTS["docs/gin.md"].partition("## Common mistakes")[2]
        rows = re.findall(r"^\| `(.+?)` \| `(.+)` \|$", table, re.MULTILINE)
        self.assertGreater(len(rows), 10)
        for binding, message in rows:
            with self.subTest(binding), self.assertRaises(UserError) as caught:
                config.load(["gin/demo.gin"], [binding])
            self.assertIn(message, str(caught.exception))

    def test_messages_of_troubleshooting_are_in_the_code(self) -> None:
        constants = "\n".join(string_constants())
        rows = re.findall(r"^\| (.*?) \|", TEXTS["docs/troubleshooting.md"], re.MULTILINE)
        messages = [text for row in rows for text in re.findall(r"`([^`]* [^`]* [^`]*)`", row)]
        self.assertGreater(len(messages), 30)
        parts = [part.strip(" :,") for message in messages for part in message.split("…")]
        self.assertEmpty([part for part in parts if part not in constants])


def headings(page: Path) -> set[str]:
    """Returns the anchors of a page's headings, as GitHub and the site name them."""
    lines = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in lines}


def string_constants() -> Iterator[str]:
    """Yields the texts in the code, of which messages consist."""
    for path in (ROOT / "jigclu").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


if __name__ == "__main__":
    absltest.main()
