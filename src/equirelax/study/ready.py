"""Studies that come with the library: one for every table and figure that its benchmarks cover."""

from __future__ import annotations

from pathlib import Path

from equirelax.errors import ConfigError
from equirelax.files import did_you_mean

_PACKAGE = Path(__file__).resolve().parents[1]


def ready_folder() -> Path:
    """studies/ of the repository, or what a wheel made of it."""
    installed = _PACKAGE / "studies"
    return installed if installed.is_dir() else _PACKAGE.parents[1] / "studies"


def ready_names() -> list[str]:
    """Names of the ready studies, as `equirelax reproduce` takes them: cr-nbody."""
    return sorted(path.stem.replace("_", "-") for path in ready_folder().glob("*.yaml"))


def ready_file(name: str) -> Path:
    """The file of a ready study. Raises `ConfigError` with a suggestion if there is none."""
    names = ready_names()
    wanted = name.replace("_", "-")
    if wanted not in names:
        known = ", ".join(names) or f"none in {ready_folder()}"
        raise ConfigError(f"There is no ready study '{name}'.{did_you_mean(wanted, names)} Ready: {known}.")
    return ready_folder() / f"{wanted.replace('-', '_')}.yaml"


def find_study(text: str) -> Path:
    """A study file by its path, or a ready one by its name.

    Raises:
        ConfigError: neither.
    """
    path = Path(text)
    if path.is_file() or path.suffix in (".yaml", ".yml"):
        return path  # reading says what is wrong with it
    return ready_file(text)
