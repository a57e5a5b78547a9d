"""`Grouped` does what every kind does."""

from __future__ import annotations

from equirelax.relaxation import Grouped
from equirelax.testing import KindConformance


class TestGrouped(KindConformance):
    def build_kind(self) -> Grouped:
        return Grouped(2, "normal", std=0.3)
