"""All messages of a layer of l <= 1 at once, without forming the inputs of every edge.

    m_ij = gate(message_2(gate(message_1([x_i, x_j, p_ij], a_ij)), a_ij)),    received_i = sum_j m_ij

The first product is linear in x_i and in x_j, so channels are mixed once per node instead of once per edge. Only the sum of
the two and its coupling to the edge's vector are computed per edge.

`messages` is the formula in ordinary operations, `Messages` the same with a hand-written derivative.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from equirelax_lab.models.fast.by_hand import ByHand
from equirelax_lab.models.fast.coupling import (
    ROOT_3,
    Slots,
    WeightLayout,
    couple,
    couple_backward,
    couple_forward,
    couple_layout,
    dot_into,
    mix,
)
from equirelax_lab.models.fast.gating import Gating, gate_backward, gate_forward
from equirelax_lab.models.stack import Stack, select


class Plan(NamedTuple):
    """The part that does not depend on the input: the products' slots, the arrangements of their weights, the gate, and the
    value of the attribute's scalar, which is the same for all edges."""

    first: Slots
    second: Slots
    first_layout: WeightLayout
    second_layout: WeightLayout
    gate: Gating
    constant: float

    @classmethod
    def of(cls, first: Slots, second: Slots, gate: Gating, constant: float) -> Plan:
        """Build the plan of a first product of slots [x_target, x_source, edge scalars], x of one slot each."""
        return cls(
            first, second, ends_layout(first, constant), couple_layout(second, constant), gate, constant
        )


def messages(
    x: Tensor,
    edge_scalars: Tensor,
    attributes: Tensor,
    weights: tuple[Tensor, Tensor, Tensor, Tensor],
    stack: Stack,
    plan: Plan,
) -> Tensor:
    """Compute the sums of messages (dim, n) from features x (dim, n).

    Args:
        x: (dim, n), graph by graph.
        edge_scalars: (p, edges of one graph, copies).
        attributes: (4, edges of one graph, copies).
        weights: flat weight and bias of the first and of the second product.
        stack: the graphs.
        plan: everything else.
    """
    weight_1, bias_1, weight_2, bias_2 = weights
    rows = attributes.flatten(1)
    hidden = message_product(stack.stack(x), edge_scalars, rows[1:], weight_1, bias_1, stack, plan)
    hidden = couple(plan.gate.formula(hidden), rows, weight_2, bias_2, plan.second)
    hidden = plan.gate.formula(hidden).unflatten(1, attributes.shape[1:])
    return stack.unstack(stack.sum_at_targets(hidden))


def message_product(
    x: Tensor, edge_scalars: Tensor, vector: Tensor, weight: Tensor, bias: Tensor, stack: Stack, plan: Plan
) -> Tensor:
    """Compute the first product: x (dim, nodes, copies), edge_scalars (p, edges, copies), vector (3, edges copies) ->
    (dim_out, edges copies)."""
    (scalars, _), n_s = plan.first.inputs[0], plan.first.scalars
    half = n_s + plan.first.vectors
    w0, w1, w_edge = joined(plan.first, _scaled(plan.first, weight, plan.constant))
    of_scalars = (w0.t() @ x[:scalars].flatten(1)).unflatten(1, x.shape[1:])  # (2 half, nodes, copies)
    of_vectors = mix(w1, x[scalars:].flatten(1)).unflatten(2, x.shape[1:])  # (2 half, 3, nodes, copies)
    s = select(of_scalars[:half], 1, stack.target) + select(of_scalars[half:], 1, stack.source)
    v = select(of_vectors[:half], 2, stack.target) + select(of_vectors[half:], 2, stack.source)
    s = s.flatten(1) + w_edge.t() @ edge_scalars.flatten(1)
    v = v.flatten(2)
    out_s = s[:n_s] + (v[:n_s] * vector).sum(1) + bias[:, None]
    out_v = v[n_s:] + s[n_s:, None] * vector
    return torch.cat([out_s, out_v.flatten(0, 1)])


Views = list[tuple[Tensor, Tensor]]


def _scaled(slots: Slots, weight: Tensor, constant: float) -> Views:
    """Multiply `Slots.weights` by the paths' factors."""
    views = []
    for (to_s, to_v), (_, dim) in zip(slots.weights(weight), slots.inputs, strict=True):
        views.append((to_s * constant, to_v) if dim == 1 else (to_s / ROOT_3, to_v * constant))
    return views


def joined(slots: Slots, views: Views) -> tuple[Tensor, Tensor, Tensor]:
    """Join the weights for scalars (m0, 2 half), for vectors (m1, 2 half) and for edge scalars (p, half).

    Columns: [to scalars, to vectors] of the target, then of the source; half = scalars + vectors.
    """
    target_0, target_1, source_0, source_1, edge = views
    return (
        torch.cat([*target_0, *source_0], dim=1),
        torch.cat([*target_1, *source_1], dim=1),
        torch.cat(edge, dim=1),
    )


def ends_layout(slots: Slots, constant: float) -> WeightLayout:
    """Build the arrangement of the three matrices of `joined`, one after another, including factors."""
    numel = sum(slots.muls) * (slots.scalars + slots.vectors)
    order = torch.cat([matrix.flatten() for matrix in joined(slots, slots.weights(torch.arange(numel)))])
    factors = joined(slots, _scaled(slots, torch.ones(numel, dtype=torch.float64), constant))
    return WeightLayout(order, torch.cat([matrix.flatten() for matrix in factors]))


class _Sizes(NamedTuple):
    """Sizes of the first product; see `Slots` and `Stack`."""

    scalars: int
    vectors: int
    n_s: int
    n_v: int
    half: int
    nodes: int
    edges: int
    copies: int

    @classmethod
    def of(cls, plan: Plan, stack: Stack) -> _Sizes:
        (scalars, _), (vectors, _) = plan.first.inputs[:2]
        n_s, n_v = plan.first.scalars, plan.first.vectors
        return cls(scalars, vectors, n_s, n_v, n_s + n_v, stack.nodes, stack.source.shape[0], stack.copies)

    def matrices(self, arranged: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return views of the three matrices of `ends_layout`."""
        first, second = 2 * self.half * self.scalars, 2 * self.half * self.vectors
        w0, w1, w_edge = arranged.split_with_sizes([first, second, arranged.shape[0] - first - second])
        return w0.view(-1, 2 * self.half), w1.view(-1, 2 * self.half), w_edge.view(-1, self.half)


def product_forward(
    x: Tensor,
    edge_scalars: Tensor,
    vector: Tensor,
    arranged: Tensor,
    bias: Tensor,
    stack: Stack,
    size: _Sizes,
) -> Tensor:
    """Compute `message_product` with arranged weights; edge_scalars (p, edges copies), vector (1, 3, edges copies)."""
    columns = size.edges * size.copies
    w0, w1, w_edge = size.matrices(arranged)
    x0, x1 = x.flatten(1).split_with_sizes([size.scalars, 3 * size.vectors])
    of_scalars = (w0.t() @ x0).view(2, size.half, size.nodes, size.copies)
    of_vectors = (w1.t() @ x1.view(size.vectors, -1)).view(2, 3 * size.half, size.nodes, size.copies)
    s = of_scalars[0].index_select(1, stack.target).add_(of_scalars[1].index_select(1, stack.source))
    v = of_vectors[0].index_select(1, stack.target).add_(of_vectors[1].index_select(1, stack.source))
    s = s.view(size.half, columns).addmm_(w_edge.t(), edge_scalars)
    to_s, t = s.split_with_sizes([size.n_s, size.n_v])
    dots, to_v = v.view(size.half, 3, columns).split_with_sizes([size.n_s, size.n_v])
    out = x.new_empty(size.n_s + 3 * size.n_v, columns)
    out_s, out_v = out.split_with_sizes([size.n_s, 3 * size.n_v])
    torch.add(to_s, bias[:, None], out=out_s)
    for part, component in zip(dots.unbind(1), vector.unbind(1), strict=True):
        out_s.addcmul_(part, component)
    torch.addcmul(to_v, t[:, None], vector, out=out_v.view(size.n_v, 3, columns))
    return out


def product_backward(
    grad: Tensor,
    x: Tensor,
    edge_scalars: Tensor,
    vector: Tensor,
    arranged: Tensor,
    stack: Stack,
    size: _Sizes,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients of x, of the arranged weights and of the bias."""
    columns, per_edge = size.edges * size.copies, (size.edges, size.copies)
    grad_s, grad_v = grad.split_with_sizes([size.n_s, 3 * size.n_v])
    # gradients of the scalars that become vectors, and of the vectors that become scalars
    grad_t = dot_into(x.new_empty(size.n_v, columns), grad_v.view(size.n_v, 3, columns), vector)
    grad_d = grad_s[:, None] * vector
    of_scalars = x.new_zeros(2, size.half, size.nodes, size.copies)
    of_vectors = x.new_zeros(2, 3 * size.half, size.nodes, size.copies)
    for i, index in enumerate((stack.target, stack.source)):
        to_s, t = of_scalars[i].split_with_sizes([size.n_s, size.n_v])
        dots, to_v = of_vectors[i].split_with_sizes([3 * size.n_s, 3 * size.n_v])
        to_s.index_add_(1, index, grad_s.unflatten(1, per_edge))
        t.index_add_(1, index, grad_t.unflatten(1, per_edge))
        dots.index_add_(1, index, grad_d.view(3 * size.n_s, *per_edge))
        to_v.index_add_(1, index, grad_v.unflatten(1, per_edge))
    of_scalars, of_vectors = of_scalars.view(2 * size.half, -1), of_vectors.view(2 * size.half, -1)

    w0, w1, _ = size.matrices(arranged)
    grad_x, grad_weight = torch.empty_like(x), torch.empty_like(arranged)
    g0, g1, g_edge = size.matrices(grad_weight)
    parts = [size.scalars, 3 * size.vectors]
    x0, x1 = x.flatten(1).split_with_sizes(parts)
    grad_0, grad_1 = grad_x.flatten(1).split_with_sizes(parts)
    torch.mm(w0, of_scalars, out=grad_0)
    torch.mm(w1, of_vectors, out=grad_1.view(size.vectors, -1))
    torch.mm(x0, of_scalars.t(), out=g0)
    torch.mm(x1.view(size.vectors, -1), of_vectors.t(), out=g1)
    torch.mm(edge_scalars, grad_s.t(), out=g_edge[:, : size.n_s])
    torch.mm(edge_scalars, grad_t.t(), out=g_edge[:, size.n_s :])
    return grad_x, grad_weight, grad_s.sum(1)


class Messages(ByHand):
    """`messages`, with hand-written derivatives with respect to features, weights and biases.

    Inputs are those of `messages`, with the four weights one by one.

    Args:
        plan: The part that does not depend on the input.
        stack: The graphs.
    """

    unwritten = (1, 2)

    def __init__(self, plan: Plan, stack: Stack) -> None:
        self.plan, self.stack = plan, stack
        self.size = _Sizes.of(plan, stack)

    @property
    def held(self) -> Sequence[Tensor]:
        return self.stack.source, self.stack.target

    def formula(self, *inputs: Tensor) -> Tensor:
        x, edge_scalars, attributes, weight_1, bias_1, weight_2, bias_2 = inputs
        weights = (weight_1, bias_1, weight_2, bias_2)
        return messages(x, edge_scalars, attributes, weights, self.stack, self.plan)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        x, edge_scalars, attributes, weight_1, bias_1, weight_2, bias_2 = inputs
        plan, stack, size = self.plan, self.stack, self.size
        scalars, vector = edge_scalars.flatten(1), attributes[None, 1:].flatten(2)
        arranged = plan.first_layout.arrange(weight_1), plan.second_layout.arrange(weight_2)
        stacked = stack.stack(x)
        first = product_forward(stacked, scalars, vector, arranged[0], bias_1, stack, size)
        hidden, factors_1 = gate_forward(first, plan.gate)
        second, z = couple_forward(hidden, None, vector, arranged[1], bias_2, plan.second)
        out, factors_2 = gate_forward(second, plan.gate)
        out = stack.unstack(stack.sum_at_targets(out.unflatten(1, (size.edges, size.copies))))
        return out, (stacked, *arranged, first, factors_1, hidden, z, second, factors_2)

    def backward(
        self, grad: Tensor, inputs: Sequence[Tensor], saved: Sequence[Tensor]
    ) -> tuple[Tensor | None, ...]:
        plan, stack = self.plan, self.stack
        scalars, vector = inputs[1].flatten(1), inputs[2][None, 1:].flatten(2)
        stacked, arranged_1, arranged_2, first, factors_1, hidden, z, second, factors_2 = saved
        grad = stack.stack(grad).index_select(1, stack.target).flatten(1)
        grad = gate_backward(grad, second, factors_2, plan.gate)
        grad, grad_2, grad_bias_2 = couple_backward(grad, hidden, z, None, vector, arranged_2, plan.second)
        grad = gate_backward(grad, first, factors_1, plan.gate)
        grad, grad_1, grad_bias_1 = product_backward(
            grad, stacked, scalars, vector, arranged_1, stack, self.size
        )
        weights = (
            plan.first_layout.restore(grad_1),
            grad_bias_1,
            plan.second_layout.restore(grad_2),
            grad_bias_2,
        )
        return stack.unstack(grad), None, None, *weights
