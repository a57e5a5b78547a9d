"""The house: rooms import only rooms below them, the core imports torch alone, files stay short."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

import equirelax

SOURCE = Path(equirelax.__file__).parent
ROOMS = [
    "errors", "files", "ranges", "zips", "symmetry", "relaxation", "penalties", "methods", "auditing", "testing", "models",
    "data", "recipes", "benchmarks", "training", "study", "report", "cli",
]  # fmt: skip
CORE = {"errors", "files", "ranges", "zips", "symmetry", "relaxation", "penalties", "methods", "auditing"}
LIBRARIES = {"torch", "numpy", *sys.stdlib_module_names}
FILES = sorted(p for p in SOURCE.rglob("*.py") if p != SOURCE / "__init__.py")


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@functools.cache
def imports(path: Path, top_level_only: bool) -> set[str]:
    """Full names of the modules that a file imports (not under `if TYPE_CHECKING`)."""
    tree = parsed(path)
    nodes = tree.body if top_level_only else [n for n in ast.walk(tree) if not _is_typing(n)]
    typing_only = {id(child) for n in ast.walk(tree) if _is_typing(n) for child in ast.walk(n)}
    found: set[str] = set()
    for node in nodes:
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            if node.module == "equirelax":
                found |= {f"equirelax.{alias.name}" for alias in node.names}
    return found


def _is_typing(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_arrows_point_down(path):
    here = ROOMS.index(room(path))
    for name in imports(path, top_level_only=False):
        parts = name.split(".")
        if parts[0] == "equirelax" and len(parts) > 1 and parts[1] in ROOMS:
            assert ROOMS.index(parts[1]) <= here, f"{room(path)} imports {name}, a room above it"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_models_know_nothing_of_relaxation_and_data_nothing_of_models(path):
    forbidden = {
        "models": CORE - {"errors", "files", "ranges", "symmetry"},
        "data": {"models", "relaxation", "penalties", "methods", "auditing"},
    }
    for name in imports(path, top_level_only=False):
        parts = name.split(".")
        if parts[0] == "equirelax" and len(parts) > 1:
            assert parts[1] not in forbidden.get(room(path), set()), f"{path.name} imports {name}"


@pytest.mark.parametrize(
    "path", [p for p in FILES if room(p) in CORE], ids=lambda p: str(p.relative_to(SOURCE))
)
def test_the_core_imports_torch_alone(path):
    for name in imports(path, top_level_only=True):
        assert name.split(".")[0] in LIBRARIES | {"equirelax"}, (
            f"{path.name} imports {name} when it is loaded"
        )


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_files_stay_short(path):
    assert len(path.read_text().splitlines()) <= 420


def test_importing_is_light():
    code = (
        "import torch, time, sys; t = time.process_time(); import equirelax; s = time.process_time() - t;"
        "heavy = {'e3nn', 'torch_geometric', 'lightning', 'matplotlib', 'jsonargparse', 'scipy'} & set(sys.modules);"
        "assert not heavy, heavy; assert s < 2, s"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_the_package_exports_a_short_list():
    assert len(equirelax.__all__) <= 25
    assert all(hasattr(equirelax, name) for name in equirelax.__all__)
