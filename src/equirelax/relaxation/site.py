"""Where a residual attaches: which module, what it reads from the call, where it adds its output."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from equirelax.errors import PlacementError
from equirelax.relaxation.columns import Columns
from equirelax.relaxation.kinds.convolution import Convolution
from equirelax.symmetry import Representation


def argument(args: tuple[Any, ...], kwargs: dict[str, Any], index: int, name: str | None) -> Any:
    """The call's argument at `index`, or the keyword `name`; the only keyword argument when no name is known."""
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
    """The parameters of a module's forward, in order; none where Python cannot tell (script modules)."""
    try:
        return list(inspect.signature(module.forward).parameters.values())
    except (TypeError, ValueError):
        return []


def first_parameter(module: nn.Module) -> str | None:
    """The name of the first parameter of a module's forward; None where it has no name (`*args`, script modules)."""
    found = parameters_of(module)
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return found[0].name if found and found[0].kind in named else None


def second_input(module: nn.Module) -> Reader:
    """Reads the second argument of a module's forward, by position or by its name."""
    found = parameters_of(module)
    named = len(found) > 1 and found[1].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    return Arguments(((1, found[1].name if named else ""),))


def misfit(output: Any, delta: Tensor, shape: tuple[int, ...] | None = None) -> str:
    """Why `delta` cannot be added to `output`, in words; empty where it can.

    The shapes must be equal, for adding never broadcasts, and so must the devices. The dtypes may differ, as they do under
    autocast, but both must be floating point: `delta` is cast to the output's dtype.

    Args:
        shape: that `delta` must have, where the writer lays it out anew before adding; None: the output's.
    """
    if not isinstance(output, Tensor):
        return f"the module gave a {type(output).__name__}, and no tensor to add to"
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
    """Takes the residual's input out of a module's call. Frozen dataclasses:
    they are copied and pickled with the model.
    """

    @abstractmethod
    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Columns:
        """The input, features on the site's feature axis."""


class Writer(ABC):
    """Adds the residual's output to a module's output."""

    @abstractmethod
    def __call__(self, output: Any, delta: Tensor) -> Any:
        """The new output, of the same type and shape."""

    @abstractmethod
    def misfit(self, output: Any, delta: Tensor) -> str:
        """Why the residual's output cannot be added, in words with both shapes; empty where it can. See `misfit`."""


@dataclass(frozen=True)
class FirstInput(Reader):
    """The first argument, features last: x of shape (..., dim).

    Args:
        name: of the argument, for calls by keyword; None where it has none.
    """

    name: str | None = None

    @classmethod
    def of(cls, module: nn.Module) -> FirstInput:
        """The first argument of the module's forward."""
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


@dataclass(frozen=True)
class AddToOutput(Writer):
    """`output + delta`, in the output's dtype and shape."""

    def __call__(self, output: Tensor, delta: Tensor) -> Tensor:
        return output + delta.to(output.dtype)

    def misfit(self, output: Any, delta: Tensor) -> str:
        return misfit(output, delta)


@dataclass(frozen=True)
class AddToItem(Writer):
    """Adds to one entry of an output that is a tuple or a list."""

    index: int

    def __call__(self, output: Any, delta: Tensor) -> Any:
        items = list(output)
        items[self.index] = items[self.index] + delta.to(items[self.index].dtype)
        return type(output)(items) if type(output) in (tuple, list) else type(output)(*items)

    def misfit(self, output: Any, delta: Tensor) -> str:
        if not isinstance(output, (tuple, list)) or not -len(output) <= self.index < len(output):
            size = f" of {len(output)}" if isinstance(output, (tuple, list)) else ""
            return f"the module gave a {type(output).__name__}{size}, and no tuple with an entry {self.index}"
        return misfit(output[self.index], delta)


@dataclass(frozen=True)
class Site:
    """One place for one residual.

    Args:
        path: of the module whose output is added to, relative to the relaxed model ("" is the model itself).
        family: name of the layer family, which knows how to fold;
            None for block-level sites, which cannot be folded.
        in_rep, out_rep: how the group acts on what is read and on what is added.
        reader, writer: see `Reader` and `Writer`.
        feature_axis: -1 where the reader gives (..., dim), -2 where it gives (batch, dim, points), -3 where it gives
            (batch, dim, H, W).
        slot: tells several residuals of one module apart; part of the residual's key.
        relaxes: the subgroup that the residual breaks, in words ("O(3)",
            "rotations and translations", "nothing").
        constants: (channel, value) pairs of a tensor product's second input that
            are constant: folding needs one.
        second: reads that second input, features last, so that constants are looked at in every call.
        stream: name of the residual stream that the site is a step of (see `streams`), "" for none. The reader
            then gets the call of the module at `source`, and `in_rep` is of what it reads there; reader, source and
            in_rep are the same for every site of a stream.
        source: path of the module whose input the stream starts from, or `captured` reads ("" is the relaxed model).
        captured: what the residual reads besides, of the call of the module at `source`: (rows, dim), put after what
            the reader gives; see `captured.Capture`.
        adds_to: path of the module to whose first argument the residual is added, before that is called, instead of to
            the output of the module at `path`; see `ahead`.
        convolution: how the residual's kernel is applied, where the layer is a convolution; the reader then gives
            (batch, in_rep.dim, H, W), and `feature_axis` is that of the channels (-3).
    """

    path: str
    family: str | None
    in_rep: Representation
    out_rep: Representation
    reader: Reader
    writer: Writer
    feature_axis: int = -1
    slot: str = ""
    relaxes: str = ""
    constants: tuple[tuple[int, float], ...] = ()
    second: Reader | None = None
    stream: str = ""
    source: str = ""
    captured: Reader | None = None
    adds_to: str | None = None
    convolution: Convolution | None = None

    @property
    def key(self) -> str:
        """Name of the residual: the module's path, and the slot where there are several."""
        return f"{self.path}:{self.slot}" if self.slot else self.path
