"""`relax`: put a placement's residuals on a model, without editing it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from equirelax.errors import PlacementError, RelaxationStateError
from equirelax.relaxation.ahead import AheadResidual
from equirelax.relaxation.captured import CapturingResidual, capture_inputs
from equirelax.relaxation.maps import Dense, ResidualKind
from equirelax.relaxation.placements import Layers, get
from equirelax.relaxation.placements.placement import Placed, Placement
from equirelax.relaxation.relaxation import PLACEMENT, Relaxation
from equirelax.relaxation.residual import Residual
from equirelax.relaxation.stream_maps import StreamMap
from equirelax.relaxation.streams import StreamResidual, link

CHILD = "equirelax_residual"


def relax(
    model: nn.Module,
    placement: Placement | str | None = None,
    *,
    residual: ResidualKind | None = None,
    include: tuple[str, ...] | list[str] | str | None = None,
    exclude: tuple[str, ...] | list[str] | str = (),
    generator: torch.Generator | None = None,
) -> Relaxation:
    """Add a residual `gamma f_neq` to layers of a model, in place (CR section 4, ACE section 3.1).

    The model keeps its class, its forward and its keys; a residual lives at `<path>.equirelax_residual`.
    Strengths are 0 until a method (or `Relaxation.set_gamma`) sets them, so the model's outputs do not change
    yet. Create optimizers afterwards.

    Args:
        model: any module, built and not yet relaxed, compiled, scripted or wrapped for parallel training.
        placement: a `Placement`, the name of a registered one ("layers", "segnn-cr", ...),
            or None for `Layers` with the keywords below.
        residual: what residuals are made of (None: `Dense()`, initialised to zeros).
        include, exclude: path patterns ("encoder.*"); one that matches nothing is an error.
        generator: for the residuals' initial weights; None uses torch's global one.

    Returns:
        The handle over the residuals; `print(relaxation.summary())` says what was touched, and why.

    Raises:
        RelaxationStateError: for a model that is relaxed, compiled, scripted or wrapped already.
        PlacementError: where nothing can be relaxed, or a pattern matches nothing.

    Examples:
        >>> import torch, equirelax as er
        >>> from e3nn import o3
        >>> layer = o3.Linear("4x0e+2x1o", "4x0e+2x1o")
        >>> relaxation = er.relax(layer)
        >>> relaxation[""].map.weight.shape
        torch.Size([10, 10])
    """
    _refuse(model)
    chosen = _choose(placement, residual, include, exclude)
    survey = chosen.survey(model)
    made = [(placed, _build(model, placed, generator)) for placed in survey.placed]
    for placed, built in made:
        _attach(model, placed, built)
    link(model, [built for _, built in made])
    capture_inputs(model, [built for _, built in made])
    model.__dict__[PLACEMENT] = chosen
    return Relaxation(model)


def relaxation_of(model: nn.Module) -> Relaxation:
    """The handle of a model that is relaxed: of a copy, an unpickled one, or one inside another module.

    Raises:
        RelaxationStateError: where the model is not relaxed.
    """
    return Relaxation(model)


def _choose(
    placement: Placement | str | None,
    residual: ResidualKind | None,
    include: tuple[str, ...] | list[str] | str | None,
    exclude: tuple[str, ...] | list[str] | str,
) -> Placement:
    if placement is None:
        included = (include,) if isinstance(include, str) else include
        excluded = (exclude,) if isinstance(exclude, str) else exclude
        return Layers(None if included is None else tuple(included), tuple(excluded), residual or Dense())
    if residual is not None or include is not None or exclude:
        raise PlacementError(
            "residual, include and exclude belong to the default placement; give them to your placement "
            "instead"
        )
    return get(placement) if isinstance(placement, str) else placement


def _refuse(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise PlacementError(f"relax expects a torch.nn.Module, not a {type(model).__name__}")
    name = type(model).__name__
    if any(isinstance(m, Residual) for m in model.modules()):
        raise RelaxationStateError(
            f"{name} is relaxed already: use equirelax.relaxation_of(model) to reach its residuals, or "
            f"equirelax.project(model) first"
        )
    if isinstance(model, torch._dynamo.eval_frame.OptimizedModule):
        raise RelaxationStateError(
            f"{name} is compiled: relax the module first and call torch.compile on the relaxed one"
        )
    if isinstance(model, (DistributedDataParallel, DataParallel)):
        raise RelaxationStateError(
            f"{name} is wrapped for parallel training: relax the module inside it first, and wrap it "
            f"afterwards"
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise RelaxationStateError(
            f"{name} is a script module, whose forward cannot be hooked: relax the eager module"
        )


def _build(model: nn.Module, placed: Placed, generator: torch.Generator | None) -> Residual:
    site = placed.site
    if site.in_rep.dim == 0 or site.out_rep.dim == 0:
        raise PlacementError(
            f"{site.key}: a residual from {site.in_rep.dim} to {site.out_rep.dim} features makes no sense; "
            f"exclude it"
        )
    if site.convolution is None:
        built = placed.kind.build(site.in_rep, site.out_rep, site.feature_axis, generator)
    else:
        built = placed.kind.build_convolution(site.in_rep.dim, site.out_rep.dim, site.convolution, generator)
    reference = _reference(model, model.get_submodule(site.path))
    if bool(site.stream) is not isinstance(built, StreamMap):
        raise PlacementError(
            f"{site.key}: a {type(placed.kind).__name__} makes a {type(built).__name__}; a residual stream is made "
            f"of StreamStep, and nothing else is"
        )
    if isinstance(built, StreamMap):
        residual: Residual = StreamResidual(site, built, reference)
    elif site.adds_to is not None:
        residual = AheadResidual(site, built, reference)
    elif site.captured is not None:
        residual = CapturingResidual(site, built, reference)
    else:
        residual = Residual(site, built, reference)
    residual.train(model.get_submodule(site.path).training)
    return residual


def _reference(model: nn.Module, module: nn.Module) -> Tensor | None:
    """A floating-point tensor of the module, else of the model: the residual takes its dtype and device."""
    for owner in (module, model):
        for tensor in (*owner.parameters(), *owner.buffers()):
            if tensor.is_floating_point():
                return tensor
    return None


def host_of(module: nn.Module) -> nn.Module:
    """The module that owns the residual: the relaxed one, or,
    where that runs its children in order, the last one inside it.
    """
    while isinstance(module, (nn.Sequential, nn.ModuleList)):
        children = list(module.children())
        if not children:
            raise PlacementError(f"an empty {type(module).__name__} cannot be relaxed; exclude it")
        module = children[-1]
    return module


def _attach(model: nn.Module, placed: Placed, residual: Residual) -> None:
    module = model.get_submodule(placed.site.path)
    host = host_of(module)
    name = CHILD if not placed.site.slot else f"{CHILD}_{placed.site.slot}"
    if host is not module:
        depth = sum(1 for m in module.modules() if m is not host and host in m.modules())
        name += f"_outer{depth}"
    if hasattr(host, name):
        raise PlacementError(
            f"{placed.site.key}: its module has a residual {name!r} already; give one of them another slot"
        )
    host.add_module(name, residual)
    module.register_forward_hook(residual.hook, with_kwargs=True)
    if isinstance(residual, AheadResidual):
        model.get_submodule(str(residual.site.adds_to)).register_forward_pre_hook(
            residual.add_ahead, with_kwargs=True
        )


def detach_all(relaxation: Relaxation) -> None:
    """Remove every residual and every hook: the model is the author's own again."""
    residuals = set(relaxation.residuals.values())
    owners: set[Any] = residuals | {r.stream for r in residuals if isinstance(r, StreamResidual)}
    owners |= {r.capture for r in residuals if isinstance(r, CapturingResidual)}
    for module in list(relaxation.model.modules()):
        _unhook(module, owners)
        for name, child in list(module.named_children()):
            if child in residuals:
                delattr(module, name)
    del relaxation.root.__dict__[PLACEMENT]


def _unhook(module: nn.Module, owners: set[Any]) -> None:
    """Remove a module's hooks that are methods of `owners`."""
    for hooks, marks in (
        (module._forward_hooks, (module._forward_hooks_with_kwargs, module._forward_hooks_always_called)),
        (module._forward_pre_hooks, (module._forward_pre_hooks_with_kwargs,)),
    ):
        for key, hook in list(hooks.items()):
            if getattr(hook, "__self__", None) in owners:
                del hooks[key]
                for mark in marks:
                    mark.pop(key, None)
