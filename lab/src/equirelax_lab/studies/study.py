"""Studies: grids of runs, read from a small YAML file or made from the options of a comparison."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from equirelax.errors import ConfigError
from equirelax.files import did_you_mean
from equirelax.settings import shown
from equirelax_lab.recipes import VARIANTS
from equirelax_lab.studies.keys import Keys, merged, read_file
from equirelax_lab.tasks.settings import RunConfig
from equirelax_lab.training.machine import Machine

GRID_KEYS = (
    "benchmark", "models", "methods", "seeds", "recipe", "about", "as_published", "settings", "per_model", "per_method",
    "sweep",
)  # fmt: skip
STUDY_KEYS = (
    "title", "published", "attempts", "timeout", "jobs", "devices", "accelerator", "graph", "grids", "small",
)  # fmt: skip
SEARCH = "search-"
"""The beginning of the names of searches that come with the laboratory."""
_PACKAGE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Grid:
    """Runs on one benchmark that are compared with each other.

    Attributes:
        name: Name of the grid's folder; the only grid of a study uses the study's own folder.
        benchmark: The benchmark; see `equirelax list`.
        models: Models of the benchmark; empty takes its first one.
        methods: Methods to train each model with.
        seeds: Seeds of every run.
        recipe: Variant of the recipes that the runs start from, if their method has it.
        about: The relaxed method whose training settings and data all rows take; None chooses it (see `matching.about`).
        as_published: Whether every row is trained as in its own paper instead.
        settings: Settings of all runs, in the layout of config.yaml.
        per_model: Settings of the runs of one model; they win over `settings`.
        per_method: Settings of the runs of one method; they win over `per_model`.
        sweep: Setting, or several joined by +, -> values. Each value of joined settings is one for all of them, or a tuple
            with one for each. Every combination is run, for the methods that have the setting.
        begun: (model, method) -> settings that its runs start from instead of those of a recipe.
    """

    name: str
    benchmark: str
    models: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    recipe: str = "published"
    about: str | None = None
    as_published: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    per_model: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    per_method: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    sweep: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    begun: Mapping[tuple[str, str], RunConfig] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Study:
    """Grids of runs, and how the runs execute.

    Attributes:
        name: Name of the file without its ending; empty for a comparison, which has no file.
        title: The study in words.
        published: What the papers say, in words.
        grids: The grids of runs.
        attempts: How often a run that breaks is tried in all.
        timeout: Seconds after which one try of a run is killed and counts as broken; None means no limit. The next
            try continues from the run's last checkpoint.
        jobs: Runs at the same time; None means as many as have a core for each of their processes, and GPUs.
        machine: Where and how each run executes. Its `devices` processes share the batches (DDP); with the accelerator
            gpu each of them gets its own GPU.
        share_cores: Whether the runs share all cores, instead of using the threads that `machine` names.
        small: Whether this is the small variant.
        changed: What the small variant changes, as phrases.
    """

    name: str
    title: str
    published: str = ""
    grids: tuple[Grid, ...] = ()
    attempts: int = 2
    timeout: float | None = None
    jobs: int | None = None
    machine: Machine = field(default_factory=lambda: Machine(progress=False))
    share_cores: bool = True
    small: bool = False
    changed: tuple[str, ...] = ()

    @property
    def on_gpu(self) -> bool:
        """Whether every process of a run needs a GPU."""
        return self.machine.accelerator == "gpu"


def read_study(path: Path, small: bool = False) -> Study:
    """The study in a YAML file.

    Its keys are those of `Study` and `Grid`, with `devices`, `accelerator` and `graph` for the machine. Under `grids` (names ->
    grids) there may be several grids. Grid keys at the top apply to all of them, and each may change them. Keys under
    `small` change the others for a quick variant; null there removes a grid or a swept setting.

    Raises:
        ConfigError: The file cannot be read; a key is unknown (with a suggestion) or missing, or a value is of the wrong
            kind; or `small` is requested, and there is no small variant.
    """
    return read_file(path, small, lambda values, *variant: _study(path.stem, values, *variant))


def _study(name: str, values: Mapping[str, Any], small: bool, changed: tuple[str, ...]) -> Study:
    keys = Keys(values, (*STUDY_KEYS, *GRID_KEYS))
    shared = {key: values[key] for key in GRID_KEYS if key in values}
    if "grids" in values:
        grids = tuple(
            _grid(str(part), merged(shared, content), f"grids.{part}.")
            for part, content in keys.mappings("grids").items()
            if values["grids"][part] is not None
        )
        if not grids:
            raise ConfigError("'grids' holds no grid.")
    else:
        grids = (_grid(name, shared, ""),)
    return Study(
        name=name,
        title=keys.text("title", name),
        published=keys.text("published"),
        grids=grids,
        attempts=keys.count("attempts", 2),
        timeout=keys.seconds("timeout"),
        jobs=keys.count_or_none("jobs"),
        machine=Machine(
            accelerator=keys.one_of("accelerator", ("cpu", "gpu", "auto"), "cpu"),  # type: ignore[arg-type]
            devices=keys.count("devices", 1),
            graph=keys.flag("graph"),
            progress=False,
        ),
        small=small,
        changed=changed,
    )


def _grid(name: str, values: Mapping[str, Any], where: str) -> Grid:
    if misplaced := [key for key in values if key in STUDY_KEYS]:
        raise ConfigError(
            f"'{where}{misplaced[0]}' holds for the whole study: put it at the top of the file."
        )
    keys = Keys(values, GRID_KEYS, where)
    if not re.fullmatch(r"[\w.+-]+", name) or name.startswith("."):
        raise ConfigError(f"The grid's name '{name}' names a folder: use letters, digits, - and _.")
    keys.need("benchmark", "methods")
    sweep = keys.mapping("sweep")
    for key in sweep:
        if not isinstance(key, str):
            raise ConfigError(f"'{where}sweep' has the key {shown(key)}; expected the name of a setting.")
    return Grid(
        name=name,
        benchmark=keys.name("benchmark") or "",
        models=keys.names("models"),
        methods=keys.names("methods"),
        seeds=keys.seeds("seeds"),
        recipe=keys.one_of("recipe", tuple(VARIANTS), "published"),
        about=keys.text("about") or None,
        as_published=keys.flag("as_published"),
        settings=keys.mapping("settings"),
        per_model=keys.mappings("per_model"),
        per_method=keys.mappings("per_method"),
        sweep={k: _values(v, k, f"{where}sweep.{k}") for k, v in sweep.items() if v is not None},
    )


def _values(found: Any, key: str, where: str) -> tuple[Any, ...]:
    """The values of one swept key; lists of one value for each joined setting become tuples."""
    if not isinstance(found, list) or not found:
        raise ConfigError(f"'{where}' is {shown(found)}; expected a list of values.")
    joined = key.count("+") + 1
    for value in found:
        if isinstance(value, list) and (len(value) != joined or joined == 1):
            expected = f"a list of {joined}, one for each of {key}" if joined > 1 else "a single value"
            raise ConfigError(f"'{where}' holds {shown(value)}; expected {expected}.")
        if any(isinstance(v, list | Mapping) for v in (value if isinstance(value, list) else [value])):
            raise ConfigError(f"'{where}' holds {shown(value)}; expected numbers, words, true or false.")
    return tuple(tuple(value) if isinstance(value, list) else value for value in found)


def ready_folder() -> Path:
    """The folder of the study files that come with the laboratory, in a checkout or in an installed package."""
    installed = _PACKAGE / "ready"
    return installed if installed.is_dir() else _PACKAGE.parents[1] / "studies"


def ready_names(searches: bool = False) -> list[str]:
    """Names of the studies, or searches, that come with the laboratory, such as cr-nbody."""
    names = sorted(path.stem.replace("_", "-") for path in ready_folder().glob("*.yaml"))
    return [name for name in names if name.startswith(SEARCH) == searches]


def ready_file(name: str, searches: bool = False) -> Path:
    """The file of a study, or search, that comes with the laboratory. Raises `ConfigError`, with a suggestion, if none has
    that name.
    """
    wanted, names = name.replace("_", "-"), ready_names(searches)
    if wanted not in names:
        known = ", ".join(names) or f"none in {ready_folder()}"
        what = "search" if searches else "study"
        raise ConfigError(f"There is no ready {what} '{name}'.{did_you_mean(wanted, names)} Ready: {known}.")
    return ready_folder() / f"{wanted.replace('-', '_')}.yaml"


def find_file(text: str, searches: bool = False) -> Path:
    """The file that a user means by `text`: its path, or the name of a study, or search, that comes with the laboratory.

    Raises:
        ConfigError: `text` is neither.
    """
    path = Path(text)
    if path.is_file() or path.suffix in (".yaml", ".yml"):
        return path  # reading it will report what is wrong with it
    return ready_file(text, searches)
