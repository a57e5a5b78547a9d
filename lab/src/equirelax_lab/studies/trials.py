"""The runs of a study: from grids to trials, what their folders hold, and the journal study.json beside them."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from equirelax.errors import ConfigError
from equirelax.files import did_you_mean, write_text
from equirelax_lab.studies.keys import merged, nested
from equirelax_lab.studies.study import Grid, Study
from equirelax_lab.tasks.matching import about, check_variant, matched
from equirelax_lab.tasks.methods import choice, needs_residuals
from equirelax_lab.tasks.registry import build_task, check_optimizer, config_from_dict, defaults, task_class
from equirelax_lab.tasks.settings import NAMES, RunConfig, read_yaml
from equirelax_lab.tasks.task import NO_PLACEMENT
from equirelax_lab.training.folder import CONFIG, METRICS, RESULT, changed_settings, read_result, read_table

JOURNAL = "study.json"
NOT_SWEPT = (*NAMES, "seed")
"""Keys of a run's settings that identify the run."""
Status = Literal["waiting", "running", "finished", "pruned", "failed"]


@dataclass(eq=False)
class Trial:
    """One run of a study, and its progress.

    Attributes:
        label: Its name in tables: its folder relative to the study's.
        grid: Name of its grid.
        kind: Its name without the seed; trials of a kind differ only in the seed.
        config: Its settings.
        folder: The run's folder.
        status: Its current state; pruned is a run that a search ended early.
        attempts: How often the present command has started it.
        reason: Why it failed last; empty if it did not.
        where: The machine that it ran on last; empty for this one.
        note: What is also printed when it ends, such as the result of a search's trial.
    """

    label: str
    grid: str
    kind: str
    config: RunConfig
    folder: Path
    status: Status = "waiting"
    attempts: int = 0
    reason: str = ""
    where: str = ""
    note: str = ""

    def progress(self) -> dict[str, str]:
        """The last row of metrics.csv; empty before the end of the first epoch."""
        try:
            return read_table(self.folder / METRICS)[-1]
        except (OSError, IndexError, ValueError):
            return {}

    @property
    def epochs(self) -> int:
        """Epochs that are done."""
        try:
            return int(self.progress()["epoch"]) + 1
        except (KeyError, ValueError):
            return 0

    def look(self) -> None:
        """Set the status to what the run's folder shows.

        Raises:
            ConfigError: The folder holds a run with other settings, which must not be mistaken for this one.
        """
        if not (self.folder / CONFIG).exists():
            return
        try:
            differing = changed_settings(self.config, self.folder)
            if not differing and (self.folder / RESULT).exists():
                read_result(self.folder / RESULT)
                self.status = "finished"
        except ConfigError as error:  # a damaged file concerns only this run
            self.status, self.reason = "failed", str(error)
            return
        if differing:
            raise ConfigError(
                f"{self.folder} holds a run with other settings: {'; '.join(differing)}. Name another folder with --out, "
                "or remove it."
            )


def trials(study: Study, out: Path = Path()) -> list[Trial]:
    """All runs of a study in the folder `out`, each with the status that its folder shows.

    Seeds are outermost, so that a part of the runs compares everything on a few seeds; within a seed, grids, models,
    methods and values keep the order of the study.

    Raises:
        ConfigError: A name, key or value does not exist or does not fit, two runs have the same name, or the folder of
            one holds a run with other settings.
    """
    found = sorted(
        (trial for grid in study.grids for trial in _of_grid(study, grid, out)), key=lambda t: t.config.seed
    )
    seen: set[Path] = set()
    for trial in found:
        if trial.folder in seen:
            raise ConfigError(f"Two runs are called {trial.label}: a value is swept twice.")
        seen.add(trial.folder)
        trial.look()
    return found


def check_owner(study: Study, out: Path) -> None:
    """Refuse the folder of another study, whose journal this one would replace.

    Raises:
        ConfigError: `out` is the folder of another study, of its small variant, or of a comparison; or its journal is damaged.
    """
    if not (out / JOURNAL).exists():
        return
    journal = read_journal(out)
    owner, own = _called(journal.get("name"), journal.get("small")), _called(study.name, study.small)
    if owner != own:
        raise ConfigError(
            f"{out} is the folder of {owner}, not of {own}: give this one a folder of its own with --out. If the study's "
            f"file was renamed, change the name in {out / JOURNAL}."
        )


def _called(name: Any, small: Any) -> str:
    return f"the study {name}{' (small)' if small else ''}" if name else "a comparison"


def grid_folder(study: Study, grid: Grid) -> Path:
    """The folder of a grid's runs and comparison, relative to the study's."""
    return Path(grid.name) if len(study.grids) > 1 else Path()


def left_out(grid: Grid) -> list[str]:
    """METHOD on MODEL for the pairs that cannot be combined, because the model has nothing to relax."""
    pairs = itertools.product(_models(grid), grid.methods)
    return [f"{method} on {model}" for model, method in pairs if not _fits(grid, model, method)]


def full_keys(config: RunConfig, key: str) -> list[str]:
    """The dotted names that `key` may mean: `key` itself, or else the settings of all sections that end with it."""
    names = setting_names(config)
    return [key] if key in names else [name for name in names if name.endswith(f".{key}")]


def setting_names(config: RunConfig) -> list[str]:
    """The dotted names of all settings of a run."""
    return [
        f"{section}.{inner}" if isinstance(value, dict) else section
        for section, value in config.to_dict().items()
        for inner in (value if isinstance(value, dict) else (section,))
    ]


def check_data(configs: Iterable[RunConfig], root: Path | None) -> None:
    """Load every data set that runs need, so that missing data is an error before any process starts.

    Args:
        configs: The settings of the runs.
        root: The data root; None takes the default.
    """
    seen = []
    for config in configs:
        files = (config.dataset, config.seed if config.dataset.seeded else None)
        if files not in seen:
            seen.append(files)
            task = build_task(config, root)
            for split in ("train", "val", "test"):
                task.load(split)


def _of_grid(study: Study, grid: Grid, out: Path) -> Iterator[Trial]:
    try:
        kinds = [
            kind
            for model in _models(grid)
            for method in grid.methods
            if _fits(grid, model, method)
            for kind in _kinds(grid, model, method)
        ]
        if not kinds:
            raise ConfigError(
                "none of its models has anything to relax: choose a method that needs no residuals."
            )
        rows = [(config.model, config.method) for _, config in kinds]
        check_variant(grid.benchmark, rows, grid.recipe, _trained_as(grid))
        _check_swept(grid, [config for _, config in kinds])
        for name, config in kinds:
            for seed in grid.seeds:
                folder = grid_folder(study, grid) / f"{name}-seed{seed}"
                yield Trial(str(folder), grid.name, name, config.updated({"seed": seed}), out / folder)
    except ConfigError as error:
        where = f"Grid '{grid.name}' of study '{study.name}': " if study.name else ""
        raise ConfigError(f"{where}{error}") from error


def _models(grid: Grid) -> Sequence[str]:
    """The models of a grid; all names in the grid are checked."""
    task = task_class(grid.benchmark)
    for method in grid.methods:
        choice(method)
    models = grid.models or (next(iter(task.models)),)
    for model in models:
        if model not in task.models:
            defaults(grid.benchmark, model, "strict")  # raises, with a suggestion
    for key, names in (("per_model", models), ("per_method", grid.methods)):
        for name in getattr(grid, key):
            if name not in names:
                raise ConfigError(
                    f"'{key}' has settings for '{name}', which is not run.{did_you_mean(str(name), list(names))}"
                )
    return models


def _trained_as(grid: Grid) -> str | None:
    """The method whose training settings all rows take; None lets every row take its own."""
    return None if grid.as_published else about(grid.methods, grid.about)


def _fits(grid: Grid, model: str, method: str) -> bool:
    """Whether `method` is run on `model`; among several models, those with nothing to relax are run without relaxation."""
    if len(_models(grid)) == 1 or not needs_residuals(method):
        return True
    return defaults(grid.benchmark, model, method).residual.placement != NO_PLACEMENT


def _kinds(grid: Grid, model: str, method: str) -> list[tuple[str, RunConfig]]:
    """(name, settings) for every combination of the swept values."""
    values: Mapping[str, Any] = grid.settings
    values = merged(values, grid.per_model.get(model, {}))
    values = merged(values, grid.per_method.get(method, {}))
    for key in NOT_SWEPT:
        if key in values:
            theirs = {"benchmark": "benchmark", "recipe": "recipe", "trained_as": "about"}.get(key, f"{key}s")
            raise ConfigError(f"'settings' holds '{key}': that is a key of the grid, '{theirs}'.")
    config = grid.begun.get((model, method))
    if config is None:
        recipe = matched(grid.benchmark, model, method, _trained_as(grid), grid.recipe)
        config = defaults(grid.benchmark, model, method, *recipe)
    first = f"{model}-{method}" if len(_models(grid)) > 1 else method
    try:
        config = config.updated(values)
    except ConfigError as error:
        raise ConfigError(f"{first}: {error}") from error
    axes = [axis for key, each in grid.sweep.items() if (axis := _axis(config, key, each))]
    found = []
    for point in itertools.product(*axes):
        changes: dict[str, Any] = {}
        for _, change in point:
            changes = merged(changes, change)
        found.append((first + "".join(name for name, _ in point), config.updated(changes)))
        check_optimizer(found[-1][1])
    return found


def _check_swept(grid: Grid, configs: Sequence[RunConfig]) -> None:
    """Raise `ConfigError`, with a suggestion, unless some run has the swept settings."""
    dotted = {name for config in configs for name in setting_names(config)}
    known = sorted({*dotted, *(name.rpartition(".")[2] for name in dotted)} - {*NOT_SWEPT})
    for text in grid.sweep:
        keys = [key.strip() for key in text.split("+")]
        for key in keys:
            if key not in known:
                raise ConfigError(
                    f"'sweep': no method here has the setting '{key}'.{did_you_mean(key, known)}"
                )
        if not any(all(full_keys(config, key) for key in keys) for config in configs):
            raise ConfigError(f"'sweep': no method here has all of the settings '{text}'.")


def _axis(config: RunConfig, text: str, values: Sequence[Any]) -> list[tuple[str, dict[str, Any]]]:
    """(part of the name, change of the settings) for every value; empty if the method lacks one of the settings."""
    keys = [key.strip() for key in text.split("+")]
    full = [full_keys(config, key) for key in keys]
    for key, found in zip(keys, full, strict=True):
        if len(found) > 1:
            raise ConfigError(f"'sweep': '{key}' may be {' or '.join(found)}; write one of them in full.")
    if not all(full):
        return []
    axis = []
    for value in values:
        each = value if isinstance(value, tuple) else (value,) * len(full)
        change: dict[str, Any] = {}
        for (name,), own in zip(full, each, strict=True):
            change = merged(change, nested(name, own))
        word = re.sub(r"[^\w.+-]", "_", str(each[0]))
        axis.append((f"-{keys[0].rpartition('.')[2]}{word}", change))
    return axis


@dataclass(frozen=True)
class Recorded:
    """A trial as recorded in its folder and the journal, without the file of its study.

    Attributes:
        label: Its folder relative to the study's.
        folder: The run's folder.
        config: Its settings; None if the run never began, or its file is damaged.
        status, attempts, reason, where: See `Trial`.
    """

    label: str
    folder: Path
    config: RunConfig | None
    status: Status
    attempts: int = 0
    reason: str = ""
    where: str = ""


def recorded(out: Path) -> list[Recorded]:
    """All trials in the folder of a study, a comparison or a search, including failed, pruned and waiting ones.

    Without a journal, every folder below `out` that contains a run's settings is a trial.

    Raises:
        ConfigError: The journal is damaged.
    """
    if (out / JOURNAL).exists():
        runs = read_journal(out)["runs"]
    else:
        folders = sorted(path.parent for path in out.rglob(CONFIG))
        runs = {
            str(folder.relative_to(out)): {"status": "finished" if (folder / RESULT).exists() else "waiting"}
            for folder in folders
        }
    return [
        Recorded(
            label,
            out / label,
            _config(out / label),
            run["status"],
            run.get("attempts", 0),
            run.get("reason", ""),
            run.get("where", ""),
        )
        for label, run in runs.items()
    ]


def _config(folder: Path) -> RunConfig | None:
    try:
        return config_from_dict(read_yaml(folder / CONFIG))
    except ConfigError:
        return None


def write_journal(out: Path, study: Study, found: Sequence[Trial]) -> None:
    """Write the state of all runs to study.json, whole or not at all."""
    runs = {
        t.label: {"status": t.status, "attempts": t.attempts, "reason": t.reason}
        | ({"where": t.where} if t.where else {})
        for t in found
    }
    content = {"name": study.name, "title": study.title, "small": study.small, "runs": runs}
    write_text(out / JOURNAL, json.dumps(content, indent=2) + "\n")


def read_journal(out: Path) -> dict[str, Any]:
    """The content of study.json: name, title, small, and runs (label -> status, attempts, reason and where).

    Raises:
        ConfigError: There is no journal in `out`, or it is damaged.
    """
    path = out / JOURNAL
    if not path.exists():
        raise ConfigError(f"{out} is not the folder of a study: there is no {JOURNAL} in it.")
    content = read_result(path)
    runs = content.get("runs") if isinstance(content, dict) else None
    keys = {"status", "attempts", "reason"}
    if not isinstance(runs, dict) or not all(isinstance(r, dict) and keys <= r.keys() for r in runs.values()):
        raise ConfigError(f"{path} was not written by a study. Remove it and run the study again.")
    return content
