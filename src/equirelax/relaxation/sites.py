"""Sites, where residuals attach: the module, the features that are read from its call, and the place of the output.

A site is one of a few small classes. Families of layers with other tensor layouts define their own sites. A site that
needs more than a forward hook also defines a class of residuals; see `residual.residual_for`.
"""

from __future__ import annotations

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from equirelax.errors import PlacementError, RepresentationError
from equirelax.relaxation.columns import Columns
from equirelax.relaxation.kinds.convolution import Convolution
from equirelax.relaxation.kinds.kind import ResidualKind, ResidualMap
from equirelax.settings import shown
from equirelax.symmetry import GridField, On, Representation, TensorAction


def argument(args: tuple[Any, ...], kwargs: dict[str, Any], index: int, name: str | None) -> Any:
    """The call's argument at `index`, or its keyword `name`; if no name is known, its only keyword argument."""
    if index < len(args):
        return args[index]
    if name is not None and name in kwargs:
        return kwargs[name]
    if name is None and index == 0 and not args and len(kwargs) == 1:
        return next(iter(kwargs.values()))
    raise PlacementError(
        f"the relaxed module was called without its argument {index}{f' ({name})' if name else ''}; it got "
        f"{len(args)} positional arguments and the keywords {sorted(kwargs)}. Pass it by position"
    )


def parameters_of(module: nn.Module) -> list[inspect.Parameter]:
    """The parameters of a module's forward, in order; none if Python cannot determine them (script modules)."""
    try:
        return list(inspect.signature(module.forward).parameters.values())
    except (TypeError, ValueError):
        return []


def first_parameter(module: nn.Module) -> str | None:
    """The name of the first parameter of a module's forward; None if it has none (`*args`, script modules)."""
    found = parameters_of(module)
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return found[0].name if found and found[0].kind in named else None


def misfit(output: Any, delta: Tensor, shape: tuple[int, ...] | None = None) -> str:
    """The reason why `delta` cannot be added to `output`; empty if it can.

    The shapes must be equal, since adding never broadcasts, and so must the devices. The dtypes may differ, as under
    autocast, but both must be floating point: `delta` is cast to the output's dtype.

    Args:
        output: The module's output.
        delta: The term to add.
        shape: The shape that `delta` must have if the site rearranges it before adding; None takes the output's.
    """
    if not isinstance(output, Tensor):
        return f"the module returned a {type(output).__name__}, not a tensor to add to"
    if not output.is_floating_point() or not delta.is_floating_point():
        return f"dtype {delta.dtype} cannot be added to {output.dtype}"
    wanted = tuple(output.shape) if shape is None else shape
    if tuple(delta.shape) != wanted:
        laid_out = "" if shape is None else f", as {wanted}"
        return f"shape {tuple(delta.shape)} does not match the output's {tuple(output.shape)}{laid_out}"
    if delta.device != output.device:
        return f"it is on {delta.device}, the output on {output.device}"
    return ""


class Reader(ABC):
    """Takes features out of a module's call. Readers are frozen dataclasses, copied and pickled with the model."""

    @abstractmethod
    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Columns:
        """The features, on the last axis unless the site says otherwise."""


@dataclass(frozen=True)
class FirstInput(Reader):
    """The first argument, features last: x of shape (..., dim).

    Args:
        name: Name of the argument, for calls by keyword; None if it has none.
    """

    name: str | None = None

    @classmethod
    def of(cls, module: nn.Module) -> FirstInput:
        """Make it for the first argument of the module's forward."""
        return cls(first_parameter(module))

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        return argument(args, kwargs, 0, self.name)


@dataclass(frozen=True)
class Arguments(Reader):
    """Several arguments concatenated on the last axis.

    Args:
        names: (position, keyword) of each argument.
    """

    names: tuple[tuple[int, str], ...]

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        return torch.cat([argument(args, kwargs, index, name) for index, name in self.names], dim=-1)


Named = str | tuple[int, str] | tuple[int, str, int | str]
"""An argument of a forward: its name; (position, keyword); or (position, keyword, entry) for one that is a tuple, a list or a
mapping."""


@dataclass(frozen=True)
class Argument(Reader):
    """One argument of a call, or an entry of one that is a tuple, a list or a mapping.

    Args:
        index, name: Its position and its keyword.
        item: The entry; None takes the argument itself.
        path: Path of the module that is called, for messages.
    """

    index: int
    name: str
    item: int | str | None = None
    path: str = ""

    @classmethod
    def of(cls, module: nn.Module, given: Named, path: str, item: int | str | None = None) -> Argument:
        """Make it for an argument of a module's forward, by name; a given position is not checked.

        Raises:
            PlacementError: The forward has no such parameter.
        """
        if not isinstance(given, str):
            return cls(given[0], given[1], given[2] if len(given) == 3 else item, path)
        names = [parameter.name for parameter in parameters_of(module)]
        if given not in names:
            raise PlacementError(
                f"{path or 'the model'} ({type(module).__name__}): its forward has no argument {given!r}, only "
                f"{names or 'ones that Python cannot tell'}; give one of them, or (position, keyword)"
            )
        return cls(names.index(given), given, item, path)

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the argument or its entry.

        Raises:
            PlacementError: The call lacks the argument, or the argument lacks the entry.
        """
        where = self.path or "the model"
        if self.index >= len(args) and self.name not in kwargs:
            raise PlacementError(
                f"{where}: the call leaves out the argument {self.name!r}, which a residual reads; it has {len(args)} positional "
                f"arguments and the keywords {sorted(kwargs)}"
            )
        found = args[self.index] if self.index < len(args) else kwargs[self.name]
        if self.item is None:
            return found
        if _has(found, self.item):
            return found[self.item]
        raise PlacementError(
            f"{where}: the argument {self.name!r} has no entry {self.item!r}, which a residual reads; it is a "
            f"{type(found).__name__}"
        )

    def given(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the argument or its entry; None if the call leaves either out."""
        found: Any = args[self.index] if self.index < len(args) else kwargs.get(self.name)
        if self.item is None:
            return found
        return found[self.item] if _has(found, self.item) else None


def _has(found: Any, item: int | str | None) -> bool:
    """Whether an argument or an output has such an entry."""
    if isinstance(found, (tuple, list)):
        return isinstance(item, int) and -len(found) <= item < len(found)
    return _is_keyed(found) and item in found


def _is_keyed(found: Any) -> bool:
    """Whether entries have keys, as in a mapping or an object that is used as one, such as PyTorch Geometric's `Data`."""
    return isinstance(found, Mapping) or (
        callable(getattr(found, "keys", None)) and hasattr(found, "__getitem__")
    )


class Writer(ABC):
    """Adds a residual's term to the output of its module. Writers are frozen dataclasses, as readers are."""

    @abstractmethod
    def add(self, output: Any, delta: Tensor) -> Any:
        """Return the output with `delta` added, in its type, shape and dtype. The given output is not changed."""

    @abstractmethod
    def misfit(self, output: Any, delta: Tensor) -> str:
        """The reason, with both shapes, why `delta` cannot be added to the output; empty if it can."""

    def find(self, output: Any) -> Any:
        """The tensor to which `delta` is added, or an output that holds it; audits measure the added amount relative to it."""
        return output


@dataclass(frozen=True)
class AddTo(Writer):
    """Adds to an output that is a tensor, or to one entry of a tuple, a list or a mapping.

    Args:
        item: The entry: a position or a key; None: the output is a tensor.
    """

    item: int | str | None = None

    def find(self, output: Any) -> Any:
        """Return the entry to which `delta` is added."""
        return output if self.item is None else output[self.item]

    def put(self, output: Any, value: Tensor) -> Any:
        """Return the output with its entry replaced by `value`."""
        if self.item is None:
            return value
        if type(output) is dict:  # torch.compile does not trace copy.copy
            return {**output, self.item: value}
        if _is_keyed(output):
            changed: Any = copy.copy(output)
            changed[self.item] = value
            return changed
        items = list(output)
        items[self.item] = value  # type: ignore[index]
        return type(output)(items) if type(output) in (tuple, list) else type(output)(*items)

    def missing(self, output: Any) -> str:
        """A message that the output lacks the entry; empty if it has it."""
        if self.item is None or _has(output, self.item):
            return ""
        size = f" of {len(output)}" if isinstance(output, (tuple, list)) else ""
        return f"the module returned a {type(output).__name__}{size}, which has no entry {self.item!r}"

    def add(self, output: Any, delta: Tensor) -> Any:
        """Return the output with `delta` added to it or to its entry."""
        target = self.find(output)
        return self.put(output, target + delta.to(target.dtype))

    def misfit(self, output: Any, delta: Tensor) -> str:
        """See `Writer.misfit`."""
        return self.missing(output) or misfit(self.find(output), delta)


def join(path: str, inner: str) -> str:
    """The path of `inner` as seen from above `path`; either may be ""."""
    return f"{path}.{inner}" if path and inner else path or inner


@dataclass(frozen=True)
class Site(ABC):
    """One place for one residual. Sites are frozen dataclasses, copied and pickled with the model.

    Args:
        path: Path of the module that is relaxed, from the relaxed model ("" is the model itself).
        in_rep, out_rep: Representations of the features that are read and of the term that is added.
        family: Name of the layer family, which knows how to fold; None if nothing can be folded.
        relaxes: A description of the subgroup that the residual breaks ("O(3)", "rotations and translations", "nothing").
        slot: A name that distinguishes several residuals of one module; a part of the residual's key.
        network: Name of the known network that chose the site; empty if none did.
    """

    path: str
    in_rep: Representation
    out_rep: Representation
    family: str | None = field(default=None, kw_only=True)
    relaxes: str = field(default="", kw_only=True)
    slot: str = field(default="", kw_only=True)
    network: str = field(default="", kw_only=True)

    by_rows: ClassVar[bool] = False
    """Whether the site reads all features of the first argument, on the last axis, and adds to the output without reshaping."""

    @abstractmethod
    def read(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Columns:
        """Read the residual's input from a call of the module, with features on `feature_axis`."""

    def add(self, output: Any, delta: Tensor) -> Any:
        """Return the module's output with the residual's term added, in the output's type, shape and dtype."""
        return output + delta.to(output.dtype)

    def misfit(self, output: Any, delta: Tensor) -> str:
        """The reason, with both shapes, why `delta` cannot be added to the output; empty if it can."""
        return misfit(output, delta)

    def added_to(self, output: Any) -> Any:
        """The tensor of the output to which the term is added, or an object that holds it."""
        return output

    @property
    def feature_axis(self) -> int:
        """The feature axis of the input: -1 for (..., dim), -2 for (batch, dim, points), -3 for (batch, dim, H, W)."""
        return -1

    @property
    def key(self) -> str:
        """The name of the residual: the module's path, and the slot if there is one."""
        return f"{self.path}:{self.slot}" if self.slot else self.path

    @property
    def can_break(self) -> bool:
        """Whether a map here can break the symmetry, as a map from invariants to invariants cannot."""
        return not (self.in_rep.invariant and self.out_rep.invariant)

    def build(self, kind: ResidualKind, generator: torch.Generator | None) -> ResidualMap:
        """Make the map of a residual of this kind.

        Raises:
            PlacementError: The kind makes no maps for this site, or is not a kind.
        """
        if not isinstance(kind, ResidualKind):
            raise PlacementError(
                f"{self.key}: the residual is {shown(kind)}; expected a kind of residual such as equirelax.Dense()"
            )
        if kind.for_streams:
            raise PlacementError(
                f"{self.key}: a {type(kind).__name__} is a step of a residual stream, and this is none: take another kind"
            )
        return kind.build(self.in_rep, self.out_rep, self.feature_axis, generator)

    def action(self, rep: Representation) -> TensorAction | None:
        """The action of the group on the tensors that are read or added; None if it is not known."""
        return On(rep, self.feature_axis)

    def why(self, root: str = "") -> str:
        """The reason for the residual, for the summary, with paths as seen from the model that contains `root`."""
        known = f"layer family {self.family}" if self.family else ""
        file = f"network file {self.network}" if self.network else ""
        return ", ".join(filter(None, (file, known))) or "block of the placement"

    @property
    def inexpressible(self) -> str:
        """A description of the residual for the error that no layer can express it; empty if a family folds it."""
        return "" if self.family else "a block-level residual,"


@dataclass(frozen=True)
class RowSite(Site):
    """A site from all features of the first argument, on its last axis, to all features of the output.

    Args:
        name: The argument's name, for calls by keyword; None if it has none.
    """

    name: str | None = field(default=None, kw_only=True)

    by_rows: ClassVar[bool] = True

    def read(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """The first argument."""
        return argument(args, kwargs, 0, self.name)


@dataclass(frozen=True)
class GridSite(Site):
    """A site for all channels of fields on a grid, (batch, channels, ...), whose map is a convolution like the layer's.

    Args:
        convolution: Kernel size, stride, padding and so on, and the equivariant kernels.
        name: As for `RowSite`.
    """

    convolution: Convolution = field(kw_only=True)
    name: str | None = field(default=None, kw_only=True)

    def read(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """The first argument."""
        return argument(args, kwargs, 0, self.name)

    @property
    def feature_axis(self) -> int:
        """The axis of the channels."""
        return -1 - len(self.convolution.kernel_size)

    @property
    def can_break(self) -> bool:
        """True, since an asymmetric kernel breaks the symmetry even of invariant fields."""
        return True

    def build(self, kind: ResidualKind, generator: torch.Generator | None) -> ResidualMap:
        """Make a convolution."""
        return kind.build_convolution(self.in_rep.dim, self.out_rep.dim, self.convolution, generator)

    def action(self, rep: Representation) -> TensorAction | None:
        """The action on fields on the plane; None for other fields."""
        if self.feature_axis != -3:
            return None
        try:
            return GridField(rep)
        except RepresentationError:  # of no group of the plane
            return None

    def why(self, root: str = "") -> str:
        """The layer family, the size of the kernel, and the penalty."""
        size = " x ".join(map(str, self.convolution.kernel_size))
        return f"{super().why(root)}, kernels of {size}; penalty: {self.convolution.symmetry.measures}"


@dataclass(frozen=True)
class BlockSite(Site):
    """A site that reads a block's call by a reader and adds to its output by a writer.

    Args:
        reader: The reader of the call.
        writer: The writer; by default it adds to the output, which is a tensor.
    """

    reader: Reader = field(kw_only=True)
    writer: Writer = field(default=AddTo(), kw_only=True)

    def read(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Columns:
        """Read the arguments."""
        return self.reader(args, kwargs)

    def add(self, output: Any, delta: Tensor) -> Any:
        """Return the output with `delta` added by the writer."""
        return self.writer.add(output, delta)

    def misfit(self, output: Any, delta: Tensor) -> str:
        """Say why `delta` cannot be added; see `Site.misfit`."""
        return self.writer.misfit(output, delta)

    def added_to(self, output: Any) -> Any:
        """Return what the writer finds in the output."""
        return self.writer.find(output)
