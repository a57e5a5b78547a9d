"""Student's paired t test and the effect size of a comparison with strict."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PairedTest:
    """Of paired differences.

    Attributes:
        t: Mean difference over its standard error.
        p: Two-sided probability of a t as large if there were no difference (of one comparison: not corrected for
            their number).
        effect: Cohen's d_z: mean difference over the standard deviation of the differences.
    """

    t: float
    p: float
    effect: float


def paired_test(compared: Mapping[str, Any] | None) -> PairedTest | None:
    """The test of a `Paired` as a dict; None for fewer than two seeds, or where all differences are the same."""
    if compared is None or compared["count"] < 2 or not compared["std"]:
        return None
    effect = compared["mean"] / compared["std"]
    t = effect * math.sqrt(compared["count"])
    return PairedTest(t, two_sided(t, compared["count"] - 1), effect)


def holm(found: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down correction: name -> p of the test times the number of tests that are not yet decided, at most 1.

    Below 0.05 it tells a difference with at most five in a hundred such tables having any false one.
    """
    corrected, largest = {}, 0.0
    for done, name in enumerate(sorted(found, key=lambda name: found[name])):
        largest = max(largest, min((len(found) - done) * found[name], 1.0))
        corrected[name] = largest
    return corrected


def two_sided(t: float, degrees: int) -> float:
    """P(abs(T) >= abs(t)) of Student's T with `degrees` (1, 2, ...) degrees of freedom.

    The finite series for whole degrees (Abramowitz and Stegun 26.7.3 and 26.7.4), with theta = arctan(t / sqrt(degrees)).
    """
    theta = math.atan(abs(t) / math.sqrt(degrees))
    sine, cosine = math.sin(theta), math.cos(theta)
    first = degrees % 2  # the power of the cosine in the first term: 1 for odd degrees, 0 for even ones
    term, total = cosine**first, 0.0
    for power in range(first, degrees - 1, 2):
        total += term
        term *= cosine**2 * (power + 1) / (power + 2)
    inside = 2 / math.pi * (theta + sine * total) if first else sine * total
    return min(max(1.0 - inside, 0.0), 1.0)
