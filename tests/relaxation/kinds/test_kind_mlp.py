"""`MLP` does what every kind does."""

from __future__ import annotations

from equirelax.relaxation import MLP
from equirelax.testing import KindConformance


class TestMLP(KindConformance):
    def build_kind(self) -> MLP:
        return MLP(layers=3, hidden=6)
