"""What drives the strengths: strict (nothing), scheduled (CR), ace and resilient (ACE), and what they are compared
with: remul, rpp.
"""

# ruff: noqa: I001  (the order of registration is the order in which the methods are listed)

from equirelax.methods.base import Method
from equirelax.methods.registry import descriptions, get, names, register
from equirelax.methods.strict import Strict
from equirelax.methods.scheduled import Scheduled
from equirelax.methods.ace import ACE
from equirelax.methods.resilient import ResilientACE
from equirelax.methods.remul import REMUL
from equirelax.methods.rpp import RPP

__all__ = [
    "ACE",
    "REMUL",
    "RPP",
    "Method",
    "ResilientACE",
    "Scheduled",
    "Strict",
    "descriptions",
    "get",
    "names",
    "register",
]
