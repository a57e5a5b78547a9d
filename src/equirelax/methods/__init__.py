"""What drives the strengths: strict (nothing), scheduled (CR), ace and resilient (ACE)."""

# ruff: noqa: I001  (the order of registration is the order in which the methods are listed)

from equirelax.methods.base import Method
from equirelax.methods.registry import descriptions, get, names, register
from equirelax.methods.strict import Strict
from equirelax.methods.scheduled import Scheduled
from equirelax.methods.ace import ACE
from equirelax.methods.resilient import ResilientACE

__all__ = ["ACE", "Method", "ResilientACE", "Scheduled", "Strict", "descriptions", "get", "names", "register"]
