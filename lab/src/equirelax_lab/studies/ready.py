"""Studies that come with the laboratory: one for every table and figure that its benchmarks cover; and searches."""

from __future__ import annotations

from pathlib import Path

from equirelax.errors import ConfigError
from equirelax.files import did_you_mean

SEARCH = "search-"
"""How the names of searches begin."""
_PACKAGE = Path(__file__).resolve().parents[1]


def ready_folder() -> Path:
    """studies/ of the repository, or what a wheel made of it."""
    installed = _PACKAGE / "ready"
    return installed if installed.is_dir() else _PACKAGE.parents[1] / "studies"


def ready_names() -> list[str]:
    """Names of the ready studies, as `equirelax reproduce` takes them: cr-nbody."""
    return [name for name in _files() if not name.startswith(SEARCH)]


def ready_searches() -> list[str]:
    """Names of the ready searches, as `equirelax search` takes them: search-nbody-lambda."""
    return [name for name in _files() if name.startswith(SEARCH)]


def ready_file(name: str) -> Path:
    """The file of a ready study. Raises `ConfigError` with a suggestion if there is none."""
    return _file(name, "study", ready_names())


def find_study(text: str) -> Path:
    """A study file by its path, or a ready one by its name.

    Raises:
        ConfigError: neither.
    """
    path = Path(text)
    if path.is_file() or path.suffix in (".yaml", ".yml"):
        return path  # reading says what is wrong with it
    return ready_file(text)


def find_search(text: str) -> Path:
    """The same for a file of a search."""
    path = Path(text)
    if path.is_file() or path.suffix in (".yaml", ".yml"):
        return path
    return _file(text, "search", ready_searches())


def _files() -> list[str]:
    """All that comes with the library, by name."""
    return sorted(path.stem.replace("_", "-") for path in ready_folder().glob("*.yaml"))


def _file(name: str, what: str, names: list[str]) -> Path:
    wanted = name.replace("_", "-")
    if wanted not in names:
        known = ", ".join(names) or f"none in {ready_folder()}"
        raise ConfigError(f"There is no ready {what} '{name}'.{did_you_mean(wanted, names)} Ready: {known}.")
    return ready_folder() / f"{wanted.replace('-', '_')}.yaml"
