"""Measuring: equivariance errors, Lie derivatives of whole models, which layer is to blame, ACE's bounds."""

from equirelax.auditing.audit import audit
from equirelax.auditing.bounds import NetworkBounds, equivariance_bounds
from equirelax.auditing.breaking import Breaking, breaking
from equirelax.auditing.error import Measurement, Worst
from equirelax.auditing.layers import Break, LayerRow, Localisation
from equirelax.auditing.lie import LieReport
from equirelax.auditing.non_finite import Gain, NonFinite, first_non_finite, largest_gain
from equirelax.auditing.remul import LabelFree, label_free
from equirelax.auditing.report import AuditReport
from equirelax.auditing.tree import On
from equirelax.symmetry import GridField

__all__ = [
    "AuditReport",
    "Break",
    "Breaking",
    "Gain",
    "GridField",
    "LabelFree",
    "LayerRow",
    "LieReport",
    "Localisation",
    "Measurement",
    "NetworkBounds",
    "NonFinite",
    "On",
    "Worst",
    "audit",
    "breaking",
    "equivariance_bounds",
    "first_non_finite",
    "label_free",
    "largest_gain",
]
