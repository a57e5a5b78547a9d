"""Equi-Adapt (Mondal et al., NeurIPS 2023, arXiv 2310.01647): every sample is first moved to a canonical pose."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from equirelax.errors import RepresentationError
from equirelax.methods.acting import act_on_all, act_on_output, as_kinds, group_of


class EquiAdapted(nn.Module):
    """rho_out(c(x)) f(rho_in(c(x))^-1 x) with an equivariant canonicaliser, c(g x) = g c(x): equivariant for any f.

    c and f are trained together through the task's loss (Kaba et al., ICML 2023), without the prior that keeps the poses
    of a pretrained f upright. A prediction costs one of c and one of f.

    It is not a `Method`: it wraps the network, and there is nothing to step.

    Args:
        model: f, called with positional arguments. Its keys begin with "model.".
        canonicalizer: c, called with the same arguments. It returns elements (b, n, n) of the group, one for
            every entry of the first axis of the arguments that transform. Its keys begin with "canonicalizer.".
        in_rep: For every argument, anything that `symmetry.as_representation` takes, or None (invariant). A single argument
            needs no tuple.
        out_rep: The same for the output of f.

    Raises:
        RepresentationError: in_rep or out_rep is not a representation.
    """

    def __init__(self, model: nn.Module, canonicalizer: nn.Module, in_rep: Any, out_rep: Any) -> None:
        super().__init__()
        self.in_kinds, self.out_kinds = as_kinds(in_rep, "in_rep"), as_kinds(out_rep, "out_rep")
        self.group = group_of(*self.in_kinds, *self.out_kinds)
        self.canonicalizer = canonicalizer
        self.model = model

    def forward(self, *args: Any) -> Any:
        """The model's output on the canonical poses, moved back.

        Raises:
            RepresentationError: arguments, output or the canonicaliser's elements do not fit in_rep and out_rep.
        """
        pose: Tensor = self.canonicalizer(*args)
        if pose.dim() != 3 or pose.shape[1:] != (self.group.dim, self.group.dim):
            raise RepresentationError(
                f"the canonicalizer ({type(self.canonicalizer).__name__}) returned shape {tuple(pose.shape)}; "
                f"expected elements of {self.group.name}: (b, {self.group.dim}, {self.group.dim})"
            )
        canonical = act_on_all(self.group.inverse(pose), args, self.in_kinds)
        return act_on_output(pose, self.model(*canonical), self.out_kinds)
