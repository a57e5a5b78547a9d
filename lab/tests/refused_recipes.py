"""Which combinations of benchmark, model and method the recipe files refuse."""

from __future__ import annotations

REFUSED = {
    ("qm9", "schnet", "equivariant-control"),
    ("qm9", "schnet", "symmetry-following"),
    ("mocap", "egno", "symmetry-following"),
    *(
        ("md17", model, "symmetry-following")
        for model in ("equiformer", "se3-transformer", "nequip", "plain")
    ),
}
