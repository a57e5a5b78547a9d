"""Helpers for users' tests: an assertion, and conformance classes for a new kind, layer family, network, method or model."""

from equirelax.testing.assertions import assert_equivariant
from equirelax.testing.kinds import KindConformance
from equirelax.testing.layers import LayerFamilyConformance
from equirelax.testing.methods import MethodConformance
from equirelax.testing.models import ModelConformance
from equirelax.testing.networks import NetworkConformance
from equirelax.testing.span import brute_force_span

__all__ = [
    "KindConformance",
    "LayerFamilyConformance",
    "MethodConformance",
    "ModelConformance",
    "NetworkConformance",
    "assert_equivariant",
    "brute_force_span",
]
