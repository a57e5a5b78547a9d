"""`Dense` does what every kind does."""

from __future__ import annotations

from equirelax.relaxation import Dense
from equirelax.testing import KindConformance


class TestDense(KindConformance):
    def build_kind(self) -> Dense:
        return Dense("normal", std=0.3, bias=True)
