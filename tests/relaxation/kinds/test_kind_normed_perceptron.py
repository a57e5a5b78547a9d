"""`NormedPerceptron` does what every kind does."""

from __future__ import annotations

from equirelax.relaxation.kinds import NormedPerceptron
from equirelax.testing import KindConformance


class TestNormedPerceptron(KindConformance):
    axes = (-1,)

    def build_kind(self) -> NormedPerceptron:
        return NormedPerceptron(hidden=6)
