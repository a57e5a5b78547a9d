"""The span of the maps that a layer can express, by brute force, as a slow reference for every family's fold."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from equirelax.auditing.samples import leaves, map_tree
from equirelax.relaxation import Relaxation, Residual
from equirelax.relaxation.columns import dense
from equirelax.relaxation.sites import GridSite


def call_of(relaxation: Relaxation, key: str, run: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of the first call of the residual's module while ``run()`` runs."""
    module = relaxation.module(key)
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    handle = module.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True
    )
    try:
        with torch.no_grad():
            run()
    finally:
        handle.remove()
    return calls[0]


def brute_force_span(
    module: nn.Module, residual: Residual, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Tensor:
    """Compute an orthonormal basis of the dense maps of its first input that the module's parameters can express.

    Each parameter entry in turn is set to 1 and all others to 0. The module's output for the given call is then a
    combination of the outputs of the residual with one entry of its weight set to 1. This makes no assumptions about
    layouts, path weights or coefficients. It needs a call with more rows than the input has features, and a module that is
    linear in its parameters and, given the call's other arguments, in its first positional input. That input is replaced by
    random numbers, since the rows of the call may be linearly dependent.

    Returns:
        The basis, (b, out_dim, in_dim); for a convolution a basis of kernels, (b, out_dim, in_dim, k, k).
    """
    generator = torch.Generator().manual_seed(3)
    drawn = map_tree(
        args[0], None, lambda leaf: torch.randn(leaf.value.shape, generator=generator, dtype=leaf.value.dtype)
    )
    args = (drawn, *args[1:])
    with torch.no_grad():
        off = residual.enabled
        residual.enabled = False
        own = [p for name, p in module.named_parameters() if not name.startswith("equirelax_residual")]
        saved = [p.clone() for p in own]
        try:
            zero = _with(own, None, module, args, kwargs)
            made = [
                flat(_with(own, (i, k), module, args, kwargs)) - flat(zero)
                for i, p in enumerate(own)
                for k in range(p.numel())
            ]
        finally:
            for parameter, value in zip(own, saved, strict=True):
                parameter.copy_(value)
            residual.enabled = off
        probes = _probes(residual, zero, args, kwargs)
    columns = torch.stack(made, dim=1)  # (entries, parameters)
    weights = torch.linalg.lstsq(probes, columns, driver="gelsd").solution
    # A bias is not a map of the input: maps that the probes cannot express are left out.
    fits = (probes @ weights - columns).norm(dim=0) < 1e-9 * columns.norm(dim=0).clamp_min(1e-12)
    u, values, _ = torch.linalg.svd(weights[:, fits], full_matrices=False)
    rank = int((values > 1e-9 * values.max()).sum()) if len(values) else 0
    return u[:, :rank].T.reshape(rank, *weight_shape(residual))


def _with(
    own: list[nn.Parameter],
    entry: tuple[int, int] | None,
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """The module's output, a tensor or a tree of tensors, with all parameters 0 except one entry."""
    for parameter in own:
        parameter.zero_()
    if entry is not None:
        own[entry[0]].view(-1)[entry[1]] = 1.0
    return module(*args, **kwargs)


def _probes(residual: Residual, zero: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The output that each entry of a dense residual's weight adds: (output entries, entries of the weight)."""
    x = dense(residual.site.read(args, kwargs))
    shape = weight_shape(residual)
    columns = []
    for entry in range(shape.numel()):
        weight = x.new_zeros(shape.numel())
        weight[entry] = 1.0
        delta = applied(residual, weight.view(shape), x)
        columns.append(flat(residual.site.add(zeros(zero), delta)))
    return torch.stack(columns, dim=1)


def weight_shape(residual: Residual) -> torch.Size:
    """The shape of a dense residual's weight: (out_dim, in_dim), or (out_dim, in_dim, k, k) for a convolution."""
    out_dim, in_dim = residual.out_rep.dim, residual.in_rep.dim
    if isinstance(residual.site, GridSite):
        return torch.Size(residual.site.convolution.weight_shape(in_dim, out_dim))
    return torch.Size((out_dim, in_dim))


def applied(residual: Residual, weight: Tensor, x: Tensor) -> Tensor:
    """Apply a dense weight to the input of the residual."""
    if isinstance(residual.site, GridSite):
        return residual.site.convolution(x, weight)
    return nn.functional.linear(x, weight) if residual.feature_axis == -1 else torch.matmul(weight, x)


def flat(tree: Any) -> Tensor:
    """Concatenate the entries of all floating tensors of a tree, in order: (entries,)."""
    return torch.cat([leaf.value.flatten() for leaf in leaves(tree, None) if leaf.measurable])


def zeros(tree: Any) -> Any:
    """A tree of the same shape with zero tensors."""
    return map_tree(tree, None, lambda leaf: torch.zeros_like(leaf.value))
