"""The registry of methods by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from equirelax.errors import MethodError
from equirelax.files import did_you_mean
from equirelax.methods.base import Method

_METHODS: dict[str, type[Method]] = {}
_M = TypeVar("_M", bound=type[Method])


def register(name: str, description: str) -> Callable[[_M], _M]:
    """Class decorator that registers a method under a name, with a description in one line.

    Raises:
        MethodError: Another class is registered under the name.
    """

    def add(cls: _M) -> _M:
        if name in _METHODS:
            raise MethodError(f"a method named {name!r} is registered already: {_METHODS[name].__qualname__}")
        cls.name, cls.description = name, description
        _METHODS[name] = cls
        return cls

    return add


def get(name: str) -> type[Method]:
    """The class registered under `name`.

    Raises:
        MethodError: There is no such method.
    """
    if name not in _METHODS:
        raise MethodError(
            f"no method {name!r}; there are {', '.join(_METHODS)}.{did_you_mean(name, names())}"
        )
    return _METHODS[name]


def names() -> list[str]:
    """The registered names, in order of registration."""
    return list(_METHODS)


def descriptions() -> dict[str, str]:
    """Name -> the method's description."""
    return {name: cls.description for name, cls in _METHODS.items()}
