"""Plant a mistake in a network, and find its place with an audit: the second part of `equirelax demo`."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor

import equirelax as er
from equirelax.auditing import AuditReport
from equirelax.symmetry import O, vector
from equirelax_lab.data.graphs import complete_graph
from equirelax_lab.models.segnn import SEGNN
from equirelax_lab.models.tensor_product import TensorProduct

SYSTEMS, BODIES = 4, 5


class CentredProduct(TensorProduct):
    """A tensor product that subtracts from every vector its own mean over x, y and z, which is not equivariant.

    The code of SEGNN does this to its input positions (RobDHess/Steerable-E3-GNN, issue 12).
    """

    def forward(self, x: Tensor, attributes: Tensor) -> Tensor:
        """Like `TensorProduct`, except for the mistake."""
        out = super().forward(x, attributes)
        parts = []
        for (_, ir), part in zip(
            self.irreps_out, out.split([p.dim for p in self.irreps_out], -1), strict=True
        ):
            vectors = part.unflatten(-1, (-1, ir.dim))
            parts.append((vectors - vectors.mean(-1, keepdim=True)).flatten(-2) if ir.l == 1 else part)
        return torch.cat(parts, -1)


def run_planted(seed: int, layers: int = 4) -> dict[str, Any]:
    """Audit a SEGNN, plant the mistake in one of its tensor products, and audit it again.

    Args:
        seed: Seed of the weights, the systems, and the place of the mistake.
        layers: Layers of the SEGNN.

    Returns:
        Plain data: `planted` and `named` (paths of modules), `before` and `after` (relative equivariance errors), `modules` (for
        every tensor product the path and the error that it adds), `group` and `report`, the audit as text.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = SEGNN(layers=layers)
    positions, velocities = torch.randn(2, SYSTEMS * BODIES, 3, generator=generator)
    charges = torch.randint(0, 2, (SYSTEMS * BODIES, 1), generator=generator) * 2.0 - 1
    edges = torch.cat([complete_graph(BODIES) + BODIES * system for system in range(SYSTEMS)], 1)
    group = O(3)

    def audit() -> AuditReport:
        read = (vector(group), vector(group), None, None)
        return er.audit(model, (positions, velocities, charges, edges), read, vector(group), lie=False)

    before = audit().relative
    products = {path: module for path, module in model.named_modules() if isinstance(module, TensorProduct)}
    planted = random.Random(seed).choice([path for path, module in products.items() if _has_vectors(module)])
    products[planted].__class__ = CentredProduct
    report = audit()
    added = {row.path: row.relative for row in report.layers if row.path in products}
    return {
        "seed": seed,
        "planted": planted,
        "named": report.first_break,
        "before": before,
        "after": report.relative,
        "group": group.name,
        "modules": [(path, added.get(path)) for path in products],
        "report": str(report),
    }


def _has_vectors(product: TensorProduct) -> bool:
    return any(ir.l == 1 for _, ir in product.irreps_out)
