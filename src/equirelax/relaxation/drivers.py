"""Who drives the strengths of a model: methods enrol here, so that `project` can ask them and let them go."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Protocol

from equirelax.relaxation.residual import Residual


class Driver(Protocol):
    """What `project` and `Relaxation.prune` need of a method."""

    def forgotten(self) -> str:
        """What was forgotten, in words: that the weights moved and the method never stepped; empty where nothing was."""

    def detach(self) -> None:
        """Let go of the optimizers: take the method's hooks off them."""


_DRIVERS: weakref.WeakKeyDictionary[Residual, weakref.ref[Driver]] = weakref.WeakKeyDictionary()


def enrol(driver: Driver, residuals: Iterable[Residual]) -> None:
    """Make `driver` the one that drives these residuals; it replaces an earlier one, and is not kept alive by this."""
    for residual in residuals:
        _DRIVERS[residual] = weakref.ref(driver)


def drivers_of(residuals: Iterable[Residual]) -> list[Driver]:
    """Those that drive any of the residuals, each once."""
    found: list[Driver] = []
    for residual in residuals:
        reference = _DRIVERS.get(residual)
        driver = None if reference is None else reference()
        if driver is not None and driver not in found:
            found.append(driver)
    return found
