"""The relaxed layer: `f(x) = f_eq(x) + gamma f_neq(x)` (CR section 4, ACE section 3.1).

A `Residual` owns `f_neq` and gamma. It is a child of the layer that it relaxes, with hooks before and
after the layer's forward, so that the layer keeps its class, its forward and its keys. deepcopy and pickle
copy the hooks and bind them to the copy.
"""

from __future__ import annotations

import math
import sys
import threading
import weakref
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from equirelax.errors import PenaltyError, RelaxationStateError, RepresentationError
from equirelax.relaxation.columns import Columns, SharedColumns
from equirelax.relaxation.hooks import HookOwner
from equirelax.relaxation.kept import Kept, counts, keep, writes
from equirelax.relaxation.kinds.kind import LinearMap, Penalised, ResidualMap, Rule, Slope
from equirelax.relaxation.sites import Site
from equirelax.relaxation.surroundings import in_backward, in_transform
from equirelax.relaxation.terms.precision import promoted
from equirelax.symmetry import Representation

if TYPE_CHECKING:
    from equirelax.relaxation.across import Shared


class Residual(nn.Module, HookOwner):
    """`gamma * map(x)`, added to a module's output. It reads x before the module computes, which may overwrite x.

    Args:
        site: The place where it attaches, which reads and writes.
        map: the unconstrained map, called as `map(x, scale)`.
        reference: a tensor whose dtype and device the residual takes.

    Attributes:
        gamma: strength, a parameter of shape (1,). A schedule or a rule sets it (`requires_grad` is False and
            `grad` is None) until `learn_gamma` (ACE) hands it to the optimizer.
        enabled: False switches the residual off; the module's output is then untouched.
        suspended: Number of open `Relaxation.strict` blocks. Above 0 the residual is also off.
        called: Whether a call has reached it since a method last set it to False; see `Relaxation.after_step`.
        keep_inputs: Whether to keep the (detached) inputs of training calls for a penalty. Methods that need them set it.
        together: Residuals whose inputs the same penalty reads. While any of them is in training mode, calls with gradients
            count as training calls of all of them, even in a part that is in evaluation mode for its batch norms or dropout.
        mapped: Whether calls within a transform of `torch.func` also keep their inputs; see `Method.mapped`.
    """

    shared: Shared | None = None
    """The state shared with other residuals, which has its own hooks; None for a separate residual."""

    def __init__(self, site: Site, map: ResidualMap, reference: Tensor | None = None) -> None:
        super().__init__()
        self.site = site
        self.map = map
        self.gamma = nn.Parameter(torch.zeros(1), requires_grad=False)
        self.enabled = True
        self.suspended = 0
        self.called = False
        self.keep_inputs = False
        self.together: Sequence[Residual] = ()
        self.mapped = False
        self._kept: list[Kept] = []
        # thread -> the arguments of its call in progress, the input read from them, `writes` of the input, and the exception
        # that was being handled
        self._begun: dict[int, tuple[Any, ...]] = {}
        if reference is not None:
            self.to(device=reference.device, dtype=reference.dtype)

    @property
    def active(self) -> bool:
        """Whether the residual adds to its module's output."""
        return self.enabled and not self.suspended

    @property
    def dependents(self) -> Sequence[Residual]:
        """Residuals that build on this one, so that it cannot be removed without them."""
        return ()

    @property
    def adds_to(self) -> str | None:
        """Path of the module to whose input it is added; None if it is added to the output of its own module."""
        return None

    @property
    def in_rep(self) -> Representation:
        """The representation of the input."""
        return self.site.in_rep

    @property
    def out_rep(self) -> Representation:
        """The representation of the output."""
        return self.site.out_rep

    @property
    def feature_axis(self) -> int:
        """-1 for inputs (..., dim), -2 for (batch, dim, points), -3 for (batch, dim, H, W)."""
        return self.site.feature_axis

    @property
    def is_linear(self) -> bool:
        """Whether the map is one matrix (and bias), so that it has penalties in weight space and may be folded."""
        return isinstance(self.map, LinearMap)

    @property
    def linear_map(self) -> LinearMap:
        """The map of a linear residual.

        Raises:
            RepresentationError: the residual is not linear.
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

    def delta(self, x: Columns) -> Tensor:
        """Compute the added term `gamma * map(x)`, for features on the site's feature axis. No penalty sees the call."""
        return self.map(x, self.gamma)

    def forward(self, x: Columns, *others: Any, added: bool = False) -> Tensor:
        """`delta(x)`, for the residual's own hook.

        Args:
            x: The input.
            others: Further arguments, from a network that mistakes the residual for one of its layers.
            added: Whether the hook calls, which adds the result to the module's output.

        Raises:
            RelaxationStateError: The network itself calls the residual, as a module that runs all of its children does.
        """
        if not added:
            raise RelaxationStateError(
                f"{self.site.key or 'the model'}: the network calls its residual as one more layer, since the module that holds "
                f"it runs all of its children. Make that module an nn.Sequential, or leave {self.site.path!r} out of the "
                f"placement. To compute the residual's term, call residual.delta(x)"
            )
        return self.delta(x)

    def read(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Columns:
        """Read the residual's input from its module's call."""
        return self.site.read(args, kwargs)

    def hook_up(self, model: nn.Module) -> None:
        """Put the residual's hooks on the modules of the relaxed model."""
        module = model.get_submodule(self.site.path)
        module.register_forward_pre_hook(self.begin, with_kwargs=True)
        module.register_forward_hook(self.hook, with_kwargs=True, always_call=True)

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Pre-hook of the relaxed module, which reads the call.

        Later pre-hooks that replace arguments are detected. Those that replace entries of a mapping are not.
        """
        if not self.active:
            return
        x = count = None
        try:
            x = self.read(args, kwargs)
            count = writes(x) if isinstance(x, (Tensor, SharedColumns)) and not _in_shared_memory(x) else None
        except Exception:
            pass  # `hook` reads it again and reports what is wrong
        self._begun[_thread()] = (args, dict(kwargs), x, count, _error())

    def hook(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Forward hook of the relaxed module, also called when its forward raises."""
        if not self.active or self.has_failed(output):
            return None
        x = self.take(module, args, kwargs)
        return self.add(module, output, self(x, added=True))

    def has_failed(self, output: Any) -> bool:
        """Whether the call for which `hook` runs has raised, in the module or in a hook. The call is then forgotten."""
        error, begun = _error(), self._begun.get(_thread())
        if error is None or (output is not None if begun is None else error is begun[-1]):
            return False
        self._begun.pop(_thread(), None)
        return True

    def take(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Columns:
        """Check and cast the residual's input, and keep it for penalties that need it.

        Raises:
            RepresentationError: the call does not have the features for which the residual was placed.
            RelaxationStateError: the module has written into the input of the residual.
        """
        self.called = True
        x = self._read_before(module, args, kwargs)
        shape = tuple(x.shape) if isinstance(x, (Tensor, SharedColumns)) else ()
        size = shape[self.feature_axis] if len(shape) >= -self.feature_axis else None
        if size != self.in_rep.dim:
            got = f"{size} in shape {shape}" if shape else f"a {type(x).__name__}"
            raise RepresentationError(
                f"{self.name_of(module)}: its residual was placed for {self.in_rep.dim} input features "
                f"({self.in_rep!r}) on axis {self.feature_axis}, the call has {got}. {self._mend()}"
            )
        if x.dtype != self.gamma.dtype and not torch.is_autocast_enabled(x.device.type):
            x = x.to(self.gamma.dtype)  # for networks that cast internally
        if self._keeps():
            self._kept.append(keep(x))
        return x

    def _read_before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The input that `begin` read from this call."""
        begun = self._begun.pop(_thread(), None)
        if begun is None:
            return self.read(args, kwargs)
        own_args, own_kwargs, x, count, _ = begun
        if x is None or not _same(args, own_args) or not _same(kwargs.values(), own_kwargs.values()):
            return self.read(args, kwargs)
        if count is not None and count != counts(x):
            raise RelaxationStateError(
                f"{self.name_of(module)} writes into its input (an in-place operation), which its residual reads: "
                f"f(x) in y = module(x) + gamma f(x) would be of something else. Make it compute out of place, such as "
                f"nn.ReLU(inplace=False), or relax the layers inside it"
            )
        return x

    def add(self, module: nn.Module, output: Any, delta: Tensor) -> Any:
        """Return the module's output with `delta` added, in the output's shape and dtype.

        Raises:
            RepresentationError: they do not fit. Nothing is ever broadcast.
        """
        wrong = self.site.misfit(output, delta)
        if wrong:
            raise RepresentationError(
                f"{self.name_of(module)}: the term of its residual does not fit the module's output: {wrong}. {self._mend()}"
            )
        return self.site.add(output, delta)

    def name_of(self, module: nn.Module) -> str:
        """The residual's key and the class of its module, for messages."""
        return f"{self.site.key or 'the model'} ({type(module).__name__})"

    def _mend(self) -> str:
        return (
            f"Leave the module out with exclude=({self.site.path!r},), or declare how it transforms, as in "
            f"Layers(declare=(Linear({self.site.path!r}, in_rep, out_rep),))"
        )

    def _keeps(self) -> bool:
        """Whether penalties use the current call."""
        if not self.map.reads_inputs:
            return False
        if not (self.keep_inputs and torch.is_grad_enabled() and self._trains()):
            return False
        return not in_backward() and (self.mapped or not in_transform())

    def _trains(self) -> bool:
        return self.training or any(other.training for other in self.together)

    def take_inputs(self) -> list[Columns]:
        """Return the inputs kept since the last call, one tensor per training call (see `together`), and forget them.

        Raises:
            PenaltyError: one of them was written to since.
        """
        kept, self._kept = self._kept, []
        if not all(one.intact for one in kept):
            raise PenaltyError(
                f"{self.site.key or 'the model'}: the features that its residual read were overwritten (by an in-place "
                f"operation) before penalty() was called. Call it right after every forward, also of micro-batches, or do not "
                f"write into the module's inputs"
            )
        return [one.value for one in kept]

    @property
    def inputs_kept(self) -> int:
        """The number of inputs that `take_inputs` would return."""
        return len(self._kept)

    def forget_inputs(self, first: int = 0) -> None:
        """Forget the inputs kept since the last `take_inputs`, except the `first` ones, and those of calls that never ended."""
        del self._kept[first:]
        self._begun.clear()

    @property
    def keeper(self) -> object:
        """The object that holds the kept inputs. Residuals with the same keeper hold the same tensors."""
        return self

    @property
    def penalty_rule(self) -> Rule:
        """The rule by which its penalty terms are computed, together with those of other residuals with the same rule."""
        return self.map.penalty_rule(self.in_rep)

    def penalised(self, inputs: list[Columns], finite_difference: bool = False) -> Penalised:
        """The map and its inputs for `penalty_rule`.

        Args:
            inputs: The result of `take_inputs`, or some rows of it.
            finite_difference: See `Penalised`.
        """
        return Penalised(
            promoted(self.map), inputs, self.feature_axis, self.in_rep, self.out_rep, finite_difference
        )

    def slope(self) -> Slope:
        """The Lipschitz constant of the map, without gamma."""
        return self.map.slope()

    def why_not_folded(self) -> str:
        """The reason, known from its calls so far, why it must not be folded; empty if there is none."""
        return ""

    def fold_hint(self) -> str:
        """A change, suggested by its calls so far, that would make it foldable; empty if none is known."""
        return ""

    def fold_note(self) -> str:
        """A remark on its fold, for the report; empty if there is none."""
        return ""

    def set_gamma(self, value: float) -> None:
        """Set the strength in place.

        Raises:
            RelaxationStateError: The value is finite but too large for gamma's dtype.
        """
        if torch.finfo(self.gamma.dtype).max < abs(value) < math.inf:
            raise RelaxationStateError(
                f"gamma is {value:g}, which is too large for {self.gamma.dtype}: set a smaller one"
            )
        with torch.no_grad():
            self.gamma.fill_(value)

    def learn_gamma(self, initial: float = 1.0) -> None:
        """Let the optimizer move gamma, starting from the given value."""
        self.gamma.requires_grad_(True)
        self.set_gamma(initial)

    def fix_gamma(self) -> None:
        """Keep gamma at its current value, by removing its gradient so that no optimizer moves it."""
        self.gamma.requires_grad_(False)
        self.gamma.grad = None

    def __prepare_scriptable__(self) -> Residual:
        """Refuse `torch.jit.script`, which calls this on every module first.

        Raises:
            RelaxationStateError: always.
        """
        raise RelaxationStateError(
            f"{self.site.key or 'the model'}: a relaxed network cannot be scripted, because TorchScript has no hooks that read "
            f"keyword arguments. Script a projected copy (copy.deepcopy(model), then equirelax.project), or export the relaxed "
            f"one with torch.export"
        )

    def __getstate__(self) -> dict[str, Any]:
        # Copies and pickles of a model must not hold the batch that it last saw, and no method reads their inputs.
        return {**self.__dict__, "_kept": [], "keep_inputs": False, "together": (), "_begun": {}}

    def extra_repr(self) -> str:
        """Shown by `print(model)`."""
        return f"{self.in_rep!r} -> {self.out_rep!r}"


def _thread() -> int:
    """The number of the current thread; compiled code has only one."""
    return 0 if torch.compiler.is_compiling() else threading.get_ident()


def _in_shared_memory(x: Columns) -> bool:
    """Whether x is a part of a larger tensor, so that writes elsewhere in that tensor count as writes to x."""
    parts = (x.own, x.common) if isinstance(x, SharedColumns) else (x,)
    return not torch.compiler.is_compiling() and any(part._is_view() for part in parts)


def _error() -> BaseException | None:
    """The exception that is being handled; None in compiled code, which handles none."""
    return None if torch.compiler.is_compiling() else sys.exc_info()[1]


def _same(values: Collection[Any], others: Collection[Any]) -> bool:
    """Whether both hold the same objects in the same order, tuples by their entries."""
    if len(values) != len(others):
        return False
    # torch.compile cannot trace `is` between tuples
    return all(
        _same(a, b) if isinstance(a, tuple) and isinstance(b, tuple) else a is b
        for a, b in zip(values, others, strict=True)
    )


_TYPES: dict[type[Site], type[Residual]] = {}
_R = TypeVar("_R", bound="type[Residual]")


def residual_for(site: type[Site]) -> Callable[[_R], _R]:
    """Class decorator that makes the decorated class that of residuals at sites of this class and its subclasses."""

    def add(cls: _R) -> _R:
        _TYPES[site] = cls
        return cls

    return add


def make_residual(site: Site, map: ResidualMap, reference: Tensor | None = None) -> Residual:
    """Make the residual of a site. The arguments are those of `Residual`."""
    cls = next((_TYPES[each] for each in type(site).__mro__ if each in _TYPES), Residual)
    return cls(site, map, reference)


class Driver(Protocol):
    """The part of a method that `project` and `Relaxation.prune` need."""

    def forgotten(self) -> str:
        """A message that the weights moved but the method never stepped; empty if nothing was forgotten."""

    def detach(self) -> None:
        """Remove the method's hooks from the optimizers."""


_DRIVERS: weakref.WeakKeyDictionary[Residual, weakref.ref[Driver]] = weakref.WeakKeyDictionary()


def enrol(driver: Driver, residuals: Iterable[Residual]) -> None:
    """Make `driver` the driver of these residuals instead of an earlier one. This does not keep it alive."""
    for residual in residuals:
        _DRIVERS[residual] = weakref.ref(driver)


def drivers_of(residuals: Iterable[Residual]) -> list[Driver]:
    """The drivers of any of the residuals, each once."""
    found: list[Driver] = []
    for residual in residuals:
        reference = _DRIVERS.get(residual)
        driver = None if reference is None else reference()
        if driver is not None and driver not in found:
            found.append(driver)
    return found
