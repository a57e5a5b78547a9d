"""Assertions for users' tests."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from equirelax.auditing import AuditReport, audit
from equirelax.auditing.samples import FROM_MODEL
from equirelax.symmetry import Group


def assert_equivariant(
    model: nn.Module | Callable[..., Any],
    sample: Any,
    in_rep: Any = FROM_MODEL,
    out_rep: Any = FROM_MODEL,
    group: Group | None = None,
    tolerance: float | None = None,
    *,
    dtype: torch.dtype | None = None,
    samples: int = 8,
    seed: int = 0,
) -> AuditReport:
    """Fail unless ``f(rho_in(g) x) = rho_out(g) f(x)`` for sampled g, with the audit's report as the message.

    Args:
        model, sample, in_rep, out_rep, group, dtype, samples, seed: As for :func:`equirelax.auditing.audit`.
        tolerance: Largest relative error. By default the audit's: 1e-9 for a model built in float64, 1e-5 in float32.

    Returns:
        The report of a model that passed.

    Warns:
        UserWarning: Every output is 0, exactly or up to rounding, so that the test shows nothing.

    Raises:
        AssertionError: The relative error is larger. The message names the group element and the module that breaks equivariance.

    Examples:
        >>> import torch
        >>> from equirelax.testing import assert_equivariant
        >>> report = assert_equivariant(torch.neg, torch.randn(5, 3), "1x1o", "1x1o")
        >>> report.equivariant
        True
    """
    measure = functools.partial(
        audit,
        model,
        sample,
        in_rep,
        out_rep,
        group,
        samples=samples,
        seed=seed,
        dtype=dtype,
        tolerance=tolerance,
    )
    report = measure(lie=False, per_layer=False)
    if report.equivariant:
        if set(report.before.vanishing) >= set(report.before.outputs):
            warnings.warn(
                f"{report.model} returns 0 on the sample, which is equivariant whatever computes it: give it other weights or "
                "another sample",
                stacklevel=2,
            )
        return report
    raise AssertionError(f"\n{measure()}")  # the layers are measured only if the assertion fails
