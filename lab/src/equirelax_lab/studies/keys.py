"""Read the YAML files of studies and searches: every key must be known, and every value must be of the type of its key."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from equirelax.errors import ConfigError
from equirelax.files import did_you_mean
from equirelax.settings import JOBS, SEED, SEEDS, Range, shown
from equirelax_lab.tasks.settings import read_yaml

T = TypeVar("T")
UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_TIME = re.compile(r"(\d+(?:\.\d*)?)\s*(s|min|h|d)\b\s*")
_EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")


def read_file(path: Path, small: bool, build: Callable[[Mapping[str, Any], bool, tuple[str, ...]], T]) -> T:
    """Read what the YAML file at `path` describes.

    Args:
        path: The file.
        small: Whether to read its small variant: the file's keys, updated with those under `small`.
        build: Makes the description from the keys. Its other arguments are whether these are the keys of the small variant, and
            a description of what that variant changes.

    Raises:
        ConfigError: The file cannot be read, `build` refuses the keys of either variant, or there is no small variant.
    """
    try:
        values = _numbers(read_yaml(path))
        variant = values.pop("small", None)
        if variant is not None and not isinstance(variant, Mapping):
            raise ConfigError(f"'small' should be a mapping of keys to values, not {shown(variant)}.")
        full = build(values, False, ())
        quick = build(merged(values, variant), True, _changes(values, variant)) if variant else None
        if small and quick is None:
            raise ConfigError("there is no small variant: the file has no key 'small'.")
    except ConfigError as error:
        text = str(error)
        raise ConfigError(text if str(path) in text else f"{path}: {text}") from error
    return quick if small and quick is not None else full


class Keys:
    """One mapping of a file, whose values are checked as they are taken.

    Args:
        values: The mapping.
        known: The keys that it may have.
        where: The keys that lead to it, as a prefix for messages ("grids.one.").

    Raises:
        ConfigError: A key is unknown; the message suggests a known one.
    """

    def __init__(self, values: Mapping[str, Any], known: tuple[str, ...], where: str = "") -> None:
        self.values, self.where = values, where
        for key in values:
            if key not in known:
                raise ConfigError(f"Unknown key '{where}{key}'.{did_you_mean(str(key), known)}")

    def need(self, *keys: str) -> None:
        """Raise `ConfigError` if one of `keys` is missing."""
        for key in keys:
            if key not in self.values:
                raise ConfigError(f"'{self.where}{key}' is missing.")

    def text(self, key: str, default: str = "") -> str:
        """Text, without surrounding blanks."""
        found = self.values.get(key, default)
        return found.strip() if isinstance(found, str) else self._refuse(key, "text")

    def name(self, key: str) -> str | None:
        """A name; None if the key is missing."""
        found = self.values.get(key)
        return found if found is None or isinstance(found, str) else self._refuse(key, "a name")

    def names(self, key: str) -> tuple[str, ...]:
        """A list of different names, or a single one; none if the key is missing."""
        found = self.values.get(key, [])
        names = [found] if isinstance(found, str) else found
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            self._refuse(key, "a list of names")
        if len(set(names)) < len(names):
            raise ConfigError(f"'{self.where}{key}' names one twice: {', '.join(names)}.")
        return tuple(names)

    def flag(self, key: str) -> bool:
        """True or false; false if the key is missing."""
        found = self.values.get(key, False)
        return found if isinstance(found, bool) else self._refuse(key, "true or false")

    def count(self, key: str, default: int, wanted: Range = JOBS) -> int:
        """A whole number in the range `wanted`."""
        found = self.values.get(key, default)
        if isinstance(found, bool) or not isinstance(found, int) or found not in wanted:
            self._refuse(key, str(wanted))
        return int(found)

    def count_or_none(self, key: str) -> int | None:
        """A whole number of processes; None if the key is missing or null."""
        return None if self.values.get(key) is None else self.count(key, 1)

    def one_of(self, key: str, known: tuple[str, ...], default: str) -> str:
        """One of the words in `known`."""
        found = self.values.get(key, default)
        if found not in known:
            raise ConfigError(
                f"'{self.where}{key}' is {shown(found)}; choose one of {', '.join(known)}.{did_you_mean(str(found), known)}"
            )
        return str(found)

    def seeds(self, key: str) -> tuple[int, ...]:
        """How many seeds, counted from 0, or a list of seeds."""
        found = self.values.get(key, 1)
        if not isinstance(found, list):
            return tuple(range(self.count(key, 1, SEEDS)))
        if not found or any(isinstance(s, bool) or not isinstance(s, int) or s not in SEED for s in found):
            self._refuse(key, "how many seeds, or a list of seeds, 0 or more and below 2^32 each")
        return tuple(dict.fromkeys(found))

    def seconds(self, key: str) -> float | None:
        """A time with its unit, or several times in a row, in seconds; None if the key is missing."""
        found = self.values.get(key)
        if found is None:
            return None
        parts = _TIME.findall(found) if isinstance(found, str) else []
        total = sum(float(number) * UNITS[unit] for number, unit in parts)
        if not 0 < total < math.inf or _TIME.sub("", found).strip():
            self._refuse(key, "a time with its unit: 90 s, 30 min, 2 h, 1 d 12 h")
        return total

    def mapping(self, key: str) -> Mapping[str, Any]:
        """A mapping; empty if the key is missing or null."""
        found = self.values.get(key)
        if found is None:
            return {}
        return found if isinstance(found, Mapping) else self._refuse(key, "a mapping of keys to values")

    def mappings(self, key: str) -> dict[str, Mapping[str, Any]]:
        """A mapping of names to mappings."""
        inner = Keys(self.mapping(key), tuple(self.mapping(key)), f"{self.where}{key}.")
        return {name: inner.mapping(name) for name in inner.values}

    def _refuse(self, key: str, expected: str) -> Any:
        raise ConfigError(f"'{self.where}{key}' is {shown(self.values[key])}; expected {expected}.")


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`values` updated with `changes`; mappings are merged key by key."""
    result = dict(values)
    for key, value in changes.items():
        before = result.get(key)
        both = isinstance(before, Mapping) and isinstance(value, Mapping)
        result[key] = merged(before, value) if both else value  # type: ignore[arg-type]
    return result


def nested(name: str, value: Any) -> dict[str, Any]:
    """One setting, given by its dotted name, in the layout of config.yaml."""
    section, dot, inner = name.partition(".")
    return {section: {inner: value}} if dot else {section: value}


def read_value(text: str) -> Any:
    """The value of `text` as if read from a file. Raises `ConfigError` if it is not YAML."""
    try:
        return _numbers(yaml.safe_load(text))
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"'{text}' is not a value: {' '.join(str(error).split())}.") from error


def _numbers(value: Any) -> Any:
    """`value` with text such as 1e-3, which YAML 1.1 does not read as a number, converted to one."""
    if isinstance(value, Mapping):
        return {key: _numbers(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_numbers(inner) for inner in value]
    return float(value) if isinstance(value, str) and _EXPONENT.fullmatch(value) else value


def _changes(values: Mapping[str, Any], changes: Mapping[str, Any], where: str = "") -> tuple[str, ...]:
    """Phrases that say what `changes` change in `values`."""
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
            instead = "" if before is None else f" instead of {_in_words(before)}"
            found.append(f"{name} {_in_words(value)}{instead}")
    return tuple(found)


def _in_words(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join("/".join(map(str, v)) if isinstance(v, list) else str(v) for v in value)
    return str(value)
