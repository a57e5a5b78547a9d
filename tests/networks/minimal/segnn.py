"""SEGNN as its authors' repository has it (RobDHess/Steerable-E3-GNN), as small as it can be: the same classes, attributes and
calls, for vectors at nodes, without norms, pooling and PyG.
"""

from __future__ import annotations

import torch
from e3nn import o3
from e3nn.nn import Gate
from torch import Tensor, nn

ATTRIBUTES = o3.Irreps("1x0e+1x1o")
INPUTS, HIDDEN, OUTPUTS = o3.Irreps("1x0e+1x1o"), o3.Irreps("3x0e+2x1o"), o3.Irreps("1x1o")


class O3TensorProduct(nn.Module):
    """A product, divided in place by a constant of every slot, and a bias of its scalars; a linear map without second input."""

    def __init__(
        self, irreps_in1: o3.Irreps, irreps_out: o3.Irreps, irreps_in2: o3.Irreps | None = None
    ) -> None:
        super().__init__()
        self.irreps_in1, self.irreps_out = irreps_in1, irreps_out
        self.irreps_in2 = o3.Irreps("1x0e") if irreps_in2 is None else irreps_in2
        self.tp = o3.FullyConnectedTensorProduct(self.irreps_in1, self.irreps_in2, self.irreps_out)
        slots = list(zip(irreps_out, irreps_out.slices(), strict=True))
        constants = torch.cat([torch.full((mul.dim,), 1.0 + 0.1 * k) for k, (mul, _) in enumerate(slots)])
        scalars = [i for mul, place in slots if mul.ir.l == 0 for i in range(place.start, place.stop)]
        self.register_buffer("sqrt_k_correction", constants, persistent=False)
        self.register_buffer("bias_idx", torch.tensor(scalars, dtype=torch.long), persistent=False)
        self.biases = nn.Parameter(torch.randn(len(scalars))) if scalars else None

    def forward_tp_rescale_bias(self, data_in1: Tensor, data_in2: Tensor | None = None) -> Tensor:
        out = self.tp(data_in1, torch.ones_like(data_in1[:, :1]) if data_in2 is None else data_in2)
        out /= self.sqrt_k_correction
        if self.biases is not None:
            out[:, self.bias_idx] += self.biases
        return out

    def forward(self, data_in1: Tensor, data_in2: Tensor | None = None) -> Tensor:
        return self.forward_tp_rescale_bias(data_in1, data_in2)


class O3TensorProductSwishGate(O3TensorProduct):
    """The same with a gate behind it: `irreps_out` are the product's, not those of its output."""

    def __init__(
        self, irreps_in1: o3.Irreps, irreps_out: o3.Irreps, irreps_in2: o3.Irreps | None = None
    ) -> None:
        scalars, gated = irreps_out[:1], irreps_out[1:]
        gate = Gate(scalars, [nn.SiLU()], f"{gated.num_irreps}x0e", [torch.sigmoid], gated)
        super().__init__(irreps_in1, gate.irreps_in.simplify(), irreps_in2)
        self.gate = gate

    def forward(self, data_in1: Tensor, data_in2: Tensor | None = None) -> Tensor:
        return self.gate(self.forward_tp_rescale_bias(data_in1, data_in2))


class SEGNNLayer(nn.Module):
    """Messages of two gated products, and an update of a gated one and a plain one, added in place."""

    def __init__(self) -> None:
        super().__init__()
        self.message_layer_1 = O3TensorProductSwishGate(HIDDEN + HIDDEN, HIDDEN, ATTRIBUTES)
        self.message_layer_2 = O3TensorProductSwishGate(HIDDEN, HIDDEN, ATTRIBUTES)
        self.update_layer_1 = O3TensorProductSwishGate(HIDDEN + HIDDEN, HIDDEN, ATTRIBUTES)
        self.update_layer_2 = O3TensorProduct(HIDDEN, HIDDEN, ATTRIBUTES)

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor, node_attr: Tensor) -> Tensor:
        source, target = edge_index[0], edge_index[1]
        message = self.message_layer_1(torch.cat([x[target], x[source]], dim=-1), edge_attr)
        message = self.message_layer_2(message, edge_attr)
        received = torch.zeros_like(x).index_add(0, target, message)
        update = self.update_layer_1(torch.cat([x, received], dim=-1), node_attr)
        x += self.update_layer_2(update, node_attr)
        return x


class SEGNN(nn.Module):
    """An embedding, layers and a head, on a graph with `x`, `edge_index`, `edge_attr` and `node_attr`."""

    def __init__(self, num_layers: int = 1) -> None:
        super().__init__()
        self.embedding_layer = O3TensorProduct(INPUTS, HIDDEN, ATTRIBUTES)
        self.layers = nn.ModuleList([SEGNNLayer() for _ in range(num_layers)])
        self.pre_pool1 = O3TensorProductSwishGate(HIDDEN, HIDDEN, ATTRIBUTES)
        self.pre_pool2 = O3TensorProduct(HIDDEN, OUTPUTS, ATTRIBUTES)

    def forward(self, graph: dict[str, Tensor]) -> Tensor:
        x = self.embedding_layer(graph["x"], graph["node_attr"])
        for layer in self.layers:
            x = layer(x, graph["edge_index"], graph["edge_attr"], graph["node_attr"])
        return self.pre_pool2(self.pre_pool1(x, graph["node_attr"]), graph["node_attr"])
