"""Measure equivariance: errors, Lie derivatives of whole models, the layers that break it, and ACE's bounds."""

from equirelax.auditing.audit import audit
from equirelax.auditing.bounds import NetworkBounds, equivariance_bounds
from equirelax.auditing.breaking import Breaking, breaking
from equirelax.auditing.card import card, write_card
from equirelax.auditing.error import Measurement, Worst
from equirelax.auditing.lie import LieReport
from equirelax.auditing.remul import LabelFree, label_free
from equirelax.auditing.report import AuditReport, Break, LayerRow, Localisation
from equirelax.auditing.samples import On
from equirelax.auditing.symmetry_score import Score, SymmetryScore, symmetry_score
from equirelax.symmetry import GridField

__all__ = [
    "AuditReport",
    "Break",
    "Breaking",
    "GridField",
    "LabelFree",
    "LayerRow",
    "LieReport",
    "Localisation",
    "Measurement",
    "NetworkBounds",
    "On",
    "Score",
    "SymmetryScore",
    "Worst",
    "audit",
    "breaking",
    "card",
    "equivariance_bounds",
    "label_free",
    "symmetry_score",
    "write_card",
]
