"""Penalties of residual streams, in closed form.

Given the statistics of its batch normalisations a stream is affine in a row x of the model's input, s(x) = A x + c, and
so are all its differences by the group,

    (L_a s)(x) = drho_out(a) s(x) - A [d/dt x under a]        rho_out(g) s(x) - s(g x),

positions included, which the group moves affinely. The sum over rows of the squared norm of an affine function follows
from the rows' mean and covariance, so that all blocks of a stream cost a few small products, however many rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from equirelax.relaxation import StreamResidual
from equirelax.relaxation.stream_maps import Affine, Moments, moments
from equirelax.relaxation.streams import stream_values
from equirelax.relaxation.terms.precision import penalty_dtype, promoted
from equirelax.symmetry import Representation

Path = tuple[StreamResidual, ...]


def stream_terms(calls: list[tuple[StreamResidual, list[Tensor]]]) -> list[tuple[Tensor, Tensor]]:
    """(Lie sum, norm sum) of each residual over its inputs, exact, differentiable by the parameters.

    Args:
        calls: residuals with what their `take_inputs` gave last, or any inputs (rows, dim) of the model, at least
            one, which are then taken to have passed the stream's blocks in order.
    """
    wanted = []
    for residual, inputs in calls:
        known = len(residual.paths) == len(inputs)
        paths = residual.paths if known else [residual.default_path()] * len(inputs)
        wanted.append(list(zip(inputs, paths, strict=True)))
    # the longest paths first: what they pass on their way is what the others ask for
    known_terms: dict[tuple[int, Path], tuple[Tensor, Tensor]] = {}
    for x, path in sorted((pair for pairs in wanted for pair in pairs), key=lambda pair: -len(pair[1])):
        if (id(x), path) not in known_terms:
            lie, norm = _along(path, x)
            for i in range(len(path)):
                known_terms[id(x), path[: i + 1]] = lie[i], norm[i]
    result = []
    for pairs in wanted:
        terms = [known_terms[id(x), path] for x, path in pairs]
        result.append((sum_of([lie for lie, _ in terms]), sum_of([norm for _, norm in terms])))
    return result


def sum_of(terms: list[Tensor]) -> Tensor:
    """Of 0-dimensional tensors, at least one."""
    return torch.stack(terms).sum()


def _along(path: Path, x: Tensor) -> tuple[Tensor, Tensor]:
    """(Lie sums, norm sums), each (residuals of the path,), over the rows x (rows, dim)."""
    x = x.to(penalty_dtype(path[0].map.norm.weight.dtype))
    rows = moments(x)
    values = stream_values(path, rows, promoted)
    maps = Affine(torch.stack([v.weight for v in values]), torch.stack([v.offset for v in values]))
    in_rep, out_rep = path[0].in_rep, path[0].out_rep
    norm = _total(maps, rows)
    lie = torch.zeros_like(norm)
    if in_rep.invariant and out_rep.invariant:
        return lie, norm
    for difference in _differences(maps, in_rep, out_rep):
        lie = lie + _total(difference, rows)
    return lie, norm


def _total(maps: Affine, rows: Moments) -> Tensor:
    """sum over rows of |A x + c|^2 for A (n, out, dim), c (n, out): (n,)."""
    mean = maps.weight @ rows.mean + maps.offset
    spread = ((maps.weight @ rows.covariance) * maps.weight).sum(dim=(1, 2)).clamp(min=0)
    return rows.size * (mean.square().sum(dim=1) + spread)


def _differences(maps: Affine, in_rep: Representation, out_rep: Representation) -> list[Affine]:
    """The affine maps whose squares are the Lie terms: one for every generator, one for every discrete element."""
    dim = in_rep.dim
    origin = maps.weight.new_zeros(1, dim)
    probes = torch.cat([origin, torch.eye(dim, dtype=origin.dtype, device=origin.device)])  # (dim + 1, dim)
    images = maps.offset[:, None] + probes @ maps.weight.transpose(1, 2)  # (n, dim + 1, out)
    found = []
    for direction, moved in zip(in_rep.derivative(probes), out_rep.derivative(images), strict=True):
        found.append(moved - direction @ maps.weight.transpose(1, 2))
    for g in in_rep.group.discrete(origin.dtype, origin.device):
        shifted = in_rep.apply(g, probes) @ maps.weight.transpose(1, 2) + maps.offset[:, None]
        found.append(out_rep.apply(g, images) - shifted)
    # from values at the probes back to weights and offsets
    return [Affine((f[:, 1:] - f[:, :1]).transpose(1, 2), f[:, 0]) for f in found]
