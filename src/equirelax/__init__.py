"""Relax equivariance while training, project back to an exactly equivariant network, and check it.

    relaxation = equirelax.relax(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1.8e-3)
    method = equirelax.Swing(relaxation, period=2100).attach(optimizer)
    for x, y in loader:
        loss = criterion(model(x), y) + method.penalty()
        optimizer.zero_grad(); loss.backward(); optimizer.step()
    equirelax.project(model)
    print(equirelax.audit(model, sample, in_rep, out_rep))

The methods are those of CR (Pertigkiozoglou et al., NeurIPS 2024, arXiv 2408.13242) and ACE (Manolache et
al., NeurIPS 2025, arXiv 2505.13631), and `Swing`, which is this project's own. The package imports only torch and numpy,
when one of its names is first used. It imports e3nn and PyTorch Geometric only for models that are built with them.

The most common names are available here. The rest are in the subpackages `symmetry`, `relaxation`, `methods`,
`auditing`, `optim` and `testing`.
"""

import importlib as _importlib
import typing as _typing

if _typing.TYPE_CHECKING:
    from equirelax import auditing, methods, optim, relaxation, symmetry, testing
    from equirelax.auditing.audit import audit
    from equirelax.auditing.symmetry_score import symmetry_score
    from equirelax.errors import EquirelaxError
    from equirelax.methods import ACE, ResilientACE, Scheduled, Strict, Swing
    from equirelax.relaxation import (
        MLP,
        Dense,
        Layers,
        Linear,
        LowRank,
        load,
        project,
        relax,
        relaxation_of,
        save,
    )
    from equirelax.symmetry import GridField, On

__version__ = "0.2.0"

__all__ = [
    "ACE",
    "MLP",
    "Dense",
    "EquirelaxError",
    "GridField",
    "Layers",
    "Linear",
    "LowRank",
    "On",
    "ResilientACE",
    "Scheduled",
    "Strict",
    "Swing",
    "audit",
    "auditing",
    "load",
    "methods",
    "optim",
    "project",
    "relax",
    "relaxation",
    "relaxation_of",
    "save",
    "symmetry",
    "symmetry_score",
    "testing",
]

_HOMES = {
    "errors": ("EquirelaxError",),
    "auditing": ("audit", "symmetry_score"),
    "methods": ("ACE", "ResilientACE", "Scheduled", "Strict", "Swing"),
    "relaxation": (
        "MLP",
        "Dense",
        "Layers",
        "Linear",
        "LowRank",
        "load",
        "project",
        "relax",
        "relaxation_of",
        "save",
    ),
    "symmetry": ("GridField", "On"),
}


def __getattr__(name: str) -> object:
    """Import a name when it is first used, so that `import equirelax.errors` needs no torch."""
    if name not in __all__:
        raise AttributeError(f"module 'equirelax' has no attribute {name!r}")
    home = next((room for room, names in _HOMES.items() if name in names), None)
    if home is None:
        return _importlib.import_module(f"equirelax.{name}")
    value: object = getattr(_importlib.import_module(f"equirelax.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
