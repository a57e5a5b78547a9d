"""Gated non-linearity of steerable features."""

from __future__ import annotations

from e3nn import o3
from torch import Tensor, nn

from equirelax.errors import RepresentationError
from equirelax_lab.models.fast.gating import Gating


class Gate(nn.Module):
    """`e3nn.nn.Gate` for 0e scalars, including its constants.

    From irreps_in = scalars, one 0e for each gated irrep, gated irreps, to irreps_out = scalars, gated irreps:

        scalars' = 1.679177 silu(scalars),   gated' = 1.846706 sigmoid(gates) gated

    Args:
        irreps_out: 0e followed by irreps of l > 0.

    Raises:
        RepresentationError: irreps_out has another form.
    """

    def __init__(self, irreps_out: str | o3.Irreps) -> None:
        super().__init__()
        self.irreps_out = o3.Irreps(irreps_out)
        kinds = [ir == o3.Irrep("0e") for _, ir in self.irreps_out]
        if (
            not any(kinds)
            or kinds != sorted(kinds, reverse=True)
            or any(m.ir == o3.Irrep("0o") for m in self.irreps_out)
        ):
            raise RepresentationError(
                f"Gate: expected 0e followed by irreps of l > 0, got {self.irreps_out}; sort them, and leave out 0o"
            )
        self.scalars = self.irreps_out.count("0e")
        self.gating = Gating(self.scalars, tuple((mul, ir.dim) for mul, ir in self.irreps_out if ir.l > 0))
        self.irreps_in = o3.Irreps(
            [(self.scalars + sum(self.gating.muls), "0e"), *(m for m in self.irreps_out if m.ir.l > 0)]
        )

    def forward(self, x: Tensor) -> Tensor:
        """(rows, irreps_in.dim) -> (rows, irreps_out.dim)."""
        return self.gating(self, x.t()).t()
