"""`EquivariantDense` does what every kind does."""

from __future__ import annotations

from equirelax.relaxation.kinds import EquivariantDense
from equirelax.testing import KindConformance


class TestEquivariantDense(KindConformance):
    equivariant = True

    def build_kind(self) -> EquivariantDense:
        return EquivariantDense("normal", std=0.3)
