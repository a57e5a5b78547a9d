"""Equiformer as its authors' repository has it (atomicarchitects/equiformer), as small as it can be: the same classes,
attributes and calls, with one block and one head, without embedding of degrees, dropout, torch_scatter and torch_cluster.
"""

from __future__ import annotations

from typing import Any

import torch
from e3nn import o3
from e3nn.nn import Gate
from torch import Tensor, nn

SPECIES = 3
EMBEDDING, HARMONICS, FEATURE = o3.Irreps("4x0e+2x1o"), o3.Irreps("1x0e+1x1o"), o3.Irreps("4x0e")
RADIAL = 4


class TensorProductRescale(nn.Module):
    """A product without path normalisation, and biases that are added in place to its slots of even scalars."""

    def __init__(
        self,
        irreps_in1: o3.Irreps,
        irreps_in2: o3.Irreps,
        irreps_out: o3.Irreps,
        instructions: list[Any],
        bias: bool = True,
        internal_weights: bool = True,
    ) -> None:
        super().__init__()
        self.irreps_in1, self.irreps_in2, self.irreps_out = irreps_in1, irreps_in2, irreps_out
        self.tp = o3.TensorProduct(
            irreps_in1,
            irreps_in2,
            irreps_out,
            instructions,
            path_normalization="none",
            internal_weights=internal_weights,
            shared_weights=internal_weights,
        )
        slots = zip(irreps_out, irreps_out.slices(), strict=True)
        self.bias_slices = [place for mul, place in slots if bias and mul.ir.is_scalar()]
        self.bias = nn.ParameterList([torch.randn(s.stop - s.start) for s in self.bias_slices])

    def forward_tp_rescale_bias(self, x: Tensor, y: Tensor, weight: Tensor | None = None) -> Tensor:
        out = self.tp(x, y, weight)
        for place, bias in zip(self.bias_slices, self.bias, strict=True):
            out.narrow(1, place.start, len(bias)).add_(bias)
        return out

    def forward(self, x: Tensor, y: Tensor, weight: Tensor | None = None) -> Tensor:
        return self.forward_tp_rescale_bias(x, y, weight)


class FullyConnectedTensorProductRescale(TensorProductRescale):
    """One with all paths."""

    def __init__(
        self, irreps_in1: o3.Irreps, irreps_in2: o3.Irreps, irreps_out: o3.Irreps, bias: bool = True
    ) -> None:
        paths = [
            (i, j, k, "uvw", True)
            for i, (_, one) in enumerate(irreps_in1)
            for j, (_, two) in enumerate(irreps_in2)
            for k, (_, out) in enumerate(irreps_out)
            if out in one * two
        ]
        super().__init__(irreps_in1, irreps_in2, irreps_out, paths, bias)


class LinearRS(FullyConnectedTensorProductRescale):
    """One that makes its second input itself."""

    def __init__(self, irreps_in: o3.Irreps, irreps_out: o3.Irreps, bias: bool = True) -> None:
        super().__init__(irreps_in, o3.Irreps("1x0e"), irreps_out, bias)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return self.forward_tp_rescale_bias(x, torch.ones_like(x[:, :1]))


class FullyConnectedTensorProductRescaleSwishGate(FullyConnectedTensorProductRescale):
    """One with a gate behind it: `irreps_out` are the product's, not those of its output."""

    def __init__(self, irreps_in1: o3.Irreps, irreps_in2: o3.Irreps, irreps_out: o3.Irreps) -> None:
        gate = gate_of(irreps_out)
        super().__init__(irreps_in1, irreps_in2, gate.irreps_in.simplify())
        self.gate = gate

    def forward(self, x: Tensor, y: Tensor, weight: Tensor | None = None) -> Tensor:
        return self.gate(self.forward_tp_rescale_bias(x, y, weight))


def gate_of(irreps: o3.Irreps) -> Gate:
    """The gate whose output are these irreps, scalars first."""
    scalars, gated = irreps[:1], irreps[1:]
    return Gate(scalars, [nn.SiLU()], f"{gated.num_irreps}x0e", [torch.sigmoid], gated)


def DepthwiseTensorProduct(
    irreps_in: o3.Irreps, irreps_edge: o3.Irreps, irreps_out: o3.Irreps
) -> TensorProductRescale:
    """A product of every channel alone, whose weights come from outside."""
    paths = [
        (i, j, mul, ir)
        for i, (mul, one) in enumerate(irreps_in)
        for j, (_, two) in enumerate(irreps_edge)
        for ir in one * two
        if ir in irreps_out
    ]
    irreps, place, _ = o3.Irreps([(mul, ir) for _, _, mul, ir in paths]).sort()
    instructions = [(i, j, place[k], "uvu", True) for k, (i, j, _, _) in enumerate(paths)]
    return TensorProductRescale(
        irreps_in, irreps_edge, irreps, instructions, bias=False, internal_weights=False
    )


class SeparableFCTP(nn.Module):
    """A product of every channel alone with weights that depend on the distance, and a linear map."""

    def __init__(self, irreps_in: o3.Irreps, irreps_edge: o3.Irreps, irreps_out: o3.Irreps) -> None:
        super().__init__()
        self.dtp = DepthwiseTensorProduct(irreps_in, irreps_edge, irreps_out)
        self.dtp_rad = nn.Linear(RADIAL, self.dtp.tp.weight_numel)
        self.lin = LinearRS(self.dtp.irreps_out.simplify(), irreps_out)

    def forward(self, node_input: Tensor, edge_attr: Tensor, edge_scalars: Tensor) -> Tensor:
        return self.lin(self.dtp(node_input, edge_attr, self.dtp_rad(edge_scalars)))


class EquivariantLayerNormV2(nn.Module):
    """Divides the channels of every irrep by their root mean square."""

    def __init__(self, irreps: o3.Irreps) -> None:
        super().__init__()
        self.irreps = irreps
        self.affine_weight = nn.Parameter(torch.ones(irreps.num_irreps))

    def forward(self, node_input: Tensor) -> Tensor:
        fields, start = [], 0
        for (mul, ir), place in zip(self.irreps, self.irreps.slices(), strict=True):
            field = node_input[:, place].reshape(-1, mul, ir.dim)
            norm = (field.square().mean((1, 2), keepdim=True) + 1e-5).rsqrt()
            weight = self.affine_weight[start : start + mul, None]
            fields.append((field * norm * weight).flatten(1))
            start += mul
        return torch.cat(fields, dim=1)


class GraphAttention(nn.Module):
    """Messages of the source's and the target's features, weighted by a softmax over the target's edges."""

    def __init__(self) -> None:
        super().__init__()
        self.merge_src = LinearRS(EMBEDDING, EMBEDDING)
        self.merge_dst = LinearRS(EMBEDDING, EMBEDDING, bias=False)
        self.sep = SeparableFCTP(EMBEDDING, HARMONICS, o3.Irreps("4x0e") + EMBEDDING)
        self.alpha_dot = nn.Parameter(torch.randn(4))
        self.proj = LinearRS(EMBEDDING, EMBEDDING)

    def forward(
        self, node_input: Tensor, source: Tensor, target: Tensor, edge_attr: Tensor, edge_scalars: Tensor
    ) -> Tensor:
        message = self.merge_src(node_input)[source] + self.merge_dst(node_input)[target]
        message = self.sep(message, edge_attr=edge_attr, edge_scalars=edge_scalars)
        alpha = (nn.functional.leaky_relu(message[:, :4], 0.2) @ self.alpha_dot).exp()
        total = torch.zeros(len(node_input)).to(alpha).index_add(0, target, alpha)
        weighted = message[:, 4:] * (alpha / total[target])[:, None]
        return self.proj(torch.zeros_like(node_input).index_add(0, target, weighted))


class FeedForwardNetwork(nn.Module):
    """A gated product and a plain one with the nodes' attributes."""

    def __init__(self) -> None:
        super().__init__()
        one = o3.Irreps("1x0e")
        self.fctp_1 = FullyConnectedTensorProductRescaleSwishGate(EMBEDDING, one, EMBEDDING)
        self.fctp_2 = FullyConnectedTensorProductRescale(EMBEDDING, one, FEATURE)

    def forward(self, node_input: Tensor, node_attr: Tensor) -> Tensor:
        return self.fctp_2(self.fctp_1(node_input, node_attr), node_attr)


class TransBlock(nn.Module):
    """Norm, attention, norm, feed-forward network."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_1, self.ga = EquivariantLayerNormV2(EMBEDDING), GraphAttention()
        self.norm_2, self.ffn = EquivariantLayerNormV2(EMBEDDING), FeedForwardNetwork()
        self.ffn_shortcut = FullyConnectedTensorProductRescale(EMBEDDING, o3.Irreps("1x0e"), FEATURE)

    def forward(self, node_input: Tensor, node_attr: Tensor, **edges: Tensor) -> Tensor:
        node_output = node_input + self.ga(self.norm_1(node_input), **edges)
        return self.ffn_shortcut(node_output, node_attr) + self.ffn(self.norm_2(node_output), node_attr)


class NodeEmbeddingNetwork(nn.Module):
    """From the species to features."""

    def __init__(self) -> None:
        super().__init__()
        self.atom_type_lin = LinearRS(o3.Irreps(f"{SPECIES}x0e"), EMBEDDING)

    def forward(self, node_atom: Tensor, like: Tensor) -> Tensor:
        return self.atom_type_lin(nn.functional.one_hot(node_atom, SPECIES).to(like))


class GraphAttentionTransformer(nn.Module):
    """An invariant of every graph of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.atom_embed = NodeEmbeddingNetwork()
        self.blocks = nn.ModuleList([TransBlock()])
        self.norm = EquivariantLayerNormV2(FEATURE)
        self.head = nn.Sequential(LinearRS(FEATURE, FEATURE), nn.SiLU(), LinearRS(FEATURE, o3.Irreps("1x0e")))

    def forward(self, pos: Tensor, batch: Tensor, node_atom: Tensor) -> Tensor:
        pairs = (batch[:, None] == batch) & ~torch.eye(len(pos), dtype=torch.bool, device=pos.device)
        source, target = pairs.nonzero().T
        vectors = pos[source] - pos[target]
        harmonics = o3.spherical_harmonics(HARMONICS, vectors, normalize=True, normalization="component")
        centres = torch.linspace(0, 3, RADIAL, dtype=pos.dtype, device=pos.device)
        scalars = (-(vectors.norm(dim=1, keepdim=True) - centres).square()).exp()
        features = self.atom_embed(node_atom, pos)
        one = torch.ones_like(features[:, :1])
        for block in self.blocks:
            features = block(
                features, one, source=source, target=target, edge_attr=harmonics, edge_scalars=scalars
            )
        out = self.head(self.norm(features))
        return out.new_zeros(int(batch.max()) + 1, 1).index_add(0, batch, out)
