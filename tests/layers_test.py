"""Structural rules: imports go strictly downward, and what no module may do."""

import ast
from collections.abc import Iterator
from pathlib import Path

from absl.testing import absltest, parameterized

ROOT = Path(__file__).parents[1]

# A module may import only what has a lower number. The whole part is the layer;
# the fraction orders the peers of a layer that build on one another.
LAYERS = {
    "jigclu": 0.0,  # The package itself: its version, nothing more.
    "jigclu.errors": 0.1,
    "jigclu.compile_cache": 0.1,
    "jigclu.allocator": 0.1,
    "jigclu.progress": 0.1,
    "jigclu.state": 0.2,
    "jigclu.jigsaw": 1.0,
    "jigclu.placement": 1.0,
    "jigclu.detectron2_names": 1.0,
    "jigclu.crops": 1.1,
    "jigclu.augment": 1.1,
    "jigclu.losses": 1.1,
    "jigclu.update": 1.1,
    "jigclu.schedules": 1.1,
    "jigclu.heads": 1.2,
    "jigclu.scores": 1.2,
    "jigclu.collectives": 1.1,
    "jigclu.batch_norm": 2.0,
    "jigclu.encoder": 2.1,
    "jigclu.model": 2.2,
    "jigclu.checkpoint": 2.0,
    "jigclu.weights": 2.2,
    "jigclu.monitor": 2.0,
    "jigclu.device": 2.0,
    "jigclu.cores": 2.0,
    "jigclu.machine": 2.1,
    "jigclu.data": 2.0,
    "jigclu.data.decode": 2.0,
    "jigclu.data.sampler": 2.0,
    "jigclu.data.sources": 2.1,
    "jigclu.data.procedural": 2.15,
    "jigclu.data.subsets": 2.15,
    "jigclu.data.packed": 2.15,
    "jigclu.data.webdataset": 2.15,
    "jigclu.data.patches": 2.2,
    "jigclu.data.images": 2.2,
    "jigclu.data.loader": 2.3,
    "jigclu.data.transfer": 2.4,
    "jigclu.resume": 2.1,
    "jigclu.steps": 3.0,
    "jigclu.recompute": 3.0,
    "jigclu.objective": 3.1,
    "jigclu.pictures": 3.2,
    "jigclu.knn": 4.0,
    "jigclu.knn_task": 4.1,
    "jigclu.features": 2.4,
    "jigclu.training": 4.0,
    "jigclu.classifier": 3.1,
    "jigclu.supervised": 4.1,
    "jigclu.finetune": 4.2,
    "jigclu.linear": 4.2,
    "jigclu.reproduce": 4.3,
    "jigclu.feature_cache": 3.0,
    "jigclu.pretrain": 4.1,
    "jigclu.export_formats": 2.2,
    "jigclu.export": 4.1,
    "jigclu.pack": 4.0,
    "jigclu.benchmark": 4.0,
    "jigclu.benchmark.timing": 2.0,
    "jigclu.benchmark.tables": 2.1,
    "jigclu.benchmark.environment": 2.0,
    "jigclu.benchmark.published": 2.3,
    "jigclu.benchmark.stepping": 4.2,
    "jigclu.benchmark.pieces": 4.3,
    "jigclu.benchmark.reading": 4.2,
    "jigclu.benchmark.growth": 4.2,
    "jigclu.benchmark.end_to_end": 4.3,
    "jigclu.benchmark.start": 4.3,
    "jigclu.benchmark.task": 4.4,
    "jigclu.benchmark.recipe": 4.2,
    "jigclu.benchmark.short_training": 4.2,
    "jigclu.benchmark.micro_batches": 4.3,
    "jigclu.benchmark.gpu_check": 2.1,
    "jigclu.benchmark.gpu_parts": 4.4,
    "jigclu.hints": 1.1,
    "jigclu.detection": 2.0,
    "jigclu.detection.schedule": 2.0,
    "jigclu.detection.datasets": 2.1,
    "jigclu.detection.initial_weights": 2.2,
    "jigclu.detection.extra_norm": 2.0,
    "jigclu.detection.predictions": 2.0,
    "jigclu.detection.trainer": 2.3,
    "jigclu.detection.command": 5.0,
    "jigclu.config": 5.0,
    "jigclu.launch": 5.1,
}
SHELL = {"jigclu.config", "jigclu.launch"}
# Modules whose functions run in every step: a read from the device would stop it.
NEVER_SYNCHRONISED = {
    "jigclu.steps",
    "jigclu.objective",
    "jigclu.recompute",
    "jigclu.losses",
    "jigclu.augment",
    "jigclu.update",
    "jigclu.placement",
}


def _modules() -> dict[str, ast.Module]:
    modules = {}
    for path in sorted((ROOT / "jigclu").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        modules[".".join(parts).removesuffix(".__init__")] = ast.parse(path.read_text(), str(path))
    return modules


def _imports(tree: ast.Module) -> Iterator[str]:
    """Yields the dotted names that a module imports, wherever in it; `from a import b` is a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # A relative import has no name that the table could judge.
            yield from (
                f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names
            )


def _own_module(name: str) -> str:
    """Returns the module of this project that an imported name means: jigclu.a.B is jigclu.a."""
    while name not in LAYERS and "." in name:
        name = name.rpartition(".")[0]
    return name


def _layer_faults(name: str, tree: ast.Module) -> list[str]:
    imported = [other for other in _imports(tree) if other.split(".")[0] in ("jigclu", "")]
    return [
        f"{name} ({LAYERS[name]}) imports {other}"
        for other in imported
        if other.startswith(".") or LAYERS[_own_module(other)] >= LAYERS[name]
    ]


def _shell_faults(name: str, tree: ast.Module) -> list[str]:
    allowed = {"absl.logging"} if LAYERS[name] >= 2 else set()
    return [
        f"{name} imports {other}"
        for other in _imports(tree)
        if other.split(".")[0] in ("gin", "absl") and other not in allowed and name not in SHELL
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
    def test_every_module_has_a_layer(self) -> None:
        self.assertEmpty(set(_modules()) - set(LAYERS), "add it to LAYERS")

    def test_imports_go_strictly_downward(self) -> None:
        self.assertEmpty([f for item in _modules().items() for f in _layer_faults(*item)])

    def test_only_the_shell_knows_gin_and_flags(self) -> None:
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

    def test_steps_never_wait_for_the_device(self) -> None:
        faults = [
            f"{name}:{call.lineno}"
            for name, tree in _modules().items()
            if name in NEVER_SYNCHRONISED
            for call in _calls(tree, "item")
        ]
        self.assertEmpty(faults)

    def test_gin_holds_no_python(self) -> None:
        # A module there would hide the library of the same name.
        self.assertEmpty(list((ROOT / "gin").rglob("*.py")))


class RulesTest(parameterized.TestCase):
    """The rules themselves see what they are there to see."""

    @parameterized.parameters(
        ("jigclu.jigsaw", "from jigclu import losses"),
        ("jigclu.losses", "from jigclu.augment import blur"),
        ("jigclu.losses", "def f():\n    import jigclu.steps"),
        ("jigclu.data.decode", "from jigclu.data.loader import Loader"),
        ("jigclu.encoder", "from . import model"),
    )
    def test_upward_import_is_a_fault(self, name: str, source: str) -> None:
        self.assertLen(_layer_faults(name, ast.parse(source)), 1)

    @parameterized.parameters(
        ("jigclu.losses", "from jigclu.jigsaw import patch_of\nimport torch"),
        ("jigclu.steps", "from jigclu import losses, model\nimport jigclu"),
        ("jigclu.launch", "from jigclu.config import parse"),
    )
    def test_downward_import_is_none(self, name: str, source: str) -> None:
        self.assertEmpty(_layer_faults(name, ast.parse(source)))

    def test_gin_and_absl(self) -> None:
        source = ast.parse("import gin\nfrom absl import logging, flags\nfrom gin import query")
        self.assertLen(_shell_faults("jigclu.losses", source), 4)
        self.assertLen(_shell_faults("jigclu.monitor", source), 3)
        self.assertEmpty(_shell_faults("jigclu.config", source))

    def test_torch_load(self) -> None:
        source = (
            "torch.load(p)\ntorch.load(p, weights_only=False)\ntorch.load(p, weights_only=True)"
        )
        self.assertLen(_load_faults("jigclu.knn", ast.parse(source)), 2)


if __name__ == "__main__":
    absltest.main()
