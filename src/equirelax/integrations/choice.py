"""The choice of a method: by name and settings, as in configuration files, by class, or by a function that makes it."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from equirelax.errors import MethodError
from equirelax.files import did_you_mean
from equirelax.methods import Method, get
from equirelax.relaxation import Relaxation
from equirelax.settings import shown

LENGTHS = ("total_steps", "steps_per_epoch")
"""Settings that a method may take from the trainer."""
AUTO = "auto"
NOT_SETTINGS = ("relaxation", "settings", "regularizer", "generator", "shared")


class MethodChoice:
    """Makes a method once the network is relaxed.

    Args:
        method: The name of a method; a mapping with the name under "name" and its settings; a class; or a function of the
            relaxation, which may also take `total_steps` and `steps_per_epoch` by name.
        settings: Settings by name, for a method given by name or class. `total_steps` and `steps_per_epoch` may be "auto".

    Attributes:
        deploys_relaxed: Whether the method deploys the relaxed network; None if only the method itself can tell.

    Raises:
        MethodError: The method is unknown, or a setting is unknown, missing or out of range.
    """

    def __init__(
        self, method: str | Mapping[str, Any] | Callable[..., Method], settings: Mapping[str, Any]
    ) -> None:
        if isinstance(method, Mapping):
            method, settings = _from_mapping(method, settings)
        self._make = get(method) if isinstance(method, str) else method
        self._fields = dict(settings)
        self.deploys_relaxed: bool | None = None
        if isinstance(self._make, type) and issubclass(self._make, Method):
            self.deploys_relaxed = self._make.deploys_relaxed
            _check(self._make, self._fields)
        elif not callable(self._make):
            raise MethodError(
                f"method is {shown(method)}; expected the name of a method, a mapping such as "
                f"{{'name': 'ace', 'dual_lr': 1e-2}}, a class such as equirelax.ACE, or a function of the relaxation"
            )
        elif self._fields:
            raise MethodError(
                f"{', '.join(self._fields)} would have no effect, since method is a function, which sets them itself"
            )
        parameters = inspect.signature(self._make).parameters
        required = [
            n for n in LENGTHS if n in parameters and parameters[n].default is inspect.Parameter.empty
        ]
        self._wanted = [
            name
            for name in LENGTHS
            if self._fields.get(name) == AUTO or (name in required and name not in self._fields)
        ]

    def make(self, relaxation: Relaxation, lengths: Mapping[str, Callable[[], int]]) -> Method:
        """Make the method.

        Args:
            relaxation: The relaxed network.
            lengths: "total_steps" and "steps_per_epoch" -> a function that computes the value, called only if it is needed.

        Raises:
            MethodError: The method cannot be made, or the function returned something else.
        """
        made = self._make(relaxation, **{**self._fields, **{name: lengths[name]() for name in self._wanted}})
        if not isinstance(made, Method):
            raise MethodError(
                f"the function given as method returned {shown(made)}; expected a method, such as "
                f"equirelax.ACE(relaxation, dual_lr=1e-2)"
            )
        if type(made).objective is not Method.objective:
            raise MethodError(
                f"{type(made).__name__} weights the loss itself (`objective`), which takes more than an added penalty: "
                f"write its loop in your own training_step"
            )
        return made


def _from_mapping(method: Mapping[str, Any], settings: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    given = dict(method)
    name = given.pop("name", None)
    if not isinstance(name, str):
        raise MethodError(
            f"the method's mapping has {', '.join(map(str, method)) or 'nothing'}; expected its name under 'name', and its "
            f"settings: {{'name': 'ace', 'dual_lr': 1e-2}}"
        )
    if settings:
        raise MethodError(
            f"{', '.join(settings)} is given in addition to a mapping of settings: give all of them in the mapping"
        )
    return name, given


def _check(method: type[Method], given: Mapping[str, Any]) -> None:
    """Check names and values before a trainer has loaded anything."""
    known = [name for name in inspect.signature(method).parameters if name not in NOT_SETTINGS]
    for name in given:
        if name not in known:
            raise MethodError(
                f"{method.name} has no setting {name!r}.{did_you_mean(name, known)} It has {', '.join(known) or 'none'}"
            )
    fields = {field.name for field in dataclasses.fields(method.Settings)}
    method.Settings.of({name: value for name, value in given.items() if name in fields})
