"""Measuring: equivariance errors, Lie derivatives of whole models, which layer is to blame, ACE's bounds."""

from equirelax.audit.audit import audit
from equirelax.audit.bounds import (
    NetworkBounds,
    equivariance_bound,
    network_bounds,
    projection_bound,
    residual_lipschitz,
)
from equirelax.audit.breaking import Breaking, breaking
from equirelax.audit.error import Measurement, Worst
from equirelax.audit.layers import Break, LayerRow, Localisation
from equirelax.audit.lie import LieReport
from equirelax.audit.non_finite import Gain, NonFinite, first_non_finite, largest_gain
from equirelax.audit.remul import LabelFree, label_free
from equirelax.audit.report import AuditReport
from equirelax.audit.tree import Axis
from equirelax.symmetry import Field

__all__ = [
    "AuditReport",
    "Axis",
    "Break",
    "Breaking",
    "Field",
    "Gain",
    "LabelFree",
    "LayerRow",
    "LieReport",
    "Localisation",
    "Measurement",
    "NetworkBounds",
    "NonFinite",
    "Worst",
    "audit",
    "breaking",
    "equivariance_bound",
    "first_non_finite",
    "label_free",
    "largest_gain",
    "network_bounds",
    "projection_bound",
    "residual_lipschitz",
]
