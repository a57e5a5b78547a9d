"""Methods, which drive the strengths of the residuals, and baselines to compare them with.

The methods are strict (does nothing), scheduled (CR), ace and resilient (ACE), and two of this project, swing and
symmetry-following. The baselines are remul, rpp, and EquiTuned and EquiAdapted, two modules that wrap any network.
"""

# ruff: noqa: I001  (the order of registration is the order in which the methods are listed)

from equirelax.methods.base import Method
from equirelax.methods.registry import descriptions, get, names, register
from equirelax.methods.strict import Strict
from equirelax.methods.scheduled import Scheduled
from equirelax.methods.ace import ACE
from equirelax.methods.resilient import ResilientACE
from equirelax.methods.gradnorm import GradNorm
from equirelax.methods.remul import REMUL
from equirelax.methods.rpp import RPP
from equirelax.methods.swing import Swing
from equirelax.methods.symmetry_following import SymmetryFollowing
from equirelax.methods.projected_loss import ProjectedLoss, lags
from equirelax.methods.equi_adapt import EquiAdapted
from equirelax.methods.equi_tuning import EquiTuned

__all__ = [
    "ACE",
    "REMUL",
    "RPP",
    "EquiAdapted",
    "EquiTuned",
    "GradNorm",
    "Method",
    "ProjectedLoss",
    "ResilientACE",
    "Scheduled",
    "Strict",
    "Swing",
    "SymmetryFollowing",
    "descriptions",
    "get",
    "lags",
    "names",
    "register",
]
