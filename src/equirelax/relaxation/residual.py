"""The relaxed layer: `f(x) = f_eq(x) + gamma f_neq(x)` (CR section 4, ACE section 3.1).

A `Residual` owns `f_neq` and gamma. It is a child of the layer that it relaxes and a forward hook of
it, so that the layer keeps its class, its forward and its keys; both deepcopy and pickle carry the
hook along, bound to the copy.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from equirelax.errors import EquirelaxWarning, PenaltyError, RepresentationError
from equirelax.relaxation.columns import Columns, SharedColumns, dense
from equirelax.relaxation.constants import Seen
from equirelax.relaxation.hooks import HookOwner
from equirelax.relaxation.kept import Kept, in_backward, in_transform, keep
from equirelax.relaxation.kinds.kind import LinearMap, Penalised, ResidualMap, Rule, Slope
from equirelax.relaxation.site import Site
from equirelax.relaxation.terms.precision import promoted
from equirelax.symmetry import Representation


class Shared(HookOwner):
    """What several residuals of a model share, such as an input that is captured for all of them.

    Attributes:
        members: those residuals, in the model's order.
    """

    members: list[Any]


class Residual(nn.Module, HookOwner):
    """`gamma * map(x)`, added to a module's output.

    Args:
        site: where it attaches and how it reads and writes.
        map: the unconstrained map, called as `map(x, scale)`.
        reference: a tensor whose dtype and device the residual takes.

    Attributes:
        gamma: strength, a parameter of shape (1,). A schedule or a rule sets it (`requires_grad` is False and
            `grad` is None) until `learn_gamma` (ACE) hands it to the optimizer.
        enabled: False switches the residual off; the module's output is then untouched.
        suspended: how many `Relaxation.strict` blocks it is inside of; above 0 it is off too.
        called: whether a call has reached it since a method last set it to False; see `Relaxation.after_step`.
        second_seen: values of the second input of a tensor product in calls so far.
        keep_inputs: keep the (detached) inputs of training calls for a penalty;
            methods that need them set it.
    """

    def __init__(self, site: Site, map: ResidualMap, reference: Tensor | None = None) -> None:
        super().__init__()
        self.site = site
        self.map = map
        self.gamma = nn.Parameter(torch.zeros(1), requires_grad=False)
        self.enabled = True
        self.suspended = 0
        self.called = False
        self.keep_inputs = False
        self._kept: list[Kept] = []
        self.second_seen: Seen | None = None
        self._calls = 0
        if reference is not None:
            self.to(device=reference.device, dtype=reference.dtype)

    @property
    def active(self) -> bool:
        """Whether it adds to its module's output."""
        return self.enabled and not self.suspended

    @property
    def shared(self) -> Shared | None:
        """What it shares with other residuals, hooks of its own and all; None for a residual that stands alone."""
        return None

    @property
    def in_rep(self) -> Representation:
        """How the group acts on the input."""
        return self.site.in_rep

    @property
    def out_rep(self) -> Representation:
        """How the group acts on the output."""
        return self.site.out_rep

    @property
    def feature_axis(self) -> int:
        """-1 for inputs (..., dim), -2 for (batch, dim, points), -3 for (batch, dim, H, W)."""
        return self.site.feature_axis

    @property
    def is_linear(self) -> bool:
        """Whether the map is one matrix (and bias), so that penalties work in
        weight space and it may be folded.
        """
        return isinstance(self.map, LinearMap)

    @property
    def linear_map(self) -> LinearMap:
        """The map of a residual that is linear.

        Raises:
            RepresentationError: where it is not.
        """
        if not isinstance(self.map, LinearMap):
            raise RepresentationError(
                f"{self.site.key or 'the model'}: its residual ({type(self.map).__name__}) is not linear; "
                f"ask `is_linear` first"
            )
        return self.map

    @property
    def is_learnt(self) -> bool:
        """Whether the optimizer moves gamma."""
        return self.gamma.requires_grad

    def forward(self, x: Columns) -> Tensor:
        """`gamma * map(x)` for features on the site's feature axis."""
        return self.map(x, self.gamma)

    def read(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Columns:
        """What the residual reads out of its module's call."""
        return self.site.reader(args, kwargs)

    def hook(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Forward hook of the relaxed module."""
        if not self.active:
            return None
        x = self.take(module, args, kwargs)
        return self.add(module, output, self(x))

    def take(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Columns:
        """What the residual reads out of a call, checked, in its own dtype, and kept for penalties where they ask for it.

        Raises:
            RepresentationError: the call does not have the features that the residual was placed for.
        """
        self.called = True
        self._look_at_second(module, args, kwargs)
        x = self.read(args, kwargs)
        shape = tuple(x.shape) if isinstance(x, (Tensor, SharedColumns)) else ()
        size = shape[self.feature_axis] if len(shape) >= -self.feature_axis else None
        if size != self.in_rep.dim:
            got = f"{size} in shape {shape}" if shape else f"a {type(x).__name__}"
            raise RepresentationError(
                f"{self._name(module)}: its residual was placed for {self.in_rep.dim} input features "
                f"({self.in_rep!r}) on axis {self.feature_axis}, the call has {got}. {self._mend()}"
            )
        if x.dtype != self.gamma.dtype and not torch.is_autocast_enabled(x.device.type):
            x = x.to(self.gamma.dtype)  # networks that cast inside
        if self._keeps():
            self._kept.append(keep(x))
        return x

    def _look_at_second(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Compare declared constants with the first call, and note the calls 1, 2, 4, 8, ... for `project`; where none are
        declared, note the first call, for a hint there.
        """
        site = self.site
        if site.second is None or torch.compiler.is_compiling() or in_transform():
            return
        first = self.second_seen is None
        self._calls += 1
        if not first and (not site.constants or self._calls & (self._calls - 1)):
            return
        y = dense(site.second(args, kwargs))
        if not y.numel():
            return
        self.second_seen = Seen.of(y) if self.second_seen is None else self.second_seen.and_of(y)
        if first and site.constants and (wrong := self.second_seen.contradicts(site.constants)):
            warnings.warn(
                f"{self._name(module)}: {wrong}. Its residual trains all the same, but cannot be folded: correct the Constant "
                f"in the placement, or leave it out",
                EquirelaxWarning,
                stacklevel=2,
            )

    def add(self, module: nn.Module, output: Any, delta: Tensor) -> Any:
        """The module's output with `delta` added, in the output's own shape and dtype.

        Raises:
            RepresentationError: they do not fit; nothing is ever broadcast.
        """
        wrong = self.site.writer.misfit(output, delta)
        if wrong:
            raise RepresentationError(
                f"{self._name(module)}: what its residual adds does not fit what the module gave: {wrong}. {self._mend()}"
            )
        return self.site.writer(output, delta)

    def _name(self, module: nn.Module) -> str:
        return f"{self.site.key or 'the model'} ({type(module).__name__})"

    def _mend(self) -> str:
        return (
            f"Leave the module out with exclude=({self.site.path!r},), or declare how it transforms, as in "
            f"Layers(declare=(Linear({self.site.path!r}, in_rep, out_rep),))"
        )

    def _keeps(self) -> bool:
        """Whether the call under way counts for penalties."""
        if not self.map.reads_inputs:
            return False
        if not (self.keep_inputs and self.training and torch.is_grad_enabled()):
            return False
        return not in_backward() and not in_transform()

    def take_inputs(self) -> list[Columns]:
        """The inputs kept since the last call, one tensor for every training-mode call
        with gradients; then forgets them.

        Raises:
            PenaltyError: something was written into one of them since.
        """
        kept, self._kept = self._kept, []
        if not all(one.intact for one in kept):
            raise PenaltyError(
                f"{self.site.key or 'the model'}: the features that its residual read were overwritten (by an operation in "
                f"place) before penalty() was called. Call it right after every forward, also of micro-batches, or do "
                f"not write into what the module was called with"
            )
        return [one.value for one in kept]

    @property
    def keeper(self) -> object:
        """What holds the inputs that are kept: residuals with the same keeper hold the same tensors."""
        return self

    @property
    def penalty_rule(self) -> Rule:
        """How the terms of its penalties are computed, together with those of other residuals with the same rule."""
        return self.map.penalty_rule(self.in_rep)

    def penalised(self, inputs: list[Columns], finite_difference: bool = False) -> Penalised:
        """What `penalty_rule` needs of it.

        Args:
            inputs: From `take_inputs`, or some rows of them.
            finite_difference: See `Penalised`.
        """
        return Penalised(
            promoted(self.map), inputs, self.feature_axis, self.in_rep, self.out_rep, finite_difference
        )

    def slope(self) -> Slope:
        """The Lipschitz constant of the map, without gamma."""
        return self.map.slope()

    def set_gamma(self, value: float) -> None:
        """Set the strength in place."""
        with torch.no_grad():
            self.gamma.fill_(value)

    def learn_gamma(self, initial: float = 1.0) -> None:
        """Let the optimizer move gamma, from the given value on."""
        self.gamma.requires_grad_(True)
        self.set_gamma(initial)

    def fix_gamma(self) -> None:
        """Keep gamma at its present value: no optimizer moves what has no gradient."""
        self.gamma.requires_grad_(False)
        self.gamma.grad = None

    def __getstate__(self) -> dict[str, Any]:
        # Copies and pickles of a model must not carry the batch that it last saw.
        state = self.__dict__.copy()
        state["_kept"] = []
        return state

    def extra_repr(self) -> str:
        """Shown by `print(model)`."""
        return f"{self.in_rep!r} -> {self.out_rep!r}"
