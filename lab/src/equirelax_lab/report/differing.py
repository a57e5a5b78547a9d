"""Settings that differ between the rows of a table, besides the methods' own: a reader must know them to compare the rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from equirelax_lab.report.variants import by_label, settings
from equirelax_lab.tasks.registry import config_from_dict
from equirelax_lab.tasks.settings import EARLIER

TITLE = "Settings that differ between rows"
OF_THE_METHOD = ("residual", "strength")
"""Sections of the settings that are the method itself."""
UNTOLD = ("benchmark", "model", "method", "checkpoint_every", "audit_every")
"""What the rows' names say, and what changes nothing in a run's result."""
ONLY_WITH = {
    "muon_momentum": ("optimizer", ("muon",)),
    "muon_rms": ("optimizer", ("muon",)),
    "momentum": ("optimizer", ("sgd",)),
    "step_epochs": ("schedule", ("step",)),
    "step_factor": ("schedule", ("step", "milestones")),
    "milestones": ("schedule", ("milestones",)),
    "final_learning_rate": ("schedule", ("cosine",)),
}
"""Setting -> the setting and its values without which it does nothing."""

MANY = 8
"""Names of rows beyond which the largest group is that of all others."""

Result = Mapping[str, Any]


def training_settings(result: Result) -> dict[str, Any]:
    """What a run was trained with, by dotted key: optimiser, learning rate, steps, augmentation, data and network.

    The method's own settings and those that do nothing in this run are left out.
    """
    own = settings(result)
    return {
        key: value
        for key, value in own.items()
        if key not in UNTOLD
        and key.partition(".")[0] not in OF_THE_METHOD
        and (key not in ONLY_WITH or own[ONLY_WITH[key][0]] in ONLY_WITH[key][1])
    }


def settings_that_differ(results: Sequence[Result]) -> dict[str, dict[str, Any]]:
    """Setting -> row (label) -> its value, for every setting in which two rows differ that both have it; so for "seeds".

    Networks are compared within one model: those of several differ by nature.
    """
    rows = {
        label: (
            runs[0]["model"],
            {**training_settings(runs[0]), "seeds": _seeds(run["seed"] for run in runs)},
        )
        for label, runs in by_label(results).items()
    }
    found: dict[str, dict[str, Any]] = {}
    for key in dict.fromkeys(key for _, own in rows.values() for key in own):
        having = {label: (model, own[key]) for label, (model, own) in rows.items() if key in own}
        groups: dict[str, set[str]] = {}
        for model, value in having.values():
            groups.setdefault(model if key.startswith("network.") else "", set()).add(repr(value))
        if any(len(values) > 1 for values in groups.values()):
            found[key] = {label: value for label, (_, value) in having.items()}
    return found


def differing_line(results: Sequence[Result]) -> str:
    """The line that stands under a table of these results.

    "learning rate 0.0005 (strict, scheduled), 0.0009 (ace)"; a setting that every row's name gives is named alone.
    """
    rows = list(by_label(results))
    parts = [_part(key, by_row, rows) for key, by_row in settings_that_differ(results).items()]
    return f"{TITLE}: {'; '.join(parts) or 'none'}."


def marked_line(results: Sequence[Result]) -> str:
    """`differing_line` as a paragraph of Markdown, its title in bold."""
    return differing_line(results).replace(TITLE, f"**{TITLE}**", 1)


def recipes_line(results: Sequence[Result]) -> str:
    """Which recipes the rows began with: "Recipes: fair, trained as ace (strict); published (ace)."; runs of version 0.1, which
    had none, have "0.1 settings".
    """
    by_recipe: dict[str, list[str]] = {}
    for label, (run, *_) in by_label(results).items():
        config = config_from_dict(run["config"])
        name = "0.1 settings" if config.recipe == EARLIER else config.recipe
        trained_as = f", trained as {config.trained_as}" if config.trained_as else ""
        by_recipe.setdefault(f"{name}{trained_as}", []).append(label)
    if len(by_recipe) == 1:
        return f"Recipe: {next(iter(by_recipe))}."
    rows = list(by_label(results))
    named = (f"{recipe} ({', '.join(_named(those, rows))})" for recipe, those in by_recipe.items())
    return f"Recipes: {'; '.join(named)}."


def in_words(key: str) -> str:
    """A setting's name in a sentence: "dataset.train" is the "train" of the data."""
    section, _, name = key.rpartition(".")
    name = name.replace("_", " ")
    return f"data {name}" if section == "dataset" else name


def shown(value: Any) -> str:
    """A setting's value in a sentence."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)


def _seeds(seeds: Iterable[int]) -> str:
    """ "0 to 5", or "0, 2 and 5"."""
    some = sorted(set(seeds))
    if len(some) > 2 and some == list(range(some[0], some[-1] + 1)):
        return f"{some[0]} to {some[-1]}"
    return " and ".join(filter(None, (", ".join(map(str, some[:-1])), str(some[-1]))))


def _part(key: str, by_row: Mapping[str, Any], rows: Sequence[str]) -> str:
    short = key.rpartition(".")[2]
    if all(f"{short}={value}" in _tags(row) for row, value in by_row.items()):
        return f"{in_words(key)} as the rows' names say"
    by_value: dict[str, list[str]] = {}
    for row, value in by_row.items():
        by_value.setdefault(shown(value), []).append(row)
    named = {value: _named(those, rows) for value, those in by_value.items()}
    longest = max(named, key=lambda value: len(named[value]))
    if len(named[longest]) > MANY:
        named[longest] = ["all other rows"]
    return f"{in_words(key)} " + ", ".join(f"{value} ({', '.join(names)})" for value, names in named.items())


def _tags(row: str) -> list[str]:
    """ "strict train=300" -> "train=300", and of "lie_weight=norm_weight=0" both settings."""
    found = []
    for word in _words(row):
        *names, value = word.split("=")
        found += [f"{name}={value}" for name in names]
    return found


def _words(row: str) -> list[str]:
    """What a row's name says of its settings."""
    return [word for word in row.split() if "=" in word]


def _kind(row: str) -> str:
    """A row's method and model."""
    return " ".join(word for word in row.split() if "=" not in word)


def _named(some: Sequence[str], rows: Sequence[str]) -> list[str]:
    """`some` of the `rows` in few words: what they alone share, or method by method."""
    several = len(set(map(_kind, some))) > 1 or len(set(map(_kind, rows))) == 1
    for word in dict.fromkeys(word for row in some for word in _words(row)):
        if several and _are(some, (row for row in rows if word in _words(row))):
            return [word]
    names: list[str] = []
    for kind in dict.fromkeys(map(_kind, some)):
        those, its = ([row for row in given if _kind(row) == kind] for given in (some, rows))
        shared = [
            word for word in _words(those[0]) if _are(those, (row for row in its if word in _words(row)))
        ]
        names += [kind] if _are(those, its) else [f"{kind} {shared[0]}"] if shared else those
    return names


def _are(some: Iterable[str], others: Iterable[str]) -> bool:
    return set(some) == set(others)
