"""Settings that check themselves: frozen dataclasses whose fields have types, choices and ranges.

Every method and every kind of residual has one such class, which its constructor, recipes and command lines share. A
field declares its range in its definition, `epochs: int = within(COUNT, 100)`, and its choices by its type,
`Literal["sum", "mean"]`. The section "Attributes:" of the class's docstring describes every field, and is the help text of the
command line.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import numbers
import re
import reprlib
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, TypeVar

from equirelax.errors import ConfigError, EquirelaxError
from equirelax.files import did_you_mean

T = TypeVar("T")
_KEY = "range"
_TYPES: dict[type, dict[str, Any]] = {}
IN_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "True or False",
    "str": "text",
    "NoneType": "null",
}
"""Names of types in messages."""


@dataclass(frozen=True)
class Range:
    """Finite numbers between two ends. NaN and infinity are in no range.

    Attributes:
        least, most: The ends; None: there is none. Upper ends reject sizes that no computer can hold.
        open_least, open_most: Whether the ends themselves are excluded.
        whole: Whether only integers are in it, as for counts; 8.0 is not one.
    """

    least: float | None = None
    most: float | None = None
    open_least: bool = False
    open_most: bool = False
    whole: bool = False

    def __contains__(self, value: Any) -> bool:
        if not isinstance(value, numbers.Integral) and (self.whole or not math.isfinite(value)):
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
        ends = " and ".join(parts)
        if self.whole:
            return f"a whole number, {ends}" if ends else "a whole number"
        return ends or "a finite number"


FINITE = Range()
POSITIVE = Range(0, open_least=True)
NOT_NEGATIVE = Range(0)
SHARE = Range(0, 1, open_most=True)
"""A fraction of a whole, below 1."""
FACTOR = Range(0, 1, open_least=True)
"""A factor that is applied repeatedly."""
COUNT = Range(1, 10**9, whole=True)
"""A number of epochs, steps, samples or rows."""
COUNT_OR_NONE = Range(0, 10**9, whole=True)
"""A count that may be 0."""
WIDTH = Range(1, 16_384, whole=True)
"""Channels or features of one layer."""
DEPTH = Range(1, 1_000, whole=True)
"""A number of consecutive layers."""
DEGREE = Range(0, 11, whole=True)
"""The degree of irreps: e3nn has constants up to 11."""
SEED = Range(0, 2**32 - 1, whole=True)
"""A seed that NumPy accepts as well."""
SEEDS = Range(1, 10_000, whole=True)
"""A number of seeds."""
JOBS = Range(1, 4_096, whole=True)
"""A number of processes, threads or devices."""


def within(wanted: Range, default: Any = dataclasses.MISSING) -> Any:
    """A dataclass field with a range.

    Args:
        wanted: The range, which also applies to every number in a list. None passes if the field's type allows it.
        default: The default value. Without it the number must be given.
    """
    if default is dataclasses.MISSING:
        return dataclasses.field(metadata={_KEY: wanted})
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata={_KEY: wanted})
    return dataclasses.field(default=default, metadata={_KEY: wanted})


def range_of(field: dataclasses.Field[Any]) -> Range | None:
    """The declared range of a field; None for text, flags and choices."""
    found: Range | None = field.metadata.get(_KEY)
    return found


def check(value: Any, wanted: Range, name: str, error: type[EquirelaxError] = ConfigError) -> None:
    """Reject a number outside its range, or a value that is not a number.

    Args:
        value: A number of Python or NumPy, a list or tuple of them, or None ("not given"), which passes.
        wanted: The range.
        name: The name in the message, such as a key in quotes or a flag.
        error: The class to raise.

    Raises:
        EquirelaxError: A number is outside the range, or a value is not a real number.
    """
    if isinstance(value, list | tuple):
        for number in value:
            check(number, wanted, name, error)
    elif value is not None and (
        isinstance(value, bool) or not isinstance(value, numbers.Real) or value not in wanted
    ):
        raise error(f"{name} is {shown(value)}; expected {wanted}.")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Base class of settings: a frozen dataclass that checks its fields when it is made.

    Integers are accepted for floats, and NumPy's numbers for Python's. All are converted to Python's types, which files can
    hold. A subclass adds fields. It checks conditions on several fields in its own `__post_init__`, after calling this
    class's.

    Raises:
        EquirelaxError: A value has the wrong type, a choice is unknown, or a number is outside its range. The attribute
            `error` sets the class of the error.
    """

    error: ClassVar[type[EquirelaxError]] = ConfigError

    def __post_init__(self) -> None:
        for name, value in checked(type(self), vars(self), "{}", self.error).items():
            object.__setattr__(self, name, value)

    @classmethod
    def of(
        cls, values: Mapping[str, Any], key: str = "{}", error: type[EquirelaxError] | None = None
    ) -> Self:
        """Make settings from values by name, with messages in the names that the user knows.

        Args:
            values: Values by field.
            key: The name of a field in messages, with {} for the field: "'strength.{}'".
            error: The class of errors; by default that of the settings.

        Raises:
            EquirelaxError: A field is unknown or missing, or a value does not fit.
        """
        error = error or cls.error
        given = checked(cls, values, key, error)
        missing = [
            f.name
            for f in dataclasses.fields(cls)
            if f.name not in given and f.default is f.default_factory is dataclasses.MISSING
        ]
        if missing:
            names = ", ".join(key.format(name) for name in missing)
            raise error(f"{names} must be given: there is no default.")
        return _made(lambda: cls(**given), key, error)

    @classmethod
    def given(cls, settings: Self | None, fields: Mapping[str, Any]) -> Self:
        """Make the settings of a constructor that takes an object of this class or its fields by name.

        Args:
            settings: The object. None makes one from `fields`.
            fields: Values by field, which replace those of `settings`.

        Raises:
            EquirelaxError: `settings` is something else, or a field is unknown, missing, or does not fit.
        """
        if settings is None:
            return cls.of(fields)
        if not isinstance(settings, cls):
            raise cls.error(
                f"expected {cls.__qualname__}, or settings by name "
                f"({', '.join(f.name for f in dataclasses.fields(cls))}); not {shown(settings)}"
            )
        return settings.changed(fields) if fields else settings

    def changed(
        self, values: Mapping[str, Any], key: str = "{}", error: type[EquirelaxError] | None = None
    ) -> Self:
        """Return a copy with some values replaced. Arguments and errors are those of `of`."""
        error = error or self.error
        given = checked(type(self), values, key, error)
        return _made(lambda: dataclasses.replace(self, **given), key, error)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain Python, for files; tuples become lists."""
        return {f.name: _listed(getattr(self, f.name)) for f in dataclasses.fields(self)}


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _made(make: Callable[[], T], key: str, error: type[EquirelaxError]) -> T:
    """Call `make`, and name the section in an error that concerns several fields."""
    try:
        return make()
    except EquirelaxError as found:
        section = key.partition(".{}")[0].strip("'") if ".{}" in key else ""
        raise error(f"'{section}': {found}" if section else str(found)) from found


def checked(
    kind: type[Settings], values: Mapping[str, Any], key: str, error: type[EquirelaxError]
) -> dict[str, Any]:
    """Check values by field and convert them to the fields' types. Arguments and errors are those of `Settings.of`."""
    fields = {field.name: field for field in dataclasses.fields(kind)}
    found = {}
    for name, value in values.items():
        label = key.format(name)
        if name not in fields:
            raise error(f"Unknown key {_quoted(label)}.{did_you_mean(str(name), list(fields))}")
        found[name] = _fitting(value, types_of(kind)[name], label, error)
        if (wanted := range_of(fields[name])) is not None:
            check(found[name], wanted, label, error)
    return found


def types_of(kind: type[Settings]) -> dict[str, Any]:
    """Field -> its type."""
    if kind not in _TYPES:
        _TYPES[kind] = typing.get_type_hints(kind)
    return _TYPES[kind]


def signature_of(init: Callable[..., Any], kind: type[Settings]) -> inspect.Signature:
    """The signature of a constructor `init(self, ..., **fields)`, with the fields of `kind` in place of `**fields`."""
    own = list(inspect.signature(init).parameters.values())[1:]
    if not own or own[-1].kind is not inspect.Parameter.VAR_KEYWORD:
        return inspect.Signature(own)
    taken = {parameter.name for parameter in own}
    fields = [f for f in inspect.signature(kind).parameters.values() if f.name not in taken]
    return inspect.Signature([*own[:-1], *(f.replace(kind=inspect.Parameter.KEYWORD_ONLY) for f in fields)])


def documentation(kind: type[Settings]) -> dict[str, str]:
    """Field -> its description under "Attributes:" in the docstrings of the class and its bases."""
    found: dict[str, str] = {}
    for cls in reversed(kind.__mro__):
        text = inspect.cleandoc(cls.__dict__.get("__doc__") or "").partition("Attributes:\n")[2]
        section = re.split(r"\n(?=\S)", text)[0]
        for entry in re.split(r"\n(?= {4}\w)", f"\n{section}")[1:]:
            names, _, what = entry.partition(":")
            found.update({name.strip(): " ".join(what.split()) for name in names.split(",")})
    return found


def _fitting(value: Any, hint: Any, label: str, error: type[EquirelaxError]) -> Any:
    """Return `value` if it has the type `hint`, with a number converted to `float` or `int` as the hint requires."""
    options = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
    choices = [str(word) for o in options if typing.get_origin(o) is Literal for word in typing.get_args(o)]
    for option in options:
        origin = typing.get_origin(option)
        if origin is Literal:
            for word in typing.get_args(option):
                if isinstance(value, type(word)) and value == word:
                    return word
        elif origin is not None and issubclass(origin, Callable):  # type: ignore[arg-type]
            if callable(value):
                return value
        elif origin in (list, tuple) and isinstance(value, list | tuple):
            inner = typing.get_args(option)[0]
            entries = (_fitting(each, inner, f"{label}[{i}]", error) for i, each in enumerate(value))
            return tuple(entries) if origin is tuple else list(entries)
        elif option in (float, int):
            number: bool = isinstance(value, numbers.Real if option is float else numbers.Integral)
            if number and not isinstance(value, bool):
                return _as_float(value) if option is float else int(value)
        elif isinstance(option, type) and isinstance(value, option):
            return value
    if choices:
        raise error(
            f"{label} is {shown(value)}; choose one of {', '.join(choices)}.{did_you_mean(str(value), choices)}"
        )
    names = [getattr(option, "__name__", str(option)) for option in options]
    raise error(
        f"{label} is {shown(value)}; expected {' or '.join(IN_WORDS.get(name, name) for name in names)}."
    )


def _as_float(value: Any) -> float:
    """A number as a float; infinity, which is in no range, for an integer too large for one."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _quoted(label: str) -> str:
    return label if label.startswith("'") else repr(label)


def shown(value: object) -> str:
    """A user's value for a message, in Python's notation and in one line of at most 80 characters."""
    brief = reprlib.Repr()
    brief.maxstring = brief.maxother = 60
    brief.maxlist = brief.maxtuple = 8
    if isinstance(value, int) and value.bit_length() > 10_000:  # Python writes no more than 4300 digits
        return f"a number of {int(value.bit_length() * 0.30103)} digits"
    text = brief.repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
