"""The import direction of the project, read from the source without running it.

``vs_deblur.{cli,hosts} -> vs_deblur.* -> vs_deblur_models -> vs_deblur_kernels``; hosts never
import each other, the engine never imports a host, and nothing imports training, benchmarks or
tests but themselves. Imports inside functions and under ``TYPE_CHECKING`` count as well.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

ROOT = Path(__file__).parents[1]

PACKAGES = {
    "vs_deblur": ROOT / "vs_deblur",
    "vs_deblur_models": ROOT / "models" / "vs_deblur_models",
    "vs_deblur_kernels": ROOT / "kernels" / "vs_deblur_kernels",
}
OURS = (*PACKAGES, "training", "benchmarks", "tests")

# Third parties that take long to import or may be missing: only inside functions, except in the
# modules that are about nothing else; those are imported inside functions themselves.
HEAVY = frozenset(("torch", "av", "vapoursynth", "PIL", "safetensors", "cupy", "tifffile"))
MAY_BE_HEAVY = frozenset(
    (
        "vs_deblur.cuda",
        "vs_deblur.demo_scene",
        "vs_deblur.engine",
        "vs_deblur.hosts.vapoursynth",
        "vs_deblur.hosts.vpy",
    )
)

When = Literal["import", "call", "types"]


def layer_of(module: str) -> str:
    """The layer that a module belongs to."""
    parts = module.split(".")
    if parts[0] != "vs_deblur":
        return parts[0]
    if len(parts) > 1 and parts[1] in ("cli", "hosts"):
        return parts[1]
    return "entry" if module in ("vs_deblur", "vs_deblur.__main__") else "core"


# What each layer may import of ours. The entry, `vs_deblur/__init__.py`, names the public API, of
# which the filter is a part; it is looked up when it is first used.
ALLOWED: dict[str, frozenset[str]] = {
    "entry": frozenset(("entry", "core", "hosts", "cli")),
    # The doctor tries the public filter.
    "cli": frozenset(("entry", "cli", "hosts", "core", "vs_deblur_models", "vs_deblur_kernels")),
    "hosts": frozenset(("core", "vs_deblur_models", "vs_deblur_kernels")),
    "core": frozenset(("core", "vs_deblur_models", "vs_deblur_kernels")),
    "vs_deblur_models": frozenset(("vs_deblur_models", "vs_deblur_kernels")),
    "vs_deblur_kernels": frozenset(("vs_deblur_kernels",)),
}


def imports(source: str, module: str, package: bool = False) -> Iterator[tuple[str, When]]:
    """Every import of a source text, anywhere in it: the module's name, and when it is run: with
    the text, in a function, or never (under ``TYPE_CHECKING``)."""

    def visit(node: ast.AST, when: When) -> Iterator[tuple[str, When]]:
        if isinstance(node, ast.Import):
            yield from ((a.name, when) for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                stem = module.split(".")
                stem = stem[: len(stem) - node.level + package]
                base = ".".join((*stem, base)).rstrip(".")
            # `from package import module` imports the module, too.
            yield from ((f"{base}.{a.name}", when) for a in node.names)
        else:
            in_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            types: list[ast.stmt] = []
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                types = node.body
            inside = "call" if in_function and when == "import" else when
            for child in ast.iter_child_nodes(node):
                yield from visit(child, "types" if child in types else inside)

    yield from visit(ast.parse(source), "import")


def known(name: str, modules: frozenset[str]) -> str | None:
    """The module of ours that an imported name is, or is in."""
    while name:
        if name in modules:
            return name
        name = name.rpartition(".")[0]
    return None


def faults(source: str, module: str, modules: frozenset[str], package: bool = False) -> list[str]:
    """What a module imports that it must not."""
    found = set()
    light = module.split(".")[0] == "vs_deblur" and module not in MAY_BE_HEAVY
    for name, when in imports(source, module, package):
        top = name.split(".")[0]
        target = known(name, modules) or (top if top in OURS else None)
        if light and when == "import" and (top in HEAVY or target in MAY_BE_HEAVY):
            found.add(f"{module} imports {target or top} when it is imported")
        if target is None:
            continue
        mine, theirs = layer_of(module), layer_of(target)
        allowed = theirs in ALLOWED[mine]
        if mine == theirs == "hosts":
            allowed = target == module
        if not allowed:
            found.add(f"{module} imports {target}")
    return sorted(found)


def sources() -> dict[str, Path]:
    """Every module of the three packages by its dotted name."""
    found = {}
    for package, folder in PACKAGES.items():
        for path in folder.rglob("*.py"):
            parts = [package, *path.relative_to(folder).with_suffix("").parts]
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


SOURCES = sources()


def test_all_layers_are_seen() -> None:
    assert {layer_of(m) for m in SOURCES} == set(ALLOWED)
    assert "vs_deblur.engine" in SOURCES
    assert set(SOURCES) >= MAY_BE_HEAVY


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_import_direction(module: str) -> None:
    path = SOURCES[module]
    text = path.read_text(encoding="utf-8")
    assert faults(text, module, frozenset(SOURCES), path.name == "__init__.py") == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("vs_deblur.engine", "import vs_deblur.hosts.video"),
        ("vs_deblur.engine", "from vs_deblur.hosts import video"),
        ("vs_deblur.engine", "from .hosts.video import VideoReader"),
        ("vs_deblur.engine", "def f():\n    from vs_deblur.cli import main"),
        ("vs_deblur.engine", "if TYPE_CHECKING:\n    import vs_deblur.cli"),
        ("vs_deblur.engine", "import vs_deblur"),
        ("vs_deblur.hosts.video", "from vs_deblur.hosts.y4m import read"),
        ("vs_deblur.hosts.video", "from . import y4m"),
        ("vs_deblur.hosts.video", "import vs_deblur.cli"),
        ("vs_deblur_models.strcnn", "import vs_deblur.engine"),
        ("vs_deblur_models.strcnn", "from vs_deblur import errors"),
        ("vs_deblur_kernels.pixels", "import vs_deblur_models"),
        ("vs_deblur_kernels.pixels", "from vs_deblur.errors import UsageError"),
        ("vs_deblur.metrics", "import training.losses"),
        ("vs_deblur.cli.models", "from tests import invoke"),
        ("vs_deblur_models.blocks", "import benchmarks"),
        ("vs_deblur.cli.models", "import torch"),
        ("vs_deblur.weights", "from safetensors import safe_open"),
        ("vs_deblur.cli.models", "from vs_deblur.engine import Deblurrer"),
        ("vs_deblur.timeline", "try:\n    import torch.nn\nexcept ImportError:\n    pass"),
    ],
)
def test_violations_are_found(module: str, source: str) -> None:
    assert len(faults(source, module, frozenset(SOURCES))) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("vs_deblur.cli.models", "from vs_deblur.hosts.video import VideoReader"),
        ("vs_deblur.cli.models", "def f():\n    import torch"),
        ("vs_deblur.weights", "if TYPE_CHECKING:\n    import torch"),
        ("vs_deblur.cli.models", "def f():\n    from vs_deblur.engine import Deblurrer"),
        ("vs_deblur.engine", "import torch\nfrom vs_deblur_kernels.reference import to_rgb"),
        ("vs_deblur.hosts.video", "from vs_deblur.pipeline import read_ahead"),
        ("vs_deblur_models.strcnn", "import torch\nfrom .blocks import ResBlock"),
    ],
)
def test_what_is_allowed_is_not_found(module: str, source: str) -> None:
    assert faults(source, module, frozenset(SOURCES)) == []
