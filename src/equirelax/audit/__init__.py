"""Measuring: equivariance errors, Lie derivatives of whole models, and which layer is to blame."""

from equirelax.audit.audit import audit
from equirelax.audit.error import Measurement, Worst
from equirelax.audit.report import AuditReport
from equirelax.audit.tree import Axis

__all__ = ["AuditReport", "Axis", "Measurement", "Worst", "audit"]
