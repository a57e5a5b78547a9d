"""Runs of one method with several settings are several rows: what tells them apart, and what each is compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from equirelax_lab.tasks.registry import config_from_dict

BASELINE = "strict"
SHARED = ("dataset", "network")
"""Sections of the settings that a run must share with the strict run that it is compared with."""

Result = Mapping[str, Any]


def labels(results: Sequence[Result]) -> list[str]:
    """A label for every run: its method, the model where there are several, and where runs of both differ in their
    settings, how.

    Settings that always change together are one: "scheduled lie_weight=norm_weight=0.01". Where a setting of the data or of
    the network takes others along, as a training-set size the epochs, it alone is named: "strict train=300".
    """
    several = len({result["model"] for result in results}) > 1
    found = []
    flat = [settings(result) for result in results]
    kinds = [(result["method"], result["model"]) for result in results]
    for result, own, kind in zip(results, flat, kinds, strict=True):
        mine = [other for other, its in zip(flat, kinds, strict=True) if its == kind]
        differing = [key for key in own if any(other.get(key) != own[key] for other in mine)]
        named = [result["method"], *([result["model"]] if several else [])]
        found.append(" ".join([*named, *_together(differing, own, mine)]))
    return found


def method_of(label: str) -> str:
    """The method of a label."""
    return label.split(" ", 1)[0]


def settings(result: Result) -> dict[str, Any]:
    """All settings of a run but its seed, by dotted key; those that its version did not have are as they were then. Which recipe
    they began with is none of them.
    """
    flat: dict[str, Any] = {}
    for key, value in config_from_dict(result["config"]).to_dict().items():
        if isinstance(value, Mapping):
            flat |= {f"{key}.{inner}": each for inner, each in value.items()}
        elif key not in ("seed", "recipe", "trained_as"):
            flat[key] = value
    return flat


def by_label(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Label -> its runs (seeds), in the order of `results`: the rows of a table."""
    rows: dict[str, list[Result]] = {}
    for label, result in zip(labels(results), results, strict=True):
        rows.setdefault(label, []).append(result)
    return rows


def labels_without(results: Sequence[Result], key: str) -> list[str]:
    """`labels` without what they say of the setting `key` and of those that change with it: the curves over `key`."""
    flat = [settings(result) for result in results]
    kinds = [(result["method"], result["model"]) for result in results]
    found = []
    for label, kind in zip(labels(results), kinds, strict=True):
        mine = [own for own, other in zip(flat, kinds, strict=True) if other == kind]
        differing = [each for each in mine[0] if any(own.get(each) != mine[0][each] for own in mine)]
        along = next((group for group in linked(differing, mine) if key in group), [])
        names = {each.rpartition(".")[2] for each in along}
        found.append(" ".join(word for word in label.split() if names.isdisjoint(word.split("=")[:-1])))
    return found


def strict_rows(run: Result, rows: Mapping[str, Sequence[Result]]) -> list[str]:
    """The rows of strict runs of the same model on the same data with the same network as `run`."""
    return [
        label
        for label, (other, *_) in rows.items()
        if (other["method"], other["model"]) == (BASELINE, run["model"])
        and all(other["config"].get(s) == run["config"].get(s) for s in SHARED)
    ]


def baseline_row(run: Result, rows: Mapping[str, Sequence[Result]]) -> str | None:
    """The row of strict runs that the row of `run` is compared with; None without any.

    One on the same data with the same network; where there are several, as in a sweep over the learning rate, that which
    shares the most settings; where there is none, that of the same model if it is the only one.
    """
    alike = strict_rows(run, rows)
    if not alike:
        model = [n for n, (r, *_) in rows.items() if (r["method"], r["model"]) == (BASELINE, run["model"])]
        return model[0] if len(model) == 1 else None
    own = settings(run)

    def agreement(label: str) -> int:
        return sum(own.get(key) == value for key, value in settings(rows[label][0]).items())

    return max(alike, key=agreement)


def linked(keys: Sequence[str], all_: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """`keys` in groups that change together: each value of one comes with one value of the other, and the other way round.
    Every group is as `leading_first` orders it.
    """
    groups: list[list[str]] = []
    for key in keys:
        for group in groups:
            if _one_to_one(key, group[0], all_):
                group.append(key)
                break
        else:
            groups.append([key])
    return [leading_first(group, all_) for group in groups]


def leading_first(keys: Sequence[str], all_: Sequence[Mapping[str, Any]]) -> list[str]:
    """`keys`, numbers of the data set and of the network before all others."""
    return sorted(keys, key=lambda key: not _leads(key, all_))


def _leads(key: str, all_: Sequence[Mapping[str, Any]]) -> bool:
    return key.partition(".")[0] in SHARED and all(is_number(own[key]) for own in all_ if key in own)


def is_number(value: Any) -> bool:
    """Whether a setting's value is one."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _one_to_one(one: str, other: str, all_: Sequence[Mapping[str, Any]]) -> bool:
    pairs = {(repr(own.get(one)), repr(own.get(other))) for own in all_}
    return len(pairs) == len({first for first, _ in pairs}) == len({second for _, second in pairs})


def _together(keys: Sequence[str], own: Mapping[str, Any], all_: Sequence[Mapping[str, Any]]) -> list[str]:
    """What to say of the settings in which a run differs from others of its kind, in the order of the settings."""
    words: list[str] = []
    for group in linked(keys, all_):
        several = len({repr(other.get(group[0])) for other in all_}) > 2  # two may differ in much by chance
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
