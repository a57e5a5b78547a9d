"""`project`: back to the author's own classes, keys and size, exactly equivariant."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from equirelax.errors import (
    EquirelaxError,
    NonFiniteError,
    PlacementError,
    RelaxationStateError,
    UnfoldableError,
)
from equirelax.files import did_you_mean
from equirelax.relaxation.attach import detach_all
from equirelax.relaxation.layers import Fold, get_family
from equirelax.relaxation.relaxation import Relaxation
from equirelax.relaxation.residual import Residual

MODES = ("drop", "fold")


@dataclass(frozen=True)
class Projected:
    """What became of one residual.

    Args:
        key: of the residual.
        gamma: its strength before the projection.
        size: Frobenius norm of `gamma W` (nan for a residual that is not linear).
        folded: Frobenius norm of the part that went into the layer's own weights.
        error: projection error, the norm of what was lost over `size` (0 where nothing
            was there; nan if not linear).
        note: why it was not folded, if folding was asked for.
    """

    key: str
    gamma: float
    size: float
    folded: float
    error: float
    note: str = ""


@dataclass(frozen=True)
class ProjectionReport:
    """What `project` did, residual by residual; `str()` is a table."""

    mode: str
    residuals: tuple[Projected, ...]

    def __str__(self) -> str:
        width = max([len(r.key or "(model)") for r in self.residuals] + [6])
        lines = [f"{'module':{width}}  {'gamma':>10}  {'|gamma W|':>10}  {'folded':>10}  {'lost':>6}"]
        for r in self.residuals:
            size = "n/a" if math.isnan(r.size) else f"{r.size:.3g}"
            lost = "n/a" if math.isnan(r.error) else f"{100 * r.error:.0f} %"
            lines.append(
                f"{r.key or '(model)':{width}}  {r.gamma:10.3g}  {size:>10}  {r.folded:10.3g}  "
                f"{lost:>6}  {r.note}".rstrip()
            )
        return "\n".join(lines)


def project(model: nn.Module | Relaxation, mode: str = "drop", unfoldable: str = "raise") -> ProjectionReport:
    """Remove the relaxation from a model, in place:
    its classes, keys and size are the author's again, and it is equivariant.

    Args:
        model: a relaxed model, or its handle.
        mode: "drop" removes the residuals, which is what CR and ACE do, and what `Relaxation.strict`
            shows; "fold" first adds to every layer's own weights the part of `gamma W` that it can
            express, by orthogonal projection.
        unfoldable: with "fold", what to do with residuals that cannot be folded: "raise", or "drop" them.

    Returns:
        The strength, size and projection error of every residual.

    Raises:
        RelaxationStateError: the model is not relaxed.
        NonFiniteError: a residual, or a layer that it would be folded into, holds NaN or infinity.
        UnfoldableError: a residual cannot be folded and `unfoldable` is "raise".
            Nothing has been changed then.
    """
    for name, value, known in (("mode", mode, MODES), ("unfoldable", unfoldable, ("raise", "drop"))):
        if value not in known:
            raise PlacementError(
                f"project: {name} is {value!r}; expected one of "
                f"{', '.join(known)}.{did_you_mean(value, known)}"
            )
    relaxation = model if isinstance(model, Relaxation) else Relaxation(model)
    if not any(isinstance(m, Residual) for m in relaxation.model.modules()):
        raise RelaxationStateError(
            f"{type(relaxation.model).__name__} is not relaxed any more: it was projected before"
        )
    _check_finite(relaxation)
    records, folds = [], []
    for key, residual in relaxation:
        fold, note = (None, "") if mode == "drop" else _fold(relaxation, key, residual, unfoldable)
        records.append(_record(key, residual, fold, note))
        if fold is not None:
            folds.append(fold)
    for fold in folds:
        fold.commit()
    detach_all(relaxation)
    return ProjectionReport(mode, tuple(records))


def _check_finite(relaxation: Relaxation) -> None:
    for key, residual in relaxation:
        bad = [name for name, p in residual.state_dict().items() if not bool(torch.isfinite(p).all())]
        if bad:
            raise NonFiniteError(
                f"the residual of {key or 'the model'} "
                f"({type(relaxation.root.get_submodule(residual.site.path)).__name__}) holds NaN or infinity "
                f"in {', '.join(bad)}: training diverged, and the layer's own weights may be damaged too. Go "
                f"back to an earlier checkpoint; to look at the strict part all the same, use "
                f"relaxation.strict_state_dict()"
            )


def _scaled(residual: Residual) -> tuple[Tensor, Tensor | None]:
    """gamma W and gamma b, detached."""
    with torch.no_grad():
        map_ = residual.linear_map
        weight, bias = map_.effective_weight(), map_.effective_bias()
        return residual.gamma * weight, None if bias is None else residual.gamma * bias


def _fold(relaxation: Relaxation, key: str, residual: Residual, unfoldable: str) -> tuple[Fold | None, str]:
    site = residual.site
    module = relaxation.root.get_submodule(site.path)
    try:
        if site.family is None or not residual.is_linear:
            what = (
                f"a step of the residual stream {site.stream!r}, which starts from the model's inputs and"
                if site.stream
                else "a block-level residual,"
                if site.family is None
                else f"a residual that is not linear ({type(residual.map).__name__}),"
            )
            raise UnfoldableError(
                f"{key} ({type(module).__name__}) has {what} which no layer can express; "
                f'project with mode="drop" or unfoldable="drop"'
            )
        with torch.no_grad():
            fold = get_family(site.family, site.path).fold(module, site, *_scaled(residual))
    except UnfoldableError as error:
        if unfoldable == "raise":
            raise
        return None, f"not folded: {error}"
    if not all(bool(torch.isfinite(parameter).all()) for parameter, _ in fold.writes):
        raise NonFiniteError(
            f"{key} ({type(module).__name__}): the layer's own weights hold NaN or infinity; go back to an "
            f"earlier checkpoint"
        )
    return fold, ""


def _record(key: str, residual: Residual, fold: Fold | None, note: str) -> Projected:
    gamma = float(residual.gamma.detach())
    if not residual.is_linear:
        return Projected(key, gamma, float("nan"), 0.0, float("nan") if gamma else 0.0, note)
    weight, bias = _scaled(residual)
    rest = weight if fold is None else weight - fold.weight
    size, lost = weight.square().sum(), rest.square().sum()
    if bias is not None:
        kept = torch.zeros_like(bias) if fold is None or fold.bias is None else fold.bias
        size, lost = size + bias.square().sum(), lost + (bias - kept).square().sum()
    folded = 0.0 if fold is None else float((size - lost).clamp(min=0).sqrt())
    return Projected(
        key, gamma, float(size.sqrt()), folded, float((lost / size).sqrt()) if size > 0 else 0.0, note
    )


def cannot_fold(relaxation: Relaxation) -> dict[str, str]:
    """Residuals that `mode="fold"` would refuse: key -> reason. Changes nothing."""
    refused = {}
    for key, residual in relaxation:
        try:
            _fold(relaxation, key, residual, "raise")
        except EquirelaxError as error:
            refused[key] = str(error)
    return refused
