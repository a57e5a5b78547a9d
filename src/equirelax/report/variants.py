"""Runs of one method with several settings are several rows: what tells them apart, and what each is compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from equirelax.benchmarks.registry import config_from_dict

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
    """All settings of a run but its seed, by dotted key; those that its version did not have are at their defaults."""
    flat: dict[str, Any] = {}
    for key, value in config_from_dict(result["config"]).to_dict().items():
        if isinstance(value, Mapping):
            flat |= {f"{key}.{inner}": each for inner, each in value.items()}
        elif key != "seed":
            flat[key] = value
    return flat


def baseline_of(runs: Sequence[Result], results: Sequence[Result]) -> dict[int, Result]:
    """Seed -> the strict run of the same model that the run of that seed in `runs` (of one label) is compared with.

    Those on the same data with the same network; where none is, all of them if they are of one kind.
    """
    strict = [r for r in results if (r["method"], r["model"]) == (BASELINE, runs[0]["model"])]
    alike = [r for r in strict if all(r["config"].get(s) == runs[0]["config"].get(s) for s in SHARED)]
    if not alike and len(set(labels(strict))) == 1:
        alike = strict
    if (
        len(set(labels(alike))) > 1
    ):  # several remain, as in a sweep over training: those with the same settings
        own = settings(runs[0])
        agreement = {label: 0 for label in labels(alike)}
        for label, r in zip(labels(alike), alike, strict=True):
            agreement[label] = sum(own.get(key) == value for key, value in settings(r).items())
        best = max(agreement, key=lambda label: agreement[label])
        alike = [r for label, r in zip(labels(alike), alike, strict=True) if label == best]
    return {r["seed"]: r for r in alike}


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
