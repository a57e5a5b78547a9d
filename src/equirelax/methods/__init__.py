"""What drives the strengths: strict (nothing), scheduled (CR), ace and resilient (ACE)."""

from equirelax.methods.base import Method
from equirelax.methods.registry import descriptions, get, names, register
from equirelax.methods.strict import Strict  # isort: skip - the order of registration is the order shown
from equirelax.methods.scheduled import Scheduled  # isort: skip
from equirelax.methods.ace import ACE  # isort: skip
from equirelax.methods.resilient import ResilientACE  # isort: skip

__all__ = ["ACE", "Method", "ResilientACE", "Scheduled", "Strict", "descriptions", "get", "names", "register"]
