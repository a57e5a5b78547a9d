"""`LowRank` does what every kind does."""

from __future__ import annotations

from equirelax.relaxation import LowRank
from equirelax.testing import KindConformance


class TestLowRank(KindConformance):
    def build_kind(self) -> LowRank:
        return LowRank(3, "normal", std=0.5)
