"""`project`: turn a relaxed model back into an exactly equivariant one, with the author's classes, keys and size."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Hashable, Mapping

import torch
from torch import Tensor, nn

from equirelax.errors import (
    EquirelaxError,
    EquirelaxWarning,
    NonFiniteError,
    PlacementError,
    RelaxationStateError,
    UnfoldableError,
)
from equirelax.files import did_you_mean
from equirelax.relaxation.entries import Entry, check_detachable, detach, own_modules
from equirelax.relaxation.layers import Fold, get_family
from equirelax.relaxation.projected import ProjectionReport, record, scaled
from equirelax.relaxation.relaxation import Relaxation
from equirelax.relaxation.residual import Residual, drivers_of

MODES = ("drop", "fold")


def project(model: nn.Module | Relaxation, mode: str = "drop", unfoldable: str = "raise") -> ProjectionReport:
    """Remove the relaxation from a model, in place.

    The model is equivariant again, and its classes, keys and size are those that the author gave it.

    Args:
        model: a relaxed model, or its handle.
        mode: "drop" removes the residuals, as CR and ACE do; `Relaxation.strict` shows the result beforehand.
            "fold" first adds to every layer's own weights the part of `gamma W` that the layer can express, by
            orthogonal projection.
        unfoldable: With "fold", whether a residual that cannot be folded makes the call "raise" an error, or is
            dropped ("drop").

    Returns:
        The strength, size and projection error of every residual.

    Raises:
        RelaxationStateError: the model is not relaxed.
        NonFiniteError: a residual, or a layer that it would be folded into, holds NaN or infinity.
        UnfoldableError: a residual cannot be folded and `unfoldable` is "raise". The model is then unchanged.
    """
    for name, value, known in (("mode", mode, MODES), ("unfoldable", unfoldable, ("raise", "drop"))):
        if value not in known:
            raise PlacementError(
                f"project: {name} is {value!r}; expected one of "
                f"{', '.join(known)}.{did_you_mean(value, known)}"
            )
    given = model.model if isinstance(model, Relaxation) else model
    if isinstance(model, Relaxation) and not any(isinstance(m, Residual) for m in given.modules()):
        raise RelaxationStateError(f"{type(given).__name__} is no longer relaxed: it was projected before")
    relaxation = Relaxation(given)  # parts may have been projected since a handle was made
    found = relaxation.entries()
    check_detachable(relaxation.model, found)
    _check_finite(relaxation)
    records, folds = [], []
    holders = {} if mode == "drop" else _holders(relaxation.model)
    for one in found:
        fold, note = (None, "") if mode == "drop" else _fold(one, holders, unfoldable)
        records.append(record(one.key, one.residual, fold, note))
        if fold is not None:
            folds.append(fold)
    for driver in drivers_of(relaxation.residuals.values()):
        if forgotten := driver.forgotten():
            warnings.warn(f"project: {forgotten}", EquirelaxWarning, stacklevel=2)
        driver.detach()
    for fold in folds:
        fold.commit()
    detach(relaxation.model, found)
    return ProjectionReport(mode, tuple(records))


def _check_finite(relaxation: Relaxation) -> None:
    for key, residual in relaxation:
        bad = [name for name, p in residual.state_dict().items() if not bool(torch.isfinite(p).all())]
        if bad:
            raise NonFiniteError(
                f"the residual of {key or 'the model'} "
                f"({type(relaxation.module(key)).__name__}) holds NaN or infinity "
                f"in {', '.join(bad)}: training diverged, and the layer's own weights may be damaged too. Go "
                f"back to an earlier checkpoint; to look at the strict part anyway, use "
                f"relaxation.strict_state_dict()"
            )


def _place(parameter: Tensor) -> Hashable:
    """A key that is equal for parameters that share memory."""
    return (parameter.data_ptr(), parameter.numel()) if parameter.data_ptr() else id(parameter)


def _holders(model: nn.Module) -> dict[Hashable, dict[nn.Module, str]]:
    """The modules that hold each parameter: place in memory -> module -> its path."""
    holders: dict[Hashable, dict[nn.Module, str]] = {}
    for path, module in own_modules(model):
        for parameter in module.parameters(recurse=False):
            holders.setdefault(_place(parameter), {})[module] = path
    return holders


def _check_untied(one: Entry, fold: Fold, holders: Mapping[Hashable, Mapping[nn.Module, str]]) -> None:
    """Check that no other layer shares the weights: a correction is for one place in the network."""
    inside = set(one.module.modules())
    for parameter, _ in fold.writes:
        others = [path for module, path in holders.get(_place(parameter), {}).items() if module not in inside]
        if others:
            raise UnfoldableError(
                f"{one.key} ({type(one.module).__name__}) shares its weight with {', '.join(others)} (tied parameters): "
                f"folding into one would change the other; untie them first (layer.weight = "
                f'nn.Parameter(layer.weight.clone())), or project with mode="drop" or unfoldable="drop"'
            )


def _fold(
    one: Entry, holders: Mapping[Hashable, Mapping[nn.Module, str]], unfoldable: str
) -> tuple[Fold | None, str]:
    # The family's messages name paths as seen from the model that is projected.
    key, module, residual = one.key, one.module, one.residual
    site = dataclasses.replace(residual.site, path=one.path)
    try:
        what = site.inexpressible
        if not what and not residual.is_linear:
            what = f"a residual that is not linear ({type(residual.map).__name__}),"
        if what:
            raise UnfoldableError(
                f"{key} ({type(module).__name__}) has {what} which no layer can express; "
                f'project with mode="drop" or unfoldable="drop"'
            )
        if wrong := residual.why_not_folded():
            raise UnfoldableError(
                f'{key} ({type(module).__name__}): {wrong}, or project with mode="drop" or unfoldable="drop"'
            )
        with torch.no_grad():
            fold = get_family(site.family, site.path).fold(module, site, *scaled(residual))
        _check_untied(one, fold, holders)
    except UnfoldableError as error:
        if unfoldable == "raise":
            if hint := residual.fold_hint():
                raise UnfoldableError(f"{error}. {hint}") from error
            raise
        return None, f"not folded: {error}"
    if not all(bool(torch.isfinite(parameter).all()) for parameter, _ in fold.writes):
        raise NonFiniteError(
            f"{key} ({type(module).__name__}): the layer's own weights hold NaN or infinity; go back to an "
            f"earlier checkpoint"
        )
    if not all(bool(torch.isfinite(amount.to(parameter)).all()) for parameter, amount in fold.writes):
        raise NonFiniteError(
            f"{key} ({type(module).__name__}): the part to fold is too large for the dtype of its weights; project with "
            f'mode="drop", or convert the model to float32 first'
        )
    return fold, residual.fold_note()


def cannot_fold(relaxation: Relaxation) -> dict[str, str]:
    """Find the residuals that `mode="fold"` would refuse, key -> reason, without changing the model."""
    refused = {}
    holders = _holders(relaxation.model)
    for one in relaxation.entries():
        try:
            _fold(one, holders, "raise")
        except EquirelaxError as error:
            refused[one.key] = str(error)
    return refused
