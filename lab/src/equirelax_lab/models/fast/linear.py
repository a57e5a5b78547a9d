"""Linear maps between irreps: `e3nn.o3.Linear`, evaluated as one matrix product for each irrep."""

from __future__ import annotations

import torch
from e3nn import o3
from torch import Tensor

from equirelax_lab.models.fast.join import join
from equirelax_lab.models.fast.switch import is_enabled


class SteerableLinear(o3.Linear):
    """An `e3nn.o3.Linear` with biases on 0e outputs that is faster on features stored transposed.

    These are views (rows, dim) of a contiguous (dim, rows) and need no copy: an irrep's channels (mul, 2l+1, rows) are a
    matrix (mul, (2l+1) rows). Results are stored like that.

    Args:
        irreps_in, irreps_out: irreps of the map; e3nn's own code runs if one irrep is in several slots.
        bias: whether 0e outputs get a bias.
    """

    def __init__(self, irreps_in: str | o3.Irreps, irreps_out: str | o3.Irreps, bias: bool = True) -> None:
        # e3nn's own code is hardly ever run here, and optimising it would take most of the time of building a model
        super().__init__(o3.Irreps(irreps_in), o3.Irreps(irreps_out), biases=bias, _optimize_einsums=False)
        maps = [ins for ins in self.instructions if ins.i_in >= 0]
        sources = {ins.i_out: ins.i_in for ins in maps}
        self.single = len(sources) == len(maps) == len(self.irreps_out)
        self.in_sizes = [mul_ir.dim for mul_ir in self.irreps_in]
        self.path_numels = [ins.path_shape[0] * ins.path_shape[1] for ins in maps]
        # by output slot: number of the path in the weight, input slot, multiplicities, factor
        numbers = {ins.i_out: k for k, ins in enumerate(maps)}
        self.slots = [
            (numbers[k], maps[numbers[k]].i_in, *maps[numbers[k]].path_shape, maps[numbers[k]].path_weight)
            for k in range(len(self.irreps_out) if self.single else 0)
        ]
        self.bias_slot = next((ins.i_out for ins in self.instructions if ins.i_in < 0), None)

    def forward(self, features: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """(rows, irreps_in.dim) -> (rows, irreps_out.dim); external weight and bias as in e3nn."""
        given = weight is not None or bias is not None
        if not self.single or given or features.dim() != 2 or not is_enabled():
            out: Tensor = super().forward(features, weight, bias)
            return out
        rows = features.shape[0]
        parts = features.t().split_with_sizes(self.in_sizes)
        weights = self.weight.split_with_sizes(self.path_numels)
        outs = []
        for k, (number, i_in, mul_in, mul_out, factor) in enumerate(self.slots):
            matrix = (weights[number] * factor).view(mul_in, mul_out).t()
            dim = self.in_sizes[i_in] // mul_in
            columns = parts[i_in].reshape(mul_in, dim * rows)
            mixed = (
                torch.addmm(self.bias[:, None], matrix, columns) if k == self.bias_slot else matrix @ columns
            )
            outs.append(mixed.view(mul_out * dim, rows))
        return join(outs).t()
