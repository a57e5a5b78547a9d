"""Who is to blame in a relaxed model: first the layers whose residuals break the symmetry, which are known; then what
breaks the strict network too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

from equirelax.auditing.known import Known
from equirelax.auditing.layers import BREAKS, INSIDE, PASSES, Break, LayerRow


def breaking_residual(
    known: Known, order: Iterable[str], error: Callable[[], float], tolerance: float
) -> str | None:
    """Path of the first relaxed layer, in the order of execution, whose residuals alone make the model's error larger
    than the tolerance and than twice the error without any; ``None`` if none does.

    Args:
        order: paths of modules in the order in which they are left.
        error: measures the model's relative error.
    """
    every = [residual for several in known.relaxed_at.values() for residual in several]
    on = {
        residual: residual.enabled for residual in every
    }  # one that is suspended stays off whatever this says
    try:
        for residual in every:
            residual.enabled = False
        limit = max(tolerance, 2 * error())
        for path in dict.fromkeys([*order, *known.relaxed_at]):
            own = [
                residual
                for residual in known.relaxed_at.get(path, ())
                if on[residual] and float(residual.gamma.detach())
            ]
            if not own:
                continue
            for residual in own:
                residual.enabled = True
            if not error() <= limit:
                return path
            for residual in own:
                residual.enabled = False
    finally:
        for residual, before in on.items():
            residual.enabled = before
    return None


def relaxed_break(path: str | None, known: Known) -> Break | None:
    """The break at a relaxed layer."""
    if path is None:
        return None
    words = f"{known.relaxed(path)}: what its residual adds, alone, breaks the symmetry of the model's output"
    return Break(path, type(known.modules[path]).__name__, words)


def acquitted(
    rows: list[LayerRow], known: Known, residual_at: str | None, guilty: set[str]
) -> list[LayerRow]:
    """Rows in which only relaxed modules, and those that break the strict network too, are to blame."""
    done = []
    for row in rows:
        inside = any(path.startswith(f"{row.path}." if row.path else "") for path in known.relaxed_at)
        if row.path == residual_at and row.status != BREAKS:
            row = dataclasses.replace(row, status=BREAKS, note=known.relaxed(row.path))
        elif row.status == BREAKS and row.path not in known.relaxed_at and row.path not in guilty:
            note = "" if inside else "the strict network shows no break of its own here"
            row = dataclasses.replace(row, status=INSIDE if inside else PASSES, note=note)
        done.append(row)
    return done
