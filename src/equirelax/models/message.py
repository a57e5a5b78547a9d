"""The first product of a message, of both end points at once, without ever making the edges' inputs.

m_ij = [x_i, x_j, p_ij] (x) a_ij is linear in x_i and in x_j, so that channels may be mixed once per node instead of
once per edge, and only the sum of the two, and the coupling to the edge's vector, is left to do per edge.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from equirelax.models.coupling import ROOT_3, Slots, dot_into, gradients, mix


class Ends(NamedTuple):
    """Where the edges of stacked graphs begin and end, and the constant of their attributes.

    source, target: (e,) local numbers of the nodes; constant: the value of the attribute's scalar.
    """

    source: Tensor
    target: Tensor
    constant: float


def message_slots(scalars: int, vectors: int, edge_scalars: int, out: Slots) -> Slots:
    """Slots of [x_target, x_source, edge scalars]."""
    ends = ((scalars, 1), (vectors, 3)) * 2
    return Slots((*ends, (edge_scalars, 1)), out.scalars, out.vectors)


def message_product(
    x: Tensor, edge_scalars: Tensor, vector: Tensor, weight: Tensor, bias: Tensor, ends: Ends, slots: Slots
) -> Tensor:
    """x (dim, nodes, copies), edge_scalars (p, edges, copies), vector (3, edges, copies) -> (dim_out, edges copies).

    Weight and bias are those of a tensor product with the given slots, [x_target, x_source, edge scalars].
    """
    scalars = slots.inputs[0][0]
    columns = edge_scalars.shape[1] * edge_scalars.shape[2]
    w0, w1, w_edge = node_weights(weight, slots, ends.constant)
    half = slots.scalars + slots.vectors
    of_scalars = (w0.t() @ x[:scalars].flatten(1)).unflatten(1, x.shape[1:])  # (2 half, nodes, copies)
    of_vectors = mix(w1, x[scalars:].flatten(1)).unflatten(2, x.shape[1:])  # (2 half, 3, nodes, copies)
    s = of_scalars[:half].index_select(1, ends.target) + of_scalars[half:].index_select(1, ends.source)
    v = of_vectors[:half].index_select(2, ends.target) + of_vectors[half:].index_select(2, ends.source)
    s = s.flatten(1) + w_edge.t() @ edge_scalars.flatten(1)
    v = v.flatten(2)
    vector = vector.reshape(3, columns)
    out_s = s[: slots.scalars] + (v[: slots.scalars] * vector).sum(1) + bias[:, None]
    out_v = v[slots.scalars :] + s[slots.scalars :, None] * vector
    return torch.cat([out_s, out_v.flatten(0, 1)])


def node_weights(weight: Tensor, slots: Slots, constant: float) -> tuple[Tensor, Tensor, Tensor]:
    """Weights for scalars (m0, 2 half), vectors (m1, 2 half) and edge scalars (p, half), factors included.

    Columns: [to scalars, to vectors] for the target, then the same for the source; half = scalars + vectors.
    """
    (ts0, tv0), (ts1, tv1), (ss0, sv0), (ss1, sv1), (es, ev) = slots.weights(weight)
    w0 = torch.cat([ts0 * constant, tv0, ss0 * constant, sv0], dim=1)
    w1 = torch.cat([ts1 / ROOT_3, tv1 * constant, ss1 / ROOT_3, sv1 * constant], dim=1)
    return w0, w1, torch.cat([es * constant, ev], dim=1)


class MessageByHand(torch.autograd.Function):
    """`message_product` with its derivative with respect to features, weight and bias written out.

    Other derivatives, and derivatives of derivatives, are taken from `message_product`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        edge_scalars: Tensor,
        vector: Tensor,
        weight: Tensor,
        bias: Tensor,
        ends: Ends,
        slots: Slots,
    ) -> Tensor:
        x, edge_scalars = x.contiguous(), edge_scalars.contiguous()
        scalars, (n_s, n_v) = slots.inputs[0][0], slots[1:]
        half, (nodes, copies) = n_s + n_v, x.shape[1:]
        edges = edge_scalars.shape[1]
        a = vector.reshape(3, edges * copies)
        w0, w1, w_edge = node_weights(weight, slots, ends.constant)
        of_scalars = (w0.t() @ x[:scalars].view(-1, nodes * copies)).view(2 * half, nodes, copies)
        of_vectors = (w1.t() @ x[scalars:].view(-1, 3 * nodes * copies)).view(2 * half * 3, nodes, copies)
        s = of_scalars[:half].index_select(1, ends.target)
        s.add_(of_scalars[half:].index_select(1, ends.source))
        s = s.view(half, edges * copies).addmm_(w_edge.t(), edge_scalars.view(-1, edges * copies))
        v = of_vectors[: 3 * half].index_select(1, ends.target)
        v.add_(of_vectors[3 * half :].index_select(1, ends.source))
        v = v.view(half, 3, edges * copies)
        out = x.new_empty(n_s + 3 * n_v, edges * copies)
        out_s = out[:n_s]
        torch.add(s[:n_s], bias[:, None], out=out_s)
        for i in range(3):
            out_s.addcmul_(v[:n_s, i], a[i])
        torch.addcmul(v[n_s:], s[n_s:, None], a, out=out[n_s:].view(n_v, 3, edges * copies))
        ctx.save_for_backward(x, edge_scalars, vector, weight, bias)
        ctx.ends, ctx.slots = ends, slots
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, edge_scalars, vector, weight, bias = ctx.saved_tensors
        ends, slots = ctx.ends, ctx.slots
        if torch.is_grad_enabled() or ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:

            def formula(*inputs: Tensor) -> Tensor:
                return message_product(*inputs, ends, slots)

            found = gradients(formula, (x, edge_scalars, vector, weight, bias), ctx.needs_input_grad, grad)
            return *found, None, None

        grad = grad.contiguous()
        scalars, (n_s, n_v) = slots.inputs[0][0], slots[1:]
        half, (nodes, copies) = n_s + n_v, x.shape[1:]
        edges = edge_scalars.shape[1]
        a = vector.reshape(3, edges * copies)
        grad_s, grad_v = grad[:n_s], grad[n_s:].view(n_v, 3, edges * copies)
        # what is not already in grad: of the scalars that become vectors, of the vectors that become scalars
        grad_t = dot_into(x.new_empty(n_v, edges * copies), grad_v, a)
        grad_d = grad_s[:, None] * a
        of_scalars = x.new_zeros(2 * half, nodes, copies)
        of_vectors = x.new_zeros(2 * half * 3, nodes, copies)
        for i, index in enumerate((ends.target, ends.source)):
            s, v = of_scalars[i * half : (i + 1) * half], of_vectors[3 * i * half : 3 * (i + 1) * half]
            s[:n_s].index_add_(1, index, grad_s.view(n_s, edges, copies))
            s[n_s:].index_add_(1, index, grad_t.view(n_v, edges, copies))
            v[: 3 * n_s].index_add_(1, index, grad_d.view(3 * n_s, edges, copies))
            v[3 * n_s :].index_add_(1, index, grad_v.view(3 * n_v, edges, copies))
        of_scalars = of_scalars.view(2 * half, nodes * copies)
        of_vectors = of_vectors.view(2 * half, 3 * nodes * copies)

        w0, w1, _ = node_weights(weight, slots, ends.constant)
        x0, x1 = x[:scalars].view(-1, nodes * copies), x[scalars:].view(-1, 3 * nodes * copies)
        grad_x = torch.empty_like(x)
        torch.mm(w0, of_scalars, out=grad_x[:scalars].view(x0.shape))
        torch.mm(w1, of_vectors, out=grad_x[scalars:].view(x1.shape))
        edge = edge_scalars.view(-1, edges * copies)
        grad_edge = (edge @ grad_s.t(), edge @ grad_t.t())
        grad_weight = _weight_gradient(x0 @ of_scalars.t(), x1 @ of_vectors.t(), grad_edge, weight, ends, slots)
        return grad_x, None, None, grad_weight, grad_s.sum(1), None, None


def _weight_gradient(
    w0: Tensor, w1: Tensor, edge: tuple[Tensor, Tensor], weight: Tensor, ends: Ends, slots: Slots
) -> Tensor:
    """From the gradients of `node_weights` to that of the flat weight."""
    sizes = [slots.scalars, slots.vectors] * 2
    ts0, tv0, ss0, sv0 = w0.split(sizes, dim=1)
    ts1, tv1, ss1, sv1 = w1.split(sizes, dim=1)
    grads = [(ts0, tv0), (ts1, tv1), (ss0, sv0), (ss1, sv1), edge]
    grad_weight = torch.empty_like(weight)
    for (to_s, to_v), (g_s, g_v), (_, dim) in zip(slots.weights(grad_weight), grads, slots.inputs, strict=True):
        torch.mul(g_s, ends.constant if dim == 1 else 1 / ROOT_3, out=to_s)
        torch.mul(g_v, 1.0 if dim == 1 else ends.constant, out=to_v)
    return grad_weight
