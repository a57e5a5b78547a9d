"""What a study is: a small YAML file, its keys checked, as typed grids of runs."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from equirelax.errors import ConfigError
from equirelax.files import did_you_mean
from equirelax.settings import JOBS, SEED, SEEDS, Range, shown
from equirelax_lab.recipes import VARIANTS
from equirelax_lab.tasks.settings import read_yaml

GRID_KEYS = (
    "benchmark", "models", "methods", "seeds", "recipe", "about", "as_published", "settings", "per_model", "per_method",
    "sweep",
)  # fmt: skip
STUDY_KEYS = ("title", "published", "attempts", "timeout", "jobs", "devices", "accelerator", "grids", "small")
ACCELERATORS = ("cpu", "gpu")
UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_TIME = re.compile(r"(\d+(?:\.\d*)?)\s*(s|min|h|d)\b\s*")
_EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")


@dataclass(frozen=True)
class Grid:
    """Runs of one benchmark, which are compared with each other.

    Attributes:
        name: Of its folder; in a study of one grid the study's own folder serves.
        benchmark: See `equirelax list`. models: Its models; empty takes the benchmark's first. methods: Their methods.
        seeds: Seeds of every run.
        recipe: The variant of the recipes that runs begin with, where their method has it.
        about: The relaxed method whose training settings and data all rows take; None chooses it (see `matching.about`).
        as_published: Whether every row is trained as its own paper did instead.
        settings: For all runs, in the layout of config.yaml. per_model, per_method: For those of one, which win.
        sweep: Setting, or several joined by +, -> values, for each of several the same or a list of one for each; every
            combination of keys is run, of the methods that have the setting.
    """

    name: str
    benchmark: str
    models: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    per_model: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    per_method: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    sweep: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    recipe: str = "published"
    about: str | None = None
    as_published: bool = False


@dataclass(frozen=True)
class Study:
    """Grids, and how they are run.

    Attributes:
        name: The file's name without its ending. title: In words. published: What the papers say, in words.
        attempts: How often a run that breaks is tried in all.
        timeout: Seconds after which one try of a run counts as broken, and is killed; None: never. The next goes on from its
            last checkpoint. In the file a time with its unit: 90 min, 2 h, 1 d 12 h.
        jobs: Runs at the same time; None: as many as have a core for each of their processes, and GPUs.
        devices: Processes of every run, which share its batches (DDP). accelerator: cpu, or gpu: one for each of them.
        grids: What is run. small: Whether it is the small variant. changed: What that changed of the full one, in words.
    """

    name: str
    title: str
    published: str
    attempts: int
    jobs: int | None
    grids: tuple[Grid, ...]
    timeout: float | None = None
    devices: int = 1
    accelerator: str = "cpu"
    small: bool = False
    changed: tuple[str, ...] = ()

    @property
    def on_gpu(self) -> bool:
        """Whether every process of a run has a GPU."""
        return self.accelerator == "gpu"


def read_study(path: Path, small: bool = False) -> Study:
    """The study in a YAML file.

    Its keys are those of `Study` and `Grid`. With `grids` (a mapping of names to grids), grid keys at the top hold for all
    grids, which may change them. `small` changes keys of the study for a quick variant; null there takes out a grid or
    a swept setting.

    Raises:
        ConfigError: the file cannot be read, a key is unknown (with a suggestion) or missing, or a value is of the wrong
            kind; `small` is asked for, and there is none.
    """
    try:
        values = _numbers(read_yaml(path))
        variant = values.pop("small", None)
        if variant is not None and not isinstance(variant, Mapping):
            raise ConfigError(f"'small' should be a mapping of keys to values, not {shown(variant)}.")
        full = _study(path.stem, values)
        changed = (
            _study(path.stem, merged(values, variant), True, _changes(values, variant)) if variant else None
        )
    except ConfigError as error:
        text = str(error)
        raise ConfigError(text if str(path) in text else f"{path}: {text}") from error
    if not small:
        return full
    if changed is None:
        raise ConfigError(f"{path}: there is no small variant: the file has no key 'small'.")
    return changed


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with `changes` put in, mappings key by key."""
    result = dict(values)
    for key, value in changes.items():
        before = result.get(key)
        both = isinstance(before, Mapping) and isinstance(value, Mapping)
        result[key] = merged(before, value) if both else value  # type: ignore[arg-type]
    return result


def nested(name: str, value: Any) -> dict[str, Any]:
    """One setting, by its dotted name, in the layout of config.yaml."""
    section, dot, inner = name.partition(".")
    return {section: {inner: value}} if dot else {section: value}


def _study(name: str, values: Mapping[str, Any], small: bool = False, changed: tuple[str, ...] = ()) -> Study:
    _known(values, (*STUDY_KEYS, *GRID_KEYS), "")
    shared = {key: values[key] for key in GRID_KEYS if key in values}
    parts: Mapping[str, Any] = _mapping(values, "grids", "")
    if "grids" in values:
        grids = [
            _grid(str(part), merged(shared, _mapping(parts, part, "grids.")), f"grids.{part}.")
            for part, content in parts.items()
            if content is not None
        ]
    else:
        grids = [_grid(name, shared, "")]
    if not grids:
        raise ConfigError("'grids' holds no grid.")
    jobs = values.get("jobs")
    return Study(
        name=name,
        title=_text(values, "title", name),
        published=_text(values, "published", ""),
        attempts=_count(values.get("attempts", 2), "attempts"),
        jobs=None if jobs is None else _count(jobs, "jobs"),
        grids=tuple(grids),
        timeout=_seconds(values.get("timeout"), "timeout"),
        devices=_count(values.get("devices", 1), "devices"),
        accelerator=_one_of(values.get("accelerator", "cpu"), ACCELERATORS, "accelerator"),
        small=small,
        changed=changed,
    )


def _grid(name: str, values: Mapping[str, Any], where: str) -> Grid:
    if misplaced := [key for key in values if key in STUDY_KEYS]:
        raise ConfigError(
            f"'{where}{misplaced[0]}' holds for the whole study: put it at the top of the file."
        )
    _known(values, GRID_KEYS, where)
    if not re.fullmatch(r"[\w.+-]+", name) or name.startswith("."):
        raise ConfigError(f"The grid's name '{name}' names a folder: use letters, digits, - and _.")
    for key in ("benchmark", "methods"):
        if key not in values:
            raise ConfigError(f"'{where}{key}' is missing.")
    benchmark = values["benchmark"]
    if not isinstance(benchmark, str):
        raise ConfigError(f"'{where}benchmark' is {shown(benchmark)}; expected a name.")
    sweep = _mapping(values, "sweep", where)
    for key in sweep:
        if not isinstance(key, str):
            raise ConfigError(f"'{where}sweep' has the key {shown(key)}; expected the name of a setting.")
    return Grid(
        name=name,
        benchmark=benchmark,
        models=_names(values.get("models", []), f"{where}models"),
        methods=_names(values["methods"], f"{where}methods"),
        seeds=_seeds(values.get("seeds", 1), f"{where}seeds"),
        settings=_mapping(values, "settings", where),
        per_model=_each(values, "per_model", where),
        per_method=_each(values, "per_method", where),
        sweep={k: _values(v, k, f"{where}sweep.{k}") for k, v in sweep.items() if v is not None},
        recipe=_one_of(values.get("recipe", "published"), tuple(VARIANTS), f"{where}recipe"),
        about=_text(values, "about", "") or None,
        as_published=_flag(values.get("as_published", False), f"{where}as_published"),
    )


def _known(values: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in values:
        if key not in known:
            raise ConfigError(f"Unknown key '{where}{key}'.{did_you_mean(str(key), known)}")


def _mapping(values: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    found = values.get(key)
    if found is None:
        return {}
    if not isinstance(found, Mapping):
        raise ConfigError(f"'{where}{key}' is {shown(found)}; expected a mapping of keys to values.")
    return found


def _each(values: Mapping[str, Any], key: str, where: str) -> dict[str, Mapping[str, Any]]:
    return {name: _mapping(values[key], name, f"{where}{key}.") for name in _mapping(values, key, where)}


def _text(values: Mapping[str, Any], key: str, default: str) -> str:
    found = values.get(key, default)
    if not isinstance(found, str):
        raise ConfigError(f"'{key}' is {shown(found)}; expected text.")
    return found.strip()


def _names(found: Any, where: str) -> tuple[str, ...]:
    names = [found] if isinstance(found, str) else found
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"'{where}' is {shown(found)}; expected a list of names.")
    if len(set(names)) < len(names):
        raise ConfigError(f"'{where}' names one twice: {', '.join(names)}.")
    return tuple(names)


def _seeds(found: Any, where: str) -> tuple[int, ...]:
    """A number of seeds, from 0 on, or a list of them."""
    seeds = found if isinstance(found, list) else range(_count(found, where, SEEDS))
    if not seeds or any(isinstance(s, bool) or not isinstance(s, int) or s not in SEED for s in seeds):
        raise ConfigError(
            f"'{where}' is {shown(found)}; expected how many seeds, or a list of seeds, 0 or more and below 2^32 each."
        )
    return tuple(dict.fromkeys(seeds))


def _count(found: Any, where: str, wanted: Range = JOBS) -> int:
    if isinstance(found, bool) or not isinstance(found, int) or found not in wanted:
        raise ConfigError(f"'{where}' is {shown(found)}; expected a whole number, {wanted}.")
    return found


def _one_of(found: Any, known: tuple[str, ...], where: str) -> str:
    if found not in known:
        raise ConfigError(
            f"'{where}' is {shown(found)}; choose one of {', '.join(known)}.{did_you_mean(str(found), known)}"
        )
    return str(found)


def _flag(found: Any, where: str) -> bool:
    if not isinstance(found, bool):
        raise ConfigError(f"'{where}' is {shown(found)}; expected true or false.")
    return found


def _seconds(found: Any, where: str) -> float | None:
    """A time with its unit, or several one after another, as seconds."""
    if found is None:
        return None
    parts = _TIME.findall(found) if isinstance(found, str) else []
    seconds = sum(float(number) * UNITS[unit] for number, unit in parts)
    if not 0 < seconds < math.inf or _TIME.sub("", found).strip():
        raise ConfigError(
            f"'{where}' is {shown(found)}; expected a time with its unit: 90 s, 30 min, 2 h, 1 d 12 h."
        )
    return seconds


def _values(found: Any, key: str, where: str) -> tuple[Any, ...]:
    """Values of one setting; of several joined by +, each may be a list of one value for every one of them."""
    if not isinstance(found, list) or not found:
        raise ConfigError(f"'{where}' is {shown(found)}; expected a list of values.")
    joined = key.count("+") + 1
    for value in found:
        if isinstance(value, list) and (len(value) != joined or joined == 1):
            expected = f"of {joined}, one for each of {key}" if joined > 1 else "a single value"
            raise ConfigError(f"'{where}' holds {shown(value)}; expected {expected}.")
        if any(isinstance(v, list | Mapping) for v in (value if isinstance(value, list) else [value])):
            raise ConfigError(f"'{where}' holds {shown(value)}; expected numbers, words, true or false.")
    return tuple(tuple(value) if isinstance(value, list) else value for value in found)


def _numbers(value: Any) -> Any:
    """1e-3, which YAML 1.1 reads as text for want of a point, as a number."""
    if isinstance(value, Mapping):
        return {key: _numbers(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_numbers(inner) for inner in value]
    return float(value) if isinstance(value, str) and _EXPONENT.fullmatch(value) else value


def _changes(values: Mapping[str, Any], changes: Mapping[str, Any], where: str = "") -> tuple[str, ...]:
    """What `changes` change of `values`, a line of words each."""
    found: list[str] = []
    for key, value in changes.items():
        if key in ("title", "published"):
            continue
        before, name = values.get(key), f"{where}{key}"
        if isinstance(value, Mapping):
            found += _changes(before if isinstance(before, Mapping) else {}, value, f"{name}.")
        elif value is None and where.endswith(("grids.", "sweep.")):
            found.append(f"without {name}")
        elif before != value:
            name = name.removeprefix("settings.").replace(".settings.", ".")
            found.append(
                f"{name} {_word(value)}" + ("" if before is None else f" instead of {_word(before)}")
            )
    return tuple(found)


def _word(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join("/".join(map(str, v)) if isinstance(v, list) else str(v) for v in value)
    return str(value)
