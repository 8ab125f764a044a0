"""Structural rules: imports go strictly downward, and few modules may make certain calls."""

import ast
import graphlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from absl.testing import absltest, parameterized

ROOT = Path(__file__).parents[1]

# The rooms of `jigclu/` in the order of imports: a room imports only from the lines below its own.
ROOMS = [
    ["__main__", "doctor"],
    ["launch", "api"],
    ["config"],
    ["tasks"],
    ["training"],
    ["methods"],
    ["models", "data"],
    ["ops"],
    ["system"],
]
# Detection has its own command, and does not use training.
DETECTION = ["models", "data", "system"]
BELOW = {
    room: [lower for line in ROOMS[number + 1 :] for lower in line]
    for number, rooms in enumerate(ROOMS)
    for room in rooms
} | {"detection": DETECTION}
# Modules that may import torch.distributed, and which part of it: the others go through
# `collectives`, so that none of them needs to know whether there are other ranks.
DISTRIBUTED = {
    "jigclu.system.collectives": "torch.distributed.",
    "jigclu.system.device": "torch.distributed.",
    "jigclu.launch": "torch.distributed.elastic.",
}
SHELL = ("config", "launch", "doctor")


def _modules() -> dict[str, ast.Module]:
    modules = {}
    for path in sorted((ROOT / "jigclu").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        modules[".".join(parts).removesuffix(".__init__")] = ast.parse(path.read_text(), str(path))
    return modules


def _imports(tree: ast.Module) -> Iterator[str]:
    """Yields all dotted names that a module imports; `from a import b` is a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # Relative imports keep their dots, which the rules reject.
            yield from (
                f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names
            )


def _room(name: str) -> str:
    """Returns the room of a dotted name: jigclu.ops.jigsaw is in ops; the package is in none."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in BELOW else ""


def _import_faults(name: str, tree: ast.Module) -> list[str]:
    room = _room(name)
    # The package itself re-exports the API.
    allowed = ("", room, *BELOW.get(room, ["api"]))
    imported = [other for other in _imports(tree) if other.split(".")[0] in ("jigclu", "")]
    return [
        f"{name} imports {other}"
        for other in imported
        if other.startswith(".") or _room(other) not in allowed
    ]


def _cycle(modules: Mapping[str, ast.Module]) -> list[str]:
    """Returns the modules of a cycle, each importing the one before it; empty if there is none."""

    def own_module(name: str) -> str:
        while name not in modules and "." in name:
            name = name.rpartition(".")[0]
        return name

    graph = {
        name: {own_module(other) for other in _imports(tree)} for name, tree in modules.items()
    }
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def _folders() -> dict[str, set[str]]:
    """Returns the modules and folders of each room, as docs/code.md writes them."""
    rooms = {}
    for path in (ROOT / "jigclu").iterdir():
        if path.suffix == ".py" and path.stem != "__init__":
            rooms[path.stem] = set[str]()
        elif (path / "__init__.py").exists():
            modules = {other.stem for other in path.glob("*.py")} - {"__init__"}
            rooms[path.name] = modules | {f"{other.parent.name}/" for other in path.glob("*/*.py")}
    return rooms


def _shown_rooms(page: str) -> dict[str, set[str]]:
    """Returns the modules of each room in the tree of docs/code.md, in its order."""
    rooms: dict[str, set[str]] = {}
    for line in page.partition("\n    jigclu/\n")[2].split("\n\n")[0].splitlines():
        words = line.split()
        if line.startswith(" " * 8):
            rooms[list(rooms)[-1]].update(words)
        elif line.startswith(" " * 6):
            rooms[words[0].removesuffix(".py").removesuffix("/")] = set()
    return rooms


def _shell_faults(name: str, tree: ast.Module) -> list[str]:
    allowed = set() if _room(name) == "ops" else {"absl.logging"}
    return [
        f"{name} imports {other}"
        for other in _imports(tree)
        if other.split(".")[0] in ("gin", "absl")
        and other not in allowed
        and _room(name) not in SHELL
    ]


def _distributed_faults(name: str, tree: ast.Module) -> list[str]:
    # The `torch.distributed` of `torch.distributed.barrier`.
    attributes = (node.value for node in ast.walk(tree) if isinstance(node, ast.Attribute))
    used = [*_imports(tree), *map(ast.unparse, attributes)]
    allowed = DISTRIBUTED.get(name, "nothing")
    return [
        f"{name} uses {other}"
        for other in used
        if f"{other}.".startswith("torch.distributed.") and not f"{other}.".startswith(allowed)
    ]


def _calls(tree: ast.Module, method: str) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == method
        ):
            yield node


def _load_faults(name: str, tree: ast.Module) -> list[str]:
    return [
        f"{name}:{call.lineno} calls torch.load without weights_only=True"
        for call in _calls(tree, "load")
        if isinstance(call.func, ast.Attribute)
        and ast.unparse(call.func.value) == "torch"
        and not any(
            keyword.arg == "weights_only" and ast.unparse(keyword.value) == "True"
            for keyword in call.keywords
        )
    ]


class LayersTest(absltest.TestCase):
    def test_every_folder_is_a_room(self) -> None:
        self.assertCountEqual(_folders(), BELOW, "add it to ROOMS")

    def test_documentation_shows_the_rooms_and_their_modules(self) -> None:
        page = (ROOT / "docs" / "code.md").read_text()
        self.assertEqual(_shown_rooms(page), _folders())
        self.assertEqual(list(_shown_rooms(page)), list(BELOW))
        lines = [line[0] if len(line) == 1 else f"{{{', '.join(line)}}}" for line in ROOMS]
        expected = [" > ".join(lines), f"detection > {{{', '.join(DETECTION)}}}"]
        shown = page.partition("\n    imports:\n")[2].splitlines()[:2]
        self.assertEqual([line.strip() for line in shown], expected)

    def test_imports_go_strictly_downward(self) -> None:
        self.assertEmpty([f for item in _modules().items() for f in _import_faults(*item)])

    def test_imports_have_no_cycles(self) -> None:
        modules = _modules()
        del modules["jigclu"]  # Imports the API only when a name of it is used.
        self.assertEmpty(_cycle(modules))

    def test_only_config_and_launch_use_gin_and_flags(self) -> None:
        self.assertEmpty([f for item in _modules().items() for f in _shell_faults(*item)])

    def test_checkpoints_never_run_code(self) -> None:
        self.assertEmpty([f for item in _modules().items() for f in _load_faults(*item)])

    def test_no_module_uses_torchvisions_deprecated_decoders(self) -> None:
        faults = [
            f"{name} imports {other}"
            for name, tree in _modules().items()
            for other in _imports(tree)
            if other.startswith("torchvision.io")
        ]
        self.assertEmpty(faults)

    def test_only_collectives_and_device_call_torch_distributed(self) -> None:
        self.assertEmpty([f for item in _modules().items() for f in _distributed_faults(*item)])

    def test_gin_contains_no_python(self) -> None:
        # A module there would hide the library of the same name.
        self.assertEmpty(list((ROOT / "gin").rglob("*.py")))


class RulesTest(parameterized.TestCase):
    """The rules find violations."""

    @parameterized.parameters(
        ("jigclu.ops.jigsaw", "from jigclu.models import encoder"),
        ("jigclu.models.encoder", "from jigclu.data.decode import decode_image"),
        ("jigclu.data.decode", "from jigclu.models import encoder"),
        ("jigclu.ops.losses", "def f():\n    import jigclu.training.step"),
        ("jigclu.config.load", "from jigclu.launch import main"),
        ("jigclu.launch", "from jigclu.api import pretrain"),
        ("jigclu.config.load", "from jigclu import api"),
        ("jigclu.detection.command", "from jigclu.training.step import TrainingStep"),
        ("jigclu.tasks.pretrain", "from jigclu.detection import datasets"),
        ("jigclu.models.encoder", "from . import jigclu"),
        ("jigclu", "from jigclu.system import errors"),
    )
    def test_upward_import_is_a_fault(self, name: str, source: str) -> None:
        self.assertLen(_import_faults(name, ast.parse(source)), 1)

    @parameterized.parameters(
        ("jigclu.methods.jigsaw", "from jigclu.ops.jigsaw import patch_locations\nimport torch"),
        ("jigclu.training.step", "from jigclu.training import state\nimport jigclu"),
        ("jigclu.detection.command", "from jigclu.data.decode import upright_size"),
        ("jigclu.launch", "from jigclu import config, tasks"),
        ("jigclu.api", "def f():\n    from jigclu import config"),
        ("jigclu", "from jigclu.api import load_encoder"),
    )
    def test_downward_import_is_no_fault(self, name: str, source: str) -> None:
        self.assertEmpty(_import_faults(name, ast.parse(source)))

    def test_cycle_is_found(self) -> None:
        sources = {
            "jigclu.ops": "",
            "jigclu.ops.a": "from jigclu.ops import b",
            "jigclu.ops.b": "def f():\n    from jigclu.ops.c import d",
            "jigclu.ops.c": "import jigclu.ops.a",
        }
        modules = {name: ast.parse(source) for name, source in sources.items()}
        self.assertEqual(set(_cycle(modules)), {"jigclu.ops.a", "jigclu.ops.b", "jigclu.ops.c"})
        self.assertEmpty(_cycle(modules | {"jigclu.ops.c": ast.parse("import jigclu.ops")}))

    def test_tree_is_parsed(self) -> None:
        page = (
            "x\n\n    jigclu/\n      launch.py  it\n      ops/  that\n        a  b/\n        c\n\ny"
        )
        self.assertEqual(_shown_rooms(page), {"launch": set(), "ops": {"a", "b/", "c"}})

    def test_gin_and_absl_are_faults(self) -> None:
        source = ast.parse("import gin\nfrom absl import logging, flags\nfrom gin import query")
        self.assertLen(_shell_faults("jigclu.ops.losses", source), 4)
        self.assertLen(_shell_faults("jigclu.training.monitor", source), 3)
        self.assertEmpty(_shell_faults("jigclu.config.load", source))

    def test_torch_distributed_is_a_fault(self) -> None:
        source = ast.parse(
            "import torch.distributed as dist\nfrom torch import distributed\n"
            "from torch.nn.parallel import DistributedDataParallel\ntorch.distributed.barrier\n"
            "from torch.distributed.elastic.multiprocessing.errors import record"
        )
        self.assertLen(_distributed_faults("jigclu.training.step", source), 4)
        self.assertLen(_distributed_faults("jigclu.launch", source), 3)
        self.assertEmpty(_distributed_faults("jigclu.system.device", source))

    def test_torch_load_of_code_is_a_fault(self) -> None:
        source = (
            "torch.load(p)\ntorch.load(p, weights_only=False)\ntorch.load(p, weights_only=True)"
        )
        self.assertLen(_load_faults("jigclu.training.checkpoint", ast.parse(source)), 2)


if __name__ == "__main__":
    absltest.main()
