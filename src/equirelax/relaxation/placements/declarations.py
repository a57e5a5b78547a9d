"""User declarations about unrecognised modules: how they transform, and which inputs are constant."""

from __future__ import annotations

import fnmatch
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from torch import nn

from equirelax.errors import PlacementError, RepresentationError
from equirelax.files import did_you_mean
from equirelax.relaxation.layers import Skip
from equirelax.relaxation.layers.channels import AxisSite, Layout, channel_site
from equirelax.relaxation.layers.plain import PlainLinearFamily
from equirelax.relaxation.layers.planar import planar_site
from equirelax.relaxation.sites import RowSite, Site, first_parameter
from equirelax.relaxation.spec import spec
from equirelax.symmetry import GridField, On, Representation, as_representation


class Declaration(ABC):
    """Declares how modules that no family recognises transform.

    A subclass has a field `target`; see `declared_paths`.
    """

    target: str

    @abstractmethod
    def site(self, path: str, module: nn.Module) -> Site:
        """Make the site for one of the declared modules.

        Raises:
            PlacementError: the module does not fit the declaration.
        """


@spec("linear")
@dataclass(frozen=True)
class Linear(Declaration):
    """Declares linear maps between two representations of one group, on any axes of the tensors.

    There are three kinds of maps, which differ in their arguments:

    - a matrix from all features to all features: ``Linear("*.mix", "4x0e+2x1o", "1x1o")``. Features are on the last axis,
      or on that of ``On``.
    - a matrix over channels that all transform in the same way, with ``channel_axis``. Vector neurons and the vector
      features of PaiNN, TorchMD-ET or GVP are ``Linear("*.vec_proj", On("1x1o", -2), channel_axis=-1)``, and the 3 x 3
      tensors of TensorNet are ``Linear("*.linears_tensor.*", On("1x1o", (-3, -2)), channel_axis=-1)``.
    - a convolution (batch, in, H, W) -> (batch, out, H', W') between feature fields, with `GridField`. Like
      ``torch.nn.Conv2d``, the module must have the attribute ``kernel_size``, and ``stride``, ``padding``, ``dilation`` and
      ``padding_mode`` if they are not 1, 0, 1 and "zeros".

    Axes are those of the tensors that the named module itself receives and returns, after any transpose before it. Negative
    axes apply to tensors with any number of axes.

    Args:
        target: a path pattern ("*.map_to_feat"), or the name of a class ("VNLinear").
        in_rep: Representation of the input, or of one channel, in any form that `equirelax.symmetry.as_representation` takes.
        out_rep: Representation of the output; None takes `in_rep`, which `channel_axis` requires.
        channel_axis: axis of the channels in input and output; None: there are no channels in addition to the representation.
        channels: (in, out); None reads them from the module's weight of shape (out, in).

    Raises:
        PlacementError: the representations are of two groups, or the channels do not fit the other arguments.

    Examples:
        >>> from equirelax.symmetry import On
        >>> Linear("*.map_to_feat", On("1x1o", axis=-2), channel_axis=-1).in_rep
        On(representation=1x1o, axis=-2)
    """

    target: str
    in_rep: Any
    out_rep: Any = None
    channel_axis: int | None = None
    channels: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        for name in ("in_rep", "out_rep"):
            given = getattr(self, name)
            if given is not None:
                object.__setattr__(self, name, as_representation(given))
        if self.channels is not None:
            object.__setattr__(self, "channels", tuple(self.channels))
        ends = (self.in_rep, self.in_rep if self.out_rep is None else self.out_rep)
        groups = [(end if isinstance(end, Representation) else end.representation).group for end in ends]
        if groups[0] != groups[1]:
            raise PlacementError(
                f"Linear({self.target!r}) is between {groups[0].name} and {groups[1].name}; expected one group"
            )
        fields = [isinstance(end, GridField) for end in ends]
        if any(fields) and (not all(fields) or self.channel_axis is not None):
            raise PlacementError(
                f"Linear({self.target!r}): a convolution is between two GridFields, whose channels need no channel_axis"
            )
        if self.channel_axis is None and self.channels is not None:
            raise PlacementError(f"Linear({self.target!r}): channels are declared without a channel_axis")
        if self.channel_axis is not None and ends[0] != ends[1]:
            raise PlacementError(
                f"Linear({self.target!r}): a matrix over channels keeps the representation of each; in_rep is {ends[0]!r}, "
                f"out_rep {ends[1]!r}. Leave out_rep out"
            )

    def site(self, path: str, module: nn.Module) -> Site:
        """Make the site of a dense residual on the first input; see the class."""
        out = self.in_rep if self.out_rep is None else self.out_rep
        if isinstance(self.in_rep, GridField):
            return _convolution(path, module, self.in_rep.representation, out.representation)
        ends = [end if isinstance(end, On) else On(end) for end in (self.in_rep, out)]
        if self.channel_axis is not None:
            return channel_site(path, module, ends[0], self.channel_axis, self.channels)
        return _matrix(path, module, ends[0], ends[1])


def _matrix(path: str, module: nn.Module, in_on: On, out_on: On) -> Site:
    """The site of a matrix from all features to all features."""
    in_rep, out_rep = in_on.full, out_on.full
    own, shape = getattr(module, "weight", None), (out_rep.dim, in_rep.dim)
    where = f"{path} ({type(module).__name__})"
    if isinstance(own, nn.Parameter) and own.dim() == 2 and tuple(own.shape) != shape:
        raise PlacementError(
            f"{where}: its weight has shape {tuple(own.shape)}, the declared representations {shape} (out, in); declare "
            "additional channels with channel_axis"
        )
    if isinstance(module, nn.Linear) and (in_on.axis, out_on.axis) != (-1, -1):
        raise PlacementError(
            f"{where} mixes the last axis of its input, but the representation is declared on axis {in_on.axis}: give "
            "channel_axis=-1 if it mixes channels"
        )
    ends, name = (in_rep, out_rep), first_parameter(module)
    family, group = PlainLinearFamily.name, in_rep.group.name
    if in_on.axis == out_on.axis == -1:
        return RowSite(path, *ends, family=family, relaxes=group, name=name)
    layouts = [Layout(0, 0, on.axes, (on.full.dim,), on.representation.dim) for on in (in_on, out_on)]
    return AxisSite(
        path,
        *ends,
        family=family,
        relaxes=group,
        in_layout=layouts[0],
        out_layout=layouts[1],
        name=name,
    )


def _convolution(path: str, module: nn.Module, in_rep: Representation, out_rep: Representation) -> Site:
    """The site of a convolution between feature fields."""
    name = f"{path} ({type(module).__name__})"
    for attribute, rep in (("in_channels", in_rep), ("out_channels", out_rep)):
        if getattr(module, attribute, rep.dim) != rep.dim:
            raise PlacementError(
                f"{name}: its {attribute} is {getattr(module, attribute)}, the declared {rep!r} has {rep.dim}"
            )
    if not hasattr(module, "kernel_size"):
        raise PlacementError(
            f"{name} has no attribute kernel_size, which a declared convolution needs: give it this attribute, or "
            "exclude it"
        )
    try:
        site = planar_site(path, module, in_rep, out_rep)
    except RepresentationError as error:
        raise PlacementError(f"{name} cannot be relaxed as declared: {error}") from error
    if isinstance(site, Skip):
        raise PlacementError(f"{name} cannot be relaxed as declared: {site.reason}")
    return site


@spec("constant")
@dataclass(frozen=True)
class Constant:
    """Declares that a channel of the second input of tensor products is constant, so that residuals can be folded into them.

    Args:
        target: a path pattern, or the name of a class.
        channel: index among the second input's features, which must be a 0e channel.
        value: The channel's value, which is the same for every row and every call.
    """

    target: str
    channel: int = 0
    value: float = 1.0


def declared_paths(modules: list[tuple[str, nn.Module]], target: str, what: str) -> set[str]:
    """Find the paths of the modules that `target` names.

    It names a class ("VNLinear", or "package.module.VNLinear" if several have the name), or is a path pattern. A module that
    the model holds under several names is found by each of them.

    Args:
        modules: The model, with path "", and the modules inside it, each under its first name.
        target: The class or pattern.
        what: The owner of the target, for the message.

    Raises:
        PlacementError: it names no module.
    """
    by_class = {
        path
        for path, module in modules
        if any(target in (c.__name__, f"{c.__module__}.{c.__qualname__}") for c in type(module).__mro__)
    }
    if by_class:
        return by_class
    first = {module: path for path, module in modules}
    names = [
        (name, first[module])
        for name, module in modules[0][1].named_modules(remove_duplicate=False)
        if name and module in first
    ]
    hits = {path for name, path in names if fnmatch.fnmatch(name, target)}
    if not hits:
        known = sorted({type(m).__name__ for _, m in modules}) + [name for name, _ in names]
        raise PlacementError(
            f"{what}: {target!r} is neither a class nor a path (pattern) of the model's "
            f"modules.{did_you_mean(target, known)}"
        )
    return hits
