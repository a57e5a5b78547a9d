"""Plain linear maps between declared representations of any group.

Any module that maps `(..., in_dim)` to `(..., out_dim)` can be declared. Folding needs a parameter `weight` of
shape (out_dim, in_dim). The folded part is the orthogonal projection onto the equivariant maps
between the two representations.
"""

from __future__ import annotations

from torch import Tensor, nn

from equirelax.errors import UnfoldableError
from equirelax.relaxation.layers.family import Fold, LayerFamily, Skip, no_bias, register
from equirelax.relaxation.sites import Site
from equirelax.symmetry import equivariant_projection, trivial


@register
class PlainLinearFamily(LayerFamily):
    """Plain matrices. They match only by declaration, since their representations cannot be guessed."""

    name = "plain-linear"

    def matches(self, module: nn.Module) -> bool:
        """Always False; see `Linear` in the placement."""
        return False

    def site(self, path: str, module: nn.Module) -> Site | Skip:
        """Never called without a declaration."""
        return Skip("its representations are not declared")

    def fold(self, module: nn.Module, site: Site, weight: Tensor, bias: Tensor | None) -> Fold:
        """Fold the projection onto the equivariant maps, from the null space of the group's constraints."""
        own = getattr(module, "weight", None)
        if not isinstance(own, nn.Parameter) or own.shape != weight.shape:
            raise UnfoldableError(
                f'{site.path} ({type(module).__name__}) has no parameter "weight" of shape '
                f'{tuple(weight.shape)} to fold into; project with mode="drop" or unfoldable="drop"'
            )
        folded = Fold(equivariant_projection(weight, site.in_rep, site.out_rep))
        folded.writes.append((own, folded.weight))
        if bias is not None and bool(bias.any()):
            own_bias = getattr(module, "bias", None)
            if not isinstance(own_bias, nn.Parameter):
                raise no_bias(module, site)
            one = trivial(site.in_rep.group)
            folded.bias = equivariant_projection(bias[:, None], one, site.out_rep)[:, 0]
            folded.writes.append((own_bias, folded.bias))
        return folded
