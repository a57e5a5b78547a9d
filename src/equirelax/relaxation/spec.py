"""Turn the small declarative objects of this package into plain data and back, so that checkpoints can hold them.

A class decorated with `@spec("name")` must be a dataclass whose fields are plain values,
representations (on axes or grids too), groups, other such objects, or tuples of these. `encode` gives nested dicts and lists of
plain Python; `decode` is its inverse. Code is never stored, so reading a checkpoint from an untrusted source runs no
code of theirs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

from equirelax.errors import CheckpointError, PlacementError
from equirelax.files import did_you_mean
from equirelax.symmetry import GridField, Group, On, Representation

_KINDS: dict[str, type] = {}
_T = TypeVar("_T")


def spec(name: str) -> Callable[[type[_T]], type[_T]]:
    """Register a dataclass under `name` for `encode` and `decode`."""

    def register(cls: type[_T]) -> type[_T]:
        known = _KINDS.get(name, cls)
        # a class that is defined again, as when a notebook cell runs twice, replaces the earlier one
        if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise PlacementError(f"two classes are registered as {name!r}: {known!r} and {cls!r}")
        _KINDS[name] = cls
        cls.spec_name = name  # type: ignore[attr-defined]
        return cls

    return register


def encode(value: Any) -> Any:
    """Turn `value` into plain data (dicts, lists, strings, numbers, None), which `decode` turns back.

    Raises:
        PlacementError: for an object of a class that is not registered with `@spec`.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (tuple, list)):
        return [encode(item) for item in value]
    if isinstance(value, Representation):
        return {"kind": "representation", "spec": value.spec()}
    if isinstance(value, Group):
        return {"kind": "group", "spec": value.spec()}
    if isinstance(value, GridField):
        return {"kind": "grid-field", "representation": encode(value.representation)}
    if isinstance(value, On):
        return {"kind": "on", "representation": encode(value.representation), "axis": encode(value.axis)}
    name = type(value).__dict__.get("spec_name")
    if name is None or not dataclasses.is_dataclass(value):
        raise PlacementError(
            f"a {type(value).__qualname__} cannot be stored in a checkpoint: register its dataclass with "
            f"@equirelax.relaxation.spec('a-name'), or pass the placement yourself when loading"
        )
    fields = {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
    return {"kind": name, **fields}


def decode(data: Any) -> Any:
    """Invert `encode`. Lists come back as tuples.

    Raises:
        CheckpointError: for a kind or a field that this version does not know.
    """
    if isinstance(data, list):
        return tuple(decode(item) for item in data)
    if not isinstance(data, dict):
        return data
    kind = data.get("kind")
    if kind == "representation":
        return Representation.from_spec(data["spec"])
    if kind == "group":
        return Group.from_spec(data["spec"])
    if kind == "grid-field":
        return GridField(decode(data["representation"]))
    if kind == "on":
        return On(decode(data["representation"]), decode(data["axis"]))
    cls = _KINDS.get(str(kind))
    if cls is None:
        raise CheckpointError(
            f"unknown kind {kind!r} in a stored placement.{did_you_mean(str(kind), sorted(_KINDS))} If it is "
            f"your own class, import the module that registers it with @spec before loading"
        )
    known = {f.name for f in dataclasses.fields(cls) if f.init}
    given = {key: decode(value) for key, value in data.items() if key != "kind"}
    for key in given:
        if key not in known:
            raise CheckpointError(
                f"unknown field {key!r} of {kind!r} in a stored placement; it has {sorted(known)}"
            )
    return cls(**given)
