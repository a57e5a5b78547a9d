"""The laboratory's extras: the modules that each of them brings, and the command that installs one."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

DISTRIBUTION = "equirelax-lab"
EXTRAS: dict[str, tuple[str, ...]] = {
    "run": (
        "e3nn",
        "lightning",
        "rich",
        "jsonargparse",
        "matplotlib",
        "safetensors",
        "yaml",
        "pooch",
        "filelock",
        "scipy",
        "jinja2",
        "PIL",
    ),
    "tensorboard": ("tensorboard",),
    "modelnet": ("h5py",),
    "pyg": ("torch_geometric",),
    "planes": ("phi", "sklearn"),
    "md17": ("ase", "nequip"),
    "ray": ("ray",),
    "search": ("optuna",),
    "wandb": ("wandb",),
    "mlflow": ("mlflow", "sqlalchemy", "alembic"),
}
"""Extra -> the modules that the laboratory imports from it."""
PROJECT = Path(__file__).parents[2] / "pyproject.toml"
"""The pyproject.toml of the clone, if the laboratory runs from one."""


def install(extra: str) -> str:
    """The command that installs the packages of an extra for the running Python.

    It names the packages, because the laboratory itself is on no index: the same command works from a clone and from a wheel.

    Args:
        extra: A key of `EXTRAS`.
    """
    return _command(_required(extra))


def install_module(module: str) -> str:
    """The command that installs what `import module` needs: the extra that brings it, else the package of that name."""
    extra = next((name for name, modules in EXTRAS.items() if module in modules), None)
    return _command([module]) if extra is None else install(extra)


def _command(packages: Sequence[str]) -> str:
    # A `pip` that belongs to another Python would install into the wrong environment.
    pip = shutil.which("pip")
    ours = pip is not None and Path(pip).parent == Path(sys.executable).parent
    return " ".join(
        ["pip" if ours else f"{sys.executable} -m pip", "install", *(f'"{name}"' for name in packages)]
    )


def _required(extra: str) -> list[str]:
    """The requirements of an extra from a clone's pyproject.toml, else from the installed package."""
    if PROJECT.is_file():
        project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
        if project["name"] == DISTRIBUTION:
            return list(project["optional-dependencies"][extra])
    found = []
    for text in importlib.metadata.requires(DISTRIBUTION) or ():
        requirement, _, marker = text.partition(";")
        if re.search(rf"extra == ['\"]{extra}['\"]", marker):
            found.append(requirement.strip())
    return found
