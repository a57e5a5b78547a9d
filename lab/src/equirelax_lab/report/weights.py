"""Which weights of a run count: the raw ones, or their average over training, whichever validation prefers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def by_validation(run: Mapping[str, Any], form: str) -> Mapping[str, Any]:
    """The part of a run's result with the metrics ("val" and "test") of the weights that validation prefers.

    Raw weights win a tie, and NaN loses. A run without averaged weights has its raw ones.

    Args:
        run: Content of a result.json.
        form: The form of the network that is validated, "relaxed" or "projected".
    """
    averaged: Mapping[str, Any] | None = run.get("averaged")
    if not averaged:
        return run
    sign = -1 if run["metric"].get("higher_is_better", False) else 1
    raw, other = (worst_last(sign * one["val"][form]) for one in (run, averaged))
    return averaged if other < raw else run


def worst_last(error: float) -> float:
    """A sort key for errors: NaN is the worst."""
    return math.inf if math.isnan(error) else error
