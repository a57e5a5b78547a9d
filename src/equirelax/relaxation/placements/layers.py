"""The default placement: a residual on every layer that a family knows or that the user declares."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from equirelax.errors import PlacementError
from equirelax.relaxation.entries import own_modules
from equirelax.relaxation.kinds import Dense, ResidualKind
from equirelax.relaxation.layers import Skip, families
from equirelax.relaxation.layers.family import families_of
from equirelax.relaxation.networks import Recognised, recognised
from equirelax.relaxation.placements.declarations import Constant, Declaration, declared_paths
from equirelax.relaxation.placements.placement import (
    Placed,
    Placement,
    Survey,
    register_placement,
    with_starts,
)
from equirelax.relaxation.placements.suggestions import suggestions
from equirelax.relaxation.products import ProductSite
from equirelax.relaxation.sites import Site
from equirelax.relaxation.spec import spec
from equirelax.relaxation.summary import SKIPPED, UNKNOWN

EXCLUDED = "excluded by a pattern"
INVARIANT = "maps invariants to invariants, where there is no equivariance to relax"


@spec("layers")
@dataclass(frozen=True)
class Layers(Placement):
    """A residual on every supported layer.

    Args:
        include: path patterns or names of classes, or a single one; None takes every layer. It is an error if one names no
            module.
        exclude: path patterns or names of classes to leave out. Layers inside an excluded one are considered separately.
        residual: The kind of the residuals. None uses `Dense()`, or the kind that a known network declares.
        declare: `Linear` declarations, for modules that no family recognises, or that are to be relaxed differently.
        constants: `Constant` declarations.
        overrides: (path pattern or class, the kind of residual to use there instead of `residual`). The first match counts.
    """

    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()
    residual: ResidualKind | None = None
    declare: tuple[Declaration, ...] = ()
    constants: tuple[Constant, ...] = ()
    overrides: tuple[tuple[str, ResidualKind], ...] = ()

    def __post_init__(self) -> None:
        for name in ("include", "exclude", "declare", "constants"):
            given = getattr(self, name)
            if isinstance(
                given, str | Declaration | Constant
            ):  # a single value: the letters of a string are not patterns
                object.__setattr__(self, name, (given,))

    def survey(self, model: nn.Module) -> Survey:
        """Choose the layers to relax.

        A declaration takes precedence over a known network, and a known network over a layer family. Of nested modules that
        could be relaxed, the outermost is. If it is excluded, not included or refused, its children are considered.
        """
        modules = own_modules(model)
        included = None if self.include is None else named_paths(self.include, modules, "include")
        excluded = named_paths(self.exclude, modules, "exclude")
        declared = {
            p: d for d in reversed(self.declare) for p in declared_paths(modules, d.target, type(d).__name__)
        }
        overrides = [
            (named_paths((pattern,), modules, "overrides"), residual) for pattern, residual in self.overrides
        ]
        constants = [(declared_paths(modules, c.target, "Constant"), c) for c in self.constants]
        networks = recognised(modules)
        placed: list[Placed] = []
        left: dict[str, tuple[str, str]] = {}
        taken: list[tuple[str, Recognised | None]] = []
        for path, module in modules:
            inside = f"{path}." if path else ""
            network = next((each for each in networks if each.holds(path)), None)
            known = network is not None and path in network.sites and path not in declared
            around = [by for prefix, by in taken if path.startswith(prefix)]
            if around and not (known and all(by is network for by in around)):
                continue  # part of a relaxed module; only a known network's residuals may be nested
            found: tuple[Site, ...] | Site | Skip | None
            try:
                if path in declared:
                    found = declared[path].site(path, module)
                elif network is not None and known:
                    able = tuple(site for site in network.sites[path] if site.can_break)
                    found = able or Skip(INVARIANT)
                else:
                    found = family_site(path, module)
            except PlacementError:
                if path not in excluded:
                    raise
                found = Skip(EXCLUDED)
            if found is None:
                if included is not None and self.include is not None and path in self.include:
                    left[path] = (
                        UNKNOWN,
                        "included by name, but no layer family knows it and nothing declares it",
                    )
                continue
            if isinstance(found, Skip):
                left[path] = (SKIPPED, found.reason)
            elif path in excluded:
                left[path] = (SKIPPED, EXCLUDED)
            elif included is not None and path not in included:
                left[path] = (SKIPPED, "not included by any pattern")
            elif path not in declared and any(p != path and p.startswith(inside) for p in declared):
                left[path] = (SKIPPED, "a module inside it is declared")
            elif (
                network is not None
                and included is None
                and path not in network.sites
                and path not in declared
            ):
                left[path] = (
                    SKIPPED,
                    f"not relaxed in a {network.name}; include it by name to relax it anyway",
                )
            else:
                fixed = tuple((c.channel, float(c.value)) for where, c in constants if path in where)
                kind = next((residual for where, residual in overrides if path in where), self.residual)
                if kind is None:
                    kind = (network.kind if network is not None and known else None) or Dense()
                for site in (found,) if isinstance(found, Site) else found:
                    if fixed and isinstance(site, ProductSite):
                        site = site.with_constants(fixed)
                    placed.append(Placed(site, kind))
                taken.append((inside, network if known else None))
        self._check_exclusions(modules, [each.site.path for each in placed], left)
        if not placed:
            raise PlacementError(_nothing(model, left, included))
        return Survey(with_starts(placed), left)

    def _check_exclusions(
        self, modules: list[tuple[str, nn.Module]], placed: list[str], left: dict[str, tuple[str, str]]
    ) -> None:
        """Check that no excluded module is relaxed anyway, as a part of another module or through its own parts.

        Raises:
            PlacementError: an exclusion names only modules that contain relaxed layers or are inside one.
        """
        known = dict(modules)
        for target in self.exclude:
            hits = declared_paths(modules, target, "exclude")
            if hits & set(left):
                continue
            for hit in sorted(hits):
                inner = next((path for path in placed if path.startswith(f"{hit}.")), None)
                outer = next((path for path in placed if hit.startswith(f"{path}.") or not path), None)
                if inner is not None:
                    raise PlacementError(
                        f"exclude: {hit} ({type(known[hit]).__name__}) is not relaxed itself, but {inner} inside it is; to "
                        f"leave out everything inside, exclude {f'{hit}.*'!r}"
                    )
                if outer is not None and family_site(hit, known[hit]) is not None:
                    raise PlacementError(
                        f"exclude: {hit} ({type(known[hit]).__name__}) lies inside {outer or 'the model'}, which is relaxed as "
                        f"one layer; exclude {outer!r} instead"
                    )


def named_paths(targets: Iterable[str], modules: list[tuple[str, nn.Module]], what: str) -> set[str]:
    """Find the paths of the modules that any of the targets names; see `declared_paths`."""
    return {path for target in targets for path in declared_paths(modules, target, what)}


def family_site(path: str, module: nn.Module) -> Site | Skip | None:
    """The site of a module, or the reason why it has none, from the first family that knows it; None if none does."""
    family = next(families_of(module), None)
    if family is None:
        return None
    if isinstance(module, torch.jit.ScriptModule):
        return Skip("a script module, which cannot hold a residual")
    site = family.site(path, module)
    return Skip(INVARIANT) if isinstance(site, Site) and not site.can_break else site


def _nothing(model: nn.Module, left: dict[str, tuple[str, str]], included: set[str] | None) -> str:
    modules = own_modules(model)
    kinds = sorted({type(m).__name__ for _, m in modules if any(True for _ in m.parameters(recurse=False))})
    skipped = "; ".join(f"{path or 'the model'}: {reason}" for path, (_, reason) in list(left.items())[:5])
    lines = suggestions(modules)
    return (
        f"nothing to relax in {type(model).__name__}: no {'included ' if included is not None else ''}module belongs to a "
        f"layer family ({', '.join(families())}) or a known network{f' [{skipped}]' if skipped else ''}. Modules with "
        f"parameters are {', '.join(kinds) or 'none'}. Say how they transform in Layers(declare=Linear(...)), or give a "
        f"placement{'' if included is None else ', or widen include'}{': one of' if lines else ''}"
        + "".join(f"\n    {line}" for line in lines)
    )


register_placement("layers", Layers)
