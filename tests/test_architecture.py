"""The two houses: rooms import only rooms before them, no file is in a circle, the library imports torch and numpy alone."""

from __future__ import annotations

import ast
import functools
import sys
from pathlib import Path

import equirelax

LIBRARY = Path(equirelax.__file__).parent
LAB = Path(__file__).parents[1] / "lab" / "src" / "equirelax_lab"
ROOMS = {
    "equirelax": [
        "errors", "files", "ranks", "settings", "zips", "symmetry", "relaxation", "methods", "auditing", "optim", "testing",
        "integrations", "command", "__main__",
    ],
    "equirelax_lab": ["extras", "models", "data", "placements", "recipes", "tasks", "training", "studies", "report", "cli"],
}  # fmt: skip
LIBRARIES = {"torch", "numpy", *sys.stdlib_module_names}
FILES = sorted(p for house in (LIBRARY, LAB) for p in house.rglob("*.py") if p != house / "__init__.py")


def name_of(path: Path) -> str:
    """The module's full name."""
    house = LIBRARY if path.is_relative_to(LIBRARY) else LAB
    parts = (house.name, *path.relative_to(house).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {name_of(path): path for path in FILES}


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


@functools.cache
def imports(path: Path, top_level_only: bool = False) -> frozenset[str]:
    """Full names of what a file imports (not under `if TYPE_CHECKING`): modules, and module.name of what is taken from one."""
    nodes: list[ast.AST] = list(parsed(path).body)
    found: set[str] = set()
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif not top_level_only and not _is_typing(node):
            nodes += [child for child in ast.iter_child_nodes(node) if isinstance(child, STATEMENTS)]
    return frozenset(found)


STATEMENTS = (ast.stmt, ast.excepthandler, ast.match_case)
"""What an import statement may stand in."""


def _is_typing(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def house_and_room(name: str) -> tuple[str, str]:
    house, _, rest = name.partition(".")
    return house, rest.split(".")[0]


def test_arrows_point_down() -> None:
    for path in FILES:
        house, room = house_and_room(name_of(path))
        for name in imports(path):
            other, there = house_and_room(name)
            words = f"{name_of(path)} imports {name}"
            assert not (house == "equirelax" and other == "equirelax_lab"), f"{words}, of the laboratory"
            if other == house and there in ROOMS[house]:
                assert ROOMS[house].index(there) <= ROOMS[house].index(room), f"{words}, of a room above"


def test_no_file_is_in_a_circle() -> None:
    """Follows imports from file to file, also those inside functions."""
    graph = {
        name: sorted({file for i in imports(path) if (file := _file(i))} - {name})
        for name, path in NAMES.items()
    }
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail[trail.index(name) :], name))
        if name not in done:
            for other in graph[name]:
                visit(other, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def _file(name: str) -> str | None:
    """The file behind a name that is imported; None for what is not ours, and for a room's `__init__`, which holds no logic."""
    for known in (name, name.rpartition(".")[0]):
        if known in NAMES:
            return None if NAMES[known].name == "__init__.py" else known
    return None


def test_nothing_private_crosses_a_room() -> None:
    for path in FILES:
        here = house_and_room(name_of(path))
        for name in imports(path):
            if name.split(".")[0] in ROOMS and house_and_room(name) != here:
                private = [
                    part for part in name.split(".")[1:] if part.startswith("_") and part != "__version__"
                ]
                assert not private, f"{name_of(path)} imports {name}"


def test_models_know_nothing_of_relaxation_and_data_nothing_of_models() -> None:
    allowed = {
        "models": {"errors", "files", "symmetry"},
        "data": {"errors", "files", "settings", "zips", "symmetry"},
    }
    for path in FILES:
        own, room = house_and_room(name_of(path))
        for name in imports(path) if own == "equirelax_lab" else ():
            house, there = house_and_room(name)
            words = f"{name_of(path)} imports {name}"
            if room in allowed and house == "equirelax" and there in ROOMS["equirelax"]:
                assert there in allowed[room], words
            assert not (room == "data" and house == "equirelax_lab" and there == "models"), words


def test_the_library_imports_torch_and_numpy_alone() -> None:
    for path in FILES:
        for name in imports(path, top_level_only=True) if path.is_relative_to(LIBRARY) else ():
            known = name.split(".")[0] in LIBRARIES | {"equirelax"}
            assert known, f"{name_of(path)} imports {name} when it is loaded"


def test_the_package_exports_a_short_list() -> None:
    assert len(equirelax.__all__) <= 27
    assert all(hasattr(equirelax, name) for name in equirelax.__all__)
