"""equirelax: relax equivariance while training, project back to an exactly equivariant network, and check it.

    relaxation = equirelax.relax(model)
    method = equirelax.ACE(relaxation, dual_lr=8e-4)
    optimizer = torch.optim.Adam(model.parameters(), lr=9e-4)
    for x, y in loader:
        loss = criterion(model(x), y) + method.penalty()
        loss.backward(); optimizer.step(); optimizer.zero_grad()
        method.step()
    equirelax.project(model)
    print(equirelax.audit(model, sample, in_rep, out_rep))

The methods are those of CR (Pertigkiozoglou et al., NeurIPS 2024, arXiv 2408.13242) and ACE (Manolache et
al., NeurIPS 2025, arXiv 2505.13631). Importing the package imports torch alone; e3nn and PyTorch Geometric
are imported when a model of theirs is met.
"""

from equirelax import methods, penalties, relaxation, symmetry
from equirelax.auditing import AuditReport, GridField, On, audit
from equirelax.errors import EquirelaxError
from equirelax.methods import ACE, ResilientACE, Scheduled, Strict
from equirelax.relaxation import (
    MLP,
    Dense,
    Grouped,
    Layers,
    LowRank,
    load,
    project,
    relax,
    relaxation_of,
    save,
)

__version__ = "0.2.0.dev0"

__all__ = [
    "ACE",
    "MLP",
    "AuditReport",
    "Dense",
    "EquirelaxError",
    "GridField",
    "Grouped",
    "Layers",
    "LowRank",
    "On",
    "ResilientACE",
    "Scheduled",
    "Strict",
    "audit",
    "load",
    "methods",
    "penalties",
    "project",
    "relax",
    "relaxation",
    "relaxation_of",
    "save",
    "symmetry",
]
