"""The rows of a table: which runs share one, how rows differ, what each is compared with, and which settings differ."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from equirelax_lab.report.looks import place
from equirelax_lab.tasks.registry import config_from_dict
from equirelax_lab.tasks.settings import EARLIER

BASELINE = "strict"
SHARED = ("dataset", "network")
"""Sections of the settings that a run must share with the strict run that it is compared with."""

TITLE = "Settings that differ between rows"
OF_THE_METHOD = ("residual", "strength", "residual_rate", "projected_share")
"""Sections of the settings, and settings, that define the method: in strict training there is nothing for them to change."""
NOT_NAMED = ("benchmark", "model", "method", "checkpoint_every", "audit_every")
"""Settings that are in the rows' names, and settings that do not change a run's result."""
ONLY_WITH = {
    "muon_momentum": ("optimizer", ("muon",)),
    "muon_rms": ("optimizer", ("muon",)),
    "momentum": ("optimizer", ("sgd",)),
    "step_epochs": ("schedule", ("step",)),
    "step_factor": ("schedule", ("step", "milestones")),
    "milestones": ("schedule", ("milestones",)),
    "final_learning_rate": ("schedule", ("cosine",)),
    "hold": ("schedule", ("cosine",)),
    "restart_epochs": ("schedule", ("cosine",)),
}
"""Setting -> another setting and the values that this one must have for the first to have an effect."""
MANY = 8
"""If more rows than this share a value, the sentence calls them "all other rows"."""

Result = Mapping[str, Any]
Curves = dict[str, dict[float, list[float]]]
"""Row (without the words about the swept setting) -> value of the swept setting -> one number for every seed."""


def labels(results: Sequence[Result]) -> list[str]:
    """A label for every run: its method, its model if there are several, and the settings in which runs of both differ.

    Settings that always change together are named together: "scheduled lie_weight=norm_weight=0.01". If other settings change
    with a number of the data or of the network, as the epochs with the training-set size, only that number is named: "strict
    train=300".
    """
    several = len({result["model"] for result in results}) > 1
    found = []
    flat = [settings(result) for result in results]
    kinds = [(result["method"], result["model"]) for result in results]
    for result, own, kind in zip(results, flat, kinds, strict=True):
        mine = [other for other, its in zip(flat, kinds, strict=True) if its == kind]
        differing = [key for key in own if any(other.get(key, own[key]) != own[key] for other in mine)]
        named = [result["method"], *([result["model"]] if several else [])]
        found.append(" ".join([*named, *_together(differing, own, mine)]))
    return found


def by_label(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Label -> its runs (seeds), in the order of `results`: the rows of a table."""
    rows: dict[str, list[Result]] = {}
    for label, result in zip(labels(results), results, strict=True):
        rows.setdefault(label, []).append(result)
    return rows


def in_order(results: Sequence[Result]) -> list[int]:
    """The indices of `results` in the order in which tables and figures show them.

    Models are in the order of their first occurrence, the methods of each in the fixed order of all tables, and the rows of a
    method by the number that was swept, then by seed.
    """
    key = swept_setting(results)
    models = list(dict.fromkeys(result["model"] for result in results))

    def rank(index: int) -> tuple[Any, ...]:
        own = results[index]
        swept = settings(own).get(key, 0) if key else 0
        return models.index(own["model"]), place(own["method"]), swept, own["seed"]

    return sorted(range(len(results)), key=rank)


def settings(result: Result) -> dict[str, Any]:
    """All settings of a run by dotted key, except seed and recipe; settings that its version lacked have the values it used."""
    return dict(_flat(json.dumps(result["config"])))


@functools.lru_cache(maxsize=1024)
def _flat(config: str) -> dict[str, Any]:
    """Settings in the order in which the run wrote them, so that later versions word tables of older results the same way."""
    stored = json.loads(config)
    own = _by_dotted_key(config_from_dict(stored).to_dict())
    ordered = [key for key in _by_dotted_key(stored) if key in own]
    return {key: own[key] for key in [*ordered, *(key for key in own if key not in ordered)]}


def _by_dotted_key(config: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}.{inner}": each for inner, each in value.items()}
        elif key not in ("seed", "recipe", "trained_as"):
            flat[key] = value
    return flat


def strict_rows(run: Result, rows: Mapping[str, Sequence[Result]]) -> list[str]:
    """The rows of strict runs of the same model on the same data with the same network as `run`."""
    return [
        label
        for label, (other, *_) in rows.items()
        if (other["method"], other["model"]) == (BASELINE, run["model"])
        and all(_section(other, name) == _section(run, name) for name in SHARED)
    ]


def _section(result: Result, name: str) -> dict[str, Any]:
    """The settings of one section; settings that the run's version lacked have the values it used."""
    return {key: value for key, value in settings(result).items() if key.startswith(f"{name}.")}


def baseline_row(run: Result, rows: Mapping[str, Sequence[Result]]) -> str | None:
    """The row of strict runs that the row of `run` is compared with; None if there is none.

    It has the same data and network. Among several, as in a sweep over the learning rate, it is the one that shares the most
    settings. If there is none, it is the strict row of the same model on the same data, provided that there is only one.
    """
    alike = strict_rows(run, rows)
    if not alike:
        model = [
            label
            for label, (other, *_) in rows.items()
            if (other["method"], other["model"]) == (BASELINE, run["model"])
            and _section(other, "dataset") == _section(run, "dataset")
        ]
        return model[0] if len(model) == 1 else None
    own = settings(run)

    def agreement(label: str) -> int:
        return sum(own.get(key) == value for key, value in settings(rows[label][0]).items())

    return max(alike, key=agreement)


def _linked(keys: Sequence[str], all_: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Group `keys` that change together: each value of one occurs with one value of the other, and vice versa. Every group is
    ordered by `_leading_first`.
    """
    groups: list[list[str]] = []
    for key in keys:
        for group in groups:
            if _one_to_one(key, group[0], all_):
                group.append(key)
                break
        else:
            groups.append([key])
    return [_leading_first(group, all_) for group in groups]


def _leading_first(keys: Sequence[str], all_: Sequence[Mapping[str, Any]]) -> list[str]:
    """`keys`, with numbers of the data set and of the network before all others."""
    return sorted(keys, key=lambda key: not _leads(key, all_))


def _leads(key: str, all_: Sequence[Mapping[str, Any]]) -> bool:
    return key.partition(".")[0] in SHARED and all(_is_number(own[key]) for own in all_ if key in own)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _one_to_one(one: str, other: str, all_: Sequence[Mapping[str, Any]]) -> bool:
    pairs = {(repr(own.get(one)), repr(own.get(other))) for own in all_}
    return len(pairs) == len({first for first, _ in pairs}) == len({second for _, second in pairs})


def _together(keys: Sequence[str], own: Mapping[str, Any], all_: Sequence[Mapping[str, Any]]) -> list[str]:
    """Words for the settings in which a run differs from others of its kind, in the order of the settings."""
    words: list[str] = []
    for group in _linked(keys, all_):
        several = (
            len({repr(other.get(group[0])) for other in all_}) > 2
        )  # two runs may differ in many settings by chance
        if _leads(group[0], all_) and several:
            words.append(f"{group[0].rpartition('.')[2]}={own[group[0]]}")
            continue
        alike: dict[str, list[str]] = {}
        for key in sorted(group, key=keys.index):
            alike.setdefault(repr([other.get(key) for other in all_]), []).append(key)
        words += [
            f"{'='.join(key.rpartition('.')[2] for key in same)}={own[same[0]]}" for same in alike.values()
        ]
    return words


# A number that was swept.


def swept_setting(results: Sequence[Result]) -> str | None:
    """The dotted key of the one number that was swept; None unless there is exactly one.

    It differs between runs of one method and model and takes three values or more. Settings that change one to one count as one,
    under the name of a number of the data set or network if there is one among them. Other settings may take two values; each
    value then has its own curve.
    """
    kinds: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for result in results:
        kinds.setdefault((result["method"], result["model"]), []).append(settings(result))
    flat = [own for several in kinds.values() for own in several]
    differing = [
        key
        for key in dict.fromkeys(key for own in flat for key in own)
        if any(own.get(key) != several[0].get(key) for several in kinds.values() for own in several)
    ]
    values = {key: {repr(own[key]): own[key] for own in flat if key in own}.values() for key in differing}
    for several in kinds.values():
        if sum(any(len(values[key]) > 2 for key in group) for group in _linked(differing, several)) > 1:
            return None
    for key in _leading_first(differing, flat):
        if len(values[key]) > 2 and all(map(_is_number, values[key])):
            return key
    return None


def swept_curves(results: Sequence[Result], numbers: Sequence[float | None], key: str) -> Curves:
    """`numbers` (one for every result, or None) by row and by value of the setting `key`; methods without it are left out."""
    found: Curves = {}
    for label, result, number in zip(_labels_without(results, key), results, numbers, strict=True):
        own = settings(result)
        if number is not None and key in own:
            found.setdefault(label, {}).setdefault(own[key], []).append(number)
    return found


def _labels_without(results: Sequence[Result], key: str) -> list[str]:
    """`labels` without the words about the setting `key` and about those that change with it."""
    flat = [settings(result) for result in results]
    kinds = [(result["method"], result["model"]) for result in results]
    found = []
    for label, kind in zip(labels(results), kinds, strict=True):
        mine = [own for own, other in zip(flat, kinds, strict=True) if other == kind]
        differing = [
            each for each in mine[0] if any(own.get(each, mine[0][each]) != mine[0][each] for own in mine)
        ]
        along = next((group for group in _linked(differing, mine) if key in group), [])
        names = {each.rpartition(".")[2] for each in along}
        found.append(" ".join(word for word in label.split() if names.isdisjoint(word.split("=")[:-1])))
    return found


# The settings in which rows differ: a reader must know them to compare the rows.


def training_settings(result: Result) -> dict[str, Any]:
    """The settings that a run was trained with, by dotted key: optimiser, learning rate, steps, augmentation, data and network.

    The method's own settings, and those without effect in this run, are left out.
    """
    own = settings(result)
    return {
        key: value
        for key, value in own.items()
        if key not in NOT_NAMED
        and key.partition(".")[0] not in OF_THE_METHOD
        and (key not in ONLY_WITH or own[ONLY_WITH[key][0]] in ONLY_WITH[key][1])
    }


def settings_that_differ(results: Sequence[Result]) -> dict[str, dict[str, Any]]:
    """Setting -> row -> its value, for every setting (and "seeds") that two rows have and in which they differ.

    Networks are compared within one model, since those of different models always differ.
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
    """The line under a table of these results: "... learning rate 0.0005 (strict, scheduled), 0.0009 (ace)."

    For a setting that is in every row's name, only its name is written.
    """
    rows = list(by_label(results))
    parts = [_part(key, by_row, rows) for key, by_row in settings_that_differ(results).items()]
    return f"{TITLE}: {'; '.join(parts) or 'none'}."


def marked_line(results: Sequence[Result]) -> str:
    """`differing_line` as a paragraph of Markdown, its title in bold."""
    return differing_line(results).replace(TITLE, f"**{TITLE}**", 1)


def recipes_line(results: Sequence[Result]) -> str:
    """The recipes that the rows started from: "Recipes: fair, trained as ace (strict); published (ace)."

    Runs of version 0.1, which had no recipes, have "0.1 settings".
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
    """A setting's name in a sentence: "data train" for "dataset.train"."""
    section, _, name = key.rpartition(".")
    name = name.replace("_", " ")
    return f"data {name}" if section == "dataset" else name


def shown(value: Any) -> str:
    """A setting's value in a sentence."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.10g}"
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
    """The settings in a row's name: "train=300" of "strict train=300"; both of "lie_weight=norm_weight=0"."""
    found = []
    for word in _words(row):
        *names, value = word.split("=")
        found += [f"{name}={value}" for name in names]
    return found


def _words(row: str) -> list[str]:
    """The words in a row's name that are about settings."""
    return [word for word in row.split() if "=" in word]


def _kind(row: str) -> str:
    """A row's method and model."""
    return " ".join(word for word in row.split() if "=" not in word)


def _named(some: Sequence[str], rows: Sequence[str]) -> list[str]:
    """`some` of the `rows` in few words: a setting that only they share, or method by method."""
    several = len(set(map(_kind, some))) > 1 or len(set(map(_kind, rows))) == 1
    for word in dict.fromkeys(word for row in some for word in _words(row)):
        if several and set(some) == {row for row in rows if word in _words(row)}:
            return [word]
    names: list[str] = []
    for kind in dict.fromkeys(map(_kind, some)):
        those, its = ([row for row in given if _kind(row) == kind] for given in (some, rows))
        shared = [
            word for word in _words(those[0]) if set(those) == {row for row in its if word in _words(row)}
        ]
        names += [kind] if set(those) == set(its) else [f"{kind} {shared[0]}"] if shared else those
    return names
