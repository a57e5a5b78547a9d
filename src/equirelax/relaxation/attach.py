"""`relax`: add a placement's residuals to a model without editing it."""

from __future__ import annotations

import importlib
from collections.abc import Collection, Iterator

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from equirelax.errors import PlacementError, RelaxationStateError
from equirelax.relaxation.across import share
from equirelax.relaxation.entries import CHILD, PLACEMENT, roots, take_off
from equirelax.relaxation.hooks import guard_hooks
from equirelax.relaxation.kinds import ResidualKind
from equirelax.relaxation.placements import Layers, get
from equirelax.relaxation.placements.placement import Placed, Placement
from equirelax.relaxation.relaxation import Relaxation, unwrapped
from equirelax.relaxation.residual import Residual, make_residual
from equirelax.settings import shown

CONTAINERS = (nn.Sequential, nn.ModuleList)
"""Containers that run all of their children, so that a residual cannot be a direct child."""


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
    yet. Create optimizers after this call.

    Args:
        model: any module that is built and not yet relaxed, compiled, scripted or wrapped for parallel training.
        placement: a `Placement`, the name of a registered one ("layers"; the laboratory registers others, such as "segnn-cr",
            when `equirelax_lab.placements` is imported), or None for `Layers` with the keywords below.
        residual: The kind of the residuals. None uses `Dense()`, initialised to zeros, or the kind that a known network
            declares.
        include, exclude: path patterns ("encoder.*") or names of classes. A pattern that matches nothing is an error.
        generator: Random number generator for the residuals' initial weights. None uses torch's global generator.

    Returns:
        The handle over the residuals. `print(relaxation.summary())` shows which modules were relaxed, and why.

    Raises:
        RelaxationStateError: the model is already relaxed, compiled, scripted or wrapped.
        PlacementError: nothing can be relaxed, a pattern matches nothing, or `placement` or `residual` is not one.

    Examples:
        >>> import torch, equirelax as er
        >>> from e3nn import o3
        >>> layer = o3.Linear("4x0e+2x1o", "4x0e+2x1o")
        >>> relaxation = er.relax(layer)
        >>> relaxation[""].map.weight.shape
        torch.Size([10, 10])
    """
    _refuse(model)
    return attach(model, _choose(placement, residual, include, exclude), generator=generator)


def attach(
    model: nn.Module,
    placement: Placement,
    left_out: Collection[str] = (),
    generator: torch.Generator | None = None,
) -> Relaxation:
    """Add a placement's residuals to a model.

    Args:
        model: As for `relax`.
        placement: chooses the residuals.
        left_out: keys of residuals to leave out, such as those that were pruned before the model was saved.
        generator: Random number generator for the residuals' initial weights.

    Raises:
        PlacementError: the placement chooses two residuals with one key, or a module that cannot hold one. As with any
            error, the model is left as it was.
    """
    _refuse(model)
    survey = placement.survey(model)
    keys = [placed.site.key for placed in survey.placed]
    if twice := sorted({key for key in keys if keys.count(key) > 1}):
        raise PlacementError(
            f"{twice[0]}: the placement puts two residuals there; give one of them another slot"
        )
    made = [
        (placed, _build(model, placed, generator))
        for placed in survey.placed
        if placed.site.key not in left_out
    ]
    try:
        for placed, built in made:
            _attach(model, placed, built)
        share(model, [built for _, built in made])
    except BaseException:
        take_off(model, [built for _, built in made])
        raise
    model.__dict__[PLACEMENT] = placement
    # This import takes seconds, but an optimizer imports the module anyway.
    importlib.import_module("torch._dynamo")
    guard_hooks(compiled_before=True)
    return Relaxation(model)


def relaxation_of(model: nn.Module) -> Relaxation:
    """The handle over all residuals inside a model.

    The model may be a copy, an unpickled model, a part of a relaxed model, or a module that contains parts relaxed one by
    one.

    Raises:
        RelaxationStateError: the model is not relaxed, or a residual inside belongs to a module around it.
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
        return Layers(None if included is None else tuple(included), tuple(excluded), residual)
    if residual is not None or include is not None or exclude:
        raise PlacementError(
            "residual, include and exclude belong to the default placement; give them to your placement "
            "instead"
        )
    if isinstance(placement, str):
        return get(placement)
    if not isinstance(placement, Placement):
        raise PlacementError(
            f"relax: the placement is {shown(placement)}; expected a Placement such as equirelax.Layers(...), or the name of "
            f"one. Give a kind of residual by keyword, relax(model, residual=...), and declarations to the placement, "
            f"Layers(declare=(...))"
        )
    return placement


def _refuse(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise PlacementError(f"relax expects a torch.nn.Module, not a {type(model).__name__}")
    name = type(model).__name__
    if any(isinstance(m, Residual) for m in model.modules()):
        parts = [path for path in roots(model) if path]
        raise RelaxationStateError(
            f"{name} holds a relaxed part already ({', '.join(parts)}): relax its other parts one by one, such as "
            f"equirelax.relax(model.decoder), and reach all of them by equirelax.relaxation_of(model); or call "
            f"equirelax.project(model) first and relax the whole"
            if parts
            else f"{name} is relaxed already: use equirelax.relaxation_of(model) to reach its residuals, or "
            f"equirelax.project(model) first"
        )
    if unwrapped(model) is not model and not isinstance(model, (DistributedDataParallel, DataParallel)):
        raise RelaxationStateError(
            f"{name} is compiled: relax the module first and call torch.compile on the relaxed one"
        )
    if isinstance(model, (DistributedDataParallel, DataParallel)):
        raise RelaxationStateError(
            f"{name} is wrapped for parallel training: relax the module inside it first, and wrap it in "
            f"DistributedDataParallel afterwards. DataParallel is not supported: its copies on other GPUs would call the "
            f"residuals of the first one"
        )
    traced = next((m for m in model.modules() if getattr(m, "is_compile_graph_model", False)), None)
    if traced is not None:  # it keeps the code of its first call, whatever hooks are added or removed
        raise RelaxationStateError(
            f"{name} holds a {type(traced).__name__}, which NequIP builds with compile_mode: compile and which would always run "
            f"the code of its first call, with residuals or without: build it with compile_mode: eager"
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
    module = model.get_submodule(site.path)
    residual = make_residual(site, site.build(placed.kind, generator), _reference(model, module))
    residual.train(module.training)
    return residual


def _reference(model: nn.Module, module: nn.Module) -> Tensor | None:
    """A floating-point tensor of the module, else of the model: the residual takes its dtype and device."""
    for owner in (module, model):
        for tensor in (*owner.parameters(), *owner.buffers()):
            if tensor.is_floating_point():
                return tensor
    return None


def host_of(model: nn.Module, module: nn.Module) -> nn.Module:
    """The module that owns the residual.

    This is the relaxed module itself. A container, which runs its children, cannot own one: then it is the last module
    inside, preferably one that is not used elsewhere in the model.
    """
    if not isinstance(module, CONTAINERS):
        return module
    inside = list(_run_by(module))
    if not inside:
        raise PlacementError(f"an empty {type(module).__name__} cannot be relaxed; exclude it")
    names: dict[nn.Module, list[str]] = {}
    for path, one in model.named_modules(remove_duplicate=False):
        names.setdefault(one, []).append(path)
    above = tuple(f"{path}." if path else "" for path in names[module])
    alone = [one for one in inside if all(path.startswith(above) for path in names[one])]
    return (alone or inside)[-1]


def _run_by(module: nn.Module) -> Iterator[nn.Module]:
    """The modules that a container, or a container inside it, runs."""
    for child in module.children():
        if isinstance(child, CONTAINERS):
            yield from _run_by(child)
        else:
            yield child


def _attach(model: nn.Module, placed: Placed, residual: Residual) -> None:
    module = model.get_submodule(placed.site.path)
    host = host_of(model, module)
    if isinstance(host, torch.jit.ScriptModule):
        raise PlacementError(
            f"{placed.site.key} ({type(module).__name__}): a script module cannot hold a residual; exclude it"
        )
    name = CHILD if not placed.site.slot else f"{CHILD}_{placed.site.slot}"
    if host is not module:
        depth = sum(1 for m in module.modules() if m is not host and host in m.modules())
        name += f"_outer{depth}"
    while hasattr(host, name):
        name += "_"
    host.add_module(name, residual)
    residual.hook_up(model)
