"""Linear maps on features that are stored by degree, as in equiformer-pytorch and se3-transformer-pytorch.

Features are a mapping degree l -> tensor (..., channels, 2l+1), where the degree is an integer or its decimal string. A linear
map has one matrix (channels_in, channels_out) for every degree that it keeps, in `weights`: a `ParameterDict` by
degree, or a `ParameterList` with a list `degrees`. The residual is dense, from all components of all channels of
these degrees to all of them. The bases are e3nn's: degree 1 is (x, y, z).

Folding: the orthogonal projection of a dense block B of degree l onto `W^T (x) 1_(2l+1)` is the mean of its diagonals.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from equirelax.errors import PlacementError, UnfoldableError
from equirelax.relaxation.layers.family import Fold, LayerFamily, Skip, register
from equirelax.relaxation.sites import Site, argument, first_parameter, misfit
from equirelax.symmetry import SO, Representation, from_irreps, trivial, vector

Key = int | str


@dataclass(frozen=True)
class DegreeSite(Site):
    """The concatenated features of some degrees, (..., sum of channels (2l+1)), channel by channel.

    Args:
        keys: The keys of the mappings that are the first argument and the output.
        name: The name of the argument, for calls by keyword.
    """

    keys: tuple[Key, ...] = field(kw_only=True)
    name: str | None = field(default=None, kw_only=True)

    def read(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """Return the concatenated features.

        Raises:
            PlacementError: The argument is not a mapping with these keys.
        """
        features = argument(args, kwargs, 0, self.name)
        if not isinstance(features, Mapping) or any(key not in features for key in self.keys):
            raise PlacementError(
                f"{self.path}: its weights are by degree, so its first argument must be a mapping with the keys "
                f"{list(self.keys)} to tensors (..., channels, 2l+1); it is a {type(features).__name__}"
                f"{f' with the keys {list(features)}' if isinstance(features, Mapping) else ''}. Leave the module "
                f"out with exclude=({self.path!r},), or declare it"
            )
        return torch.cat([features[key].flatten(-2) for key in self.keys], dim=-1)

    def add(self, output: Any, delta: Tensor) -> Any:
        """Return the mapping with the features added, degree by degree."""
        sizes = [output[key].shape[-2:].numel() for key in self.keys]
        added = {
            key: output[key] + part.reshape(output[key].shape).to(output[key].dtype)
            for key, part in zip(self.keys, delta.split(sizes, dim=-1), strict=True)
        }
        return {**output, **added}

    def misfit(self, output: Any, delta: Tensor) -> str:
        """Say why `delta` cannot be added; see `Site.misfit`."""
        if not isinstance(output, Mapping) or any(key not in output for key in self.keys):
            return f"the module returned a {type(output).__name__}, not a mapping with the keys {list(self.keys)}"
        sizes = [output[key].shape[-2:].numel() for key in self.keys]
        if sum(sizes) != delta.shape[-1]:
            shapes = {key: tuple(output[key].shape) for key in self.keys}
            return f"shape {tuple(delta.shape)} does not match the output's {shapes}"
        for key, part in zip(self.keys, delta.split(sizes, dim=-1), strict=True):
            wrong = misfit(output[key].flatten(-2), part)
            if wrong:
                return f"degree {key}: {wrong}"
        return ""


def weights_by_degree(module: nn.Module) -> dict[Key, nn.Parameter] | None:
    """The module's matrices (channels_in, channels_out) by the key of their degree; None if it has no such matrices.

    It must not have any other direct parameters.
    """
    weights, degrees = getattr(module, "weights", None), getattr(module, "degrees", None)
    found: dict[Key, nn.Parameter]
    if isinstance(weights, nn.ParameterDict) and all(str(key).isdecimal() for key in weights):
        found = dict(weights.items())
    elif isinstance(weights, nn.ParameterList) and isinstance(degrees, (list, tuple)):
        if len(degrees) != len(weights) or any(type(degree) is not int or degree < 0 for degree in degrees):
            return None
        found = dict(zip(degrees, weights, strict=True))
    else:
        return None
    matrices = all(isinstance(w, Tensor) and w.dim() == 2 for w in found.values())
    others = list(module.parameters(recurse=False))
    return found if found and matrices and not others else None


def _of_degree(degree: int) -> Representation:
    """The representation of one channel. Degrees above 1 need e3nn."""
    group = SO(3)
    if degree == 0:
        return trivial(group)
    return vector(group) if degree == 1 else from_irreps(f"{degree}e", group)


@register
class FiberLinear(LayerFamily):
    """Linear maps with one matrix for every degree, on mappings of features by degree."""

    name = "fiber-linear"

    def matches(self, module: nn.Module) -> bool:
        """Recognise the attribute `weights` (and `degrees`); see `weights_by_degree`."""
        return weights_by_degree(module) is not None

    def site(self, path: str, module: nn.Module) -> Site | Skip:
        """Relax the map from all components of all degrees that it keeps to all of them."""
        weights = weights_by_degree(module) or {}
        none = Representation(SO(3), [])
        in_rep = sum((w.shape[0] * _of_degree(int(key)) for key, w in weights.items()), none)
        out_rep = sum((w.shape[1] * _of_degree(int(key)) for key, w in weights.items()), none)
        keys = tuple(weights)
        name = first_parameter(module)
        return DegreeSite(path, in_rep, out_rep, family=self.name, relaxes="SO(3)", keys=keys, name=name)

    def fold(self, module: nn.Module, site: Site, weight: Tensor, bias: Tensor | None) -> Fold:
        """Fold the mean diagonal of every block between equal degrees.

        Only degree 0 of a bias would be equivariant, and the layer has no bias to hold it.
        """
        folded, writes = torch.zeros_like(weight), []
        row = column = 0
        for key, own in (weights_by_degree(module) or {}).items():
            size = 2 * int(key) + 1
            wide, high = own.shape[0] * size, own.shape[1] * size
            if bias is not None and size == 1 and bool(bias[row : row + high].any()):
                raise UnfoldableError(
                    f"{site.path} ({type(module).__name__}) has no bias to fold that of the residual's degree 0 into; "
                    f'use a residual without bias, or project with mode="drop" or unfoldable="drop"'
                )
            block = weight[row : row + high, column : column + wide]
            mean = block.reshape(own.shape[1], size, own.shape[0], size).diagonal(dim1=1, dim2=3).mean(-1)
            folded[row : row + high, column : column + wide] = torch.kron(mean, torch.eye(size).to(mean))
            writes.append((own, mean.T))
            row, column = row + high, column + wide
        return Fold(folded, None, list(writes))
