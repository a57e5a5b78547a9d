"""Which numbers a setting may be, declared where the setting is: `epochs: int = within(COUNT, 1000)`.

Every whole number and every float among the settings has a range; it is looked at wherever settings are put in, from
flags, from config.yaml, from study files and from recipes. No range holds NaN or infinity. Upper ends keep sizes that no computer
holds from being tried.
"""

from __future__ import annotations

import dataclasses
import math
import reprlib
from dataclasses import dataclass
from typing import Any

from equirelax.errors import ConfigError, EquirelaxError

_KEY = "range"


@dataclass(frozen=True)
class Range:
    """Finite numbers between two ends.

    Attributes:
        least, most: The ends; None: there is none.
        open_least, open_most: Whether the ends themselves are left out.
    """

    least: float | None = None
    most: float | None = None
    open_least: bool = False
    open_most: bool = False

    def __contains__(self, value: float) -> bool:
        if isinstance(value, float) and not math.isfinite(value):
            return False
        low = self.least is None or (value > self.least if self.open_least else value >= self.least)
        high = self.most is None or (value < self.most if self.open_most else value <= self.most)
        return low and high

    def __str__(self) -> str:
        parts = []
        if self.least is not None:
            parts.append(f"{'above' if self.open_least else 'at least'} {self.least:,}")
        if self.most is not None:
            parts.append(f"{'below' if self.open_most else 'at most'} {self.most:,}")
        return " and ".join(parts) or "a finite number"


FINITE = Range()
POSITIVE = Range(0, open_least=True)
NOT_NEGATIVE = Range(0)
SHARE = Range(0, 1, open_most=True)
"""Part of a whole that never is all of it."""
FACTOR = Range(0, 1, open_least=True)
"""What something is multiplied by again and again."""
COUNT = Range(1, 10**9)
"""Of epochs, steps, samples or rows."""
COUNT_OR_NONE = Range(0, 10**9)
"""A count that may be 0."""
WIDTH = Range(1, 16_384)
"""Channels or features of one layer."""
DEPTH = Range(1, 1_000)
"""Layers, one after the other."""
DEGREE = Range(0, 11)
"""Of irreps: e3nn has constants up to 11."""
SEED = Range(0, 2**32 - 1)
"""What NumPy, too, takes for a seed."""
SEEDS = Range(1, 10_000)
"""How many seeds."""
JOBS = Range(1, 4_096)
"""Processes, threads or devices."""


def within(wanted: Range, default: Any = dataclasses.MISSING) -> Any:
    """A dataclass field that may be the numbers of `wanted` (or None, where its type says so); `default` to begin with,
    without which the number has to be given. Of a list the range is that of every number in it.
    """
    if default is dataclasses.MISSING:
        return dataclasses.field(metadata={_KEY: wanted})
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata={_KEY: wanted})
    return dataclasses.field(default=default, metadata={_KEY: wanted})


def range_of(field: dataclasses.Field[Any]) -> Range | None:
    """The declared range of a field; None where it has none (text, true or false)."""
    found: Range | None = field.metadata.get(_KEY)
    return found


def check(value: Any, wanted: Range, name: str, error: type[EquirelaxError] = ConfigError) -> None:
    """Refuse a number outside of its range; None stands for "not given" and passes.

    Args:
        value: The number, or a list of them.
        wanted: Its range.
        name: How the user calls it, a key in quotes or a flag.
        error: What is raised where it is outside.
    """
    for number in value if isinstance(value, list) else ():
        check(number, wanted, name, error)
    if value is not None and not isinstance(value, list) and value not in wanted:
        raise error(f"{name} is {shown(value)}; expected {wanted}.")


def check_fields(section: Any, name: str, error: type[EquirelaxError] = ConfigError) -> None:
    """Look at all numbers of a settings dataclass.

    Args:
        section: The dataclass.
        name: How the user calls a field, with {} for its own name: "'dataset.{}'", or "--{}" of flags.
        error: What is raised where one is outside of its range.
    """
    for field in dataclasses.fields(section):
        if (wanted := range_of(field)) is not None:
            check(getattr(section, field.name), wanted, name.format(field.name), error)


def shown(value: object) -> str:
    """A user's value as a message shows it: in Python's notation, in 80 characters at most and one line."""
    brief = reprlib.Repr()
    brief.maxstring = brief.maxother = 60
    brief.maxlist = brief.maxtuple = 8
    if isinstance(value, int) and value.bit_length() > 10_000:  # Python writes no more than 4300 digits
        return f"a number of {int(value.bit_length() * 0.30103)} digits"
    text = brief.repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
