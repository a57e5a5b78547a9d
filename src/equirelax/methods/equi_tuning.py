"""Equi-Tuning (Basu et al., AAAI 2023, arXiv 2210.06475): a network's outputs, averaged over the group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from equirelax import settings as checking
from equirelax.errors import EquirelaxError, MethodError
from equirelax.methods.acting import act_on_all, act_on_output, as_kinds, group_of
from equirelax.settings import COUNT, COUNT_OR_NONE, SEED, within
from equirelax.symmetry import Group


class EquiTuned(nn.Module):
    """mean over g of rho_out(g)^-1 f(rho_in(g) x), for any network f.

    With all elements of a finite group it is exactly equivariant; with M sampled ones of an infinite group the error
    falls like 1/sqrt(M). A prediction costs M predictions of f.

    It is not a `Method`: it wraps the network, and there is nothing to step.

    Args:
        model: f, called with positional arguments. Its keys begin with "model.".
        in_rep: For every argument, anything that `symmetry.as_representation` takes, or None (invariant). A single argument
            needs no tuple.
        out_rep: The same for the output of f.
        group: The group of the elements; by default that of the representations. For SE(n) and E(n) the mean is only over
            rotations and reflections about the origin: centre the input.
        settings: `Settings`, or None to give them by name.
        fields: Settings by name.

    Raises:
        RepresentationError: in_rep or out_rep is not a representation.
        MethodError: A setting is unknown or out of range, or the group has no uniform mean.
    """

    @dataclass(frozen=True, kw_only=True)
    class Settings(checking.Settings):
        """How many elements are averaged over.

        Attributes:
            samples: Number M of elements that a prediction is averaged over. A finite group with at most M is used whole.
            seed: Seed of the elements, which are the same in every prediction.
            training_samples: Number of elements drawn in every call in training mode, from torch's global generator. A finite
                group with no more elements is used whole. 0 trains the network as it is.
        """

        error: ClassVar[type[EquirelaxError]] = MethodError
        samples: int = within(COUNT, 16)
        seed: int = within(SEED, 0)
        training_samples: int = within(COUNT_OR_NONE, 0)

    def __init__(
        self,
        model: nn.Module,
        in_rep: Any,
        out_rep: Any,
        group: Group | None = None,
        settings: Settings | None = None,
        **fields: Any,
    ) -> None:
        super().__init__()
        self.in_kinds, self.out_kinds = as_kinds(in_rep, "in_rep"), as_kinds(out_rep, "out_rep")
        self.group = group_of(*self.in_kinds, *self.out_kinds) if group is None else group
        self.settings = self.Settings.given(settings, fields)
        if not self.group.compact and self.group.dim == self.group.linear_dim:
            raise MethodError(
                f"{self.group.name} is not compact: there is no uniform mean over it; give a compact subgroup"
            )
        self.model = model
        # Not a buffer: a cast of the model would round the elements, and keys would change.
        self._elements = self._draw(self.settings.samples, torch.Generator().manual_seed(self.settings.seed))

    @property
    def elements(self) -> Tensor:
        """The elements used in evaluation, (M, n, n) in float64 on the CPU."""
        return self._elements

    @property
    def exact(self) -> bool:
        """Whether the mean is over the whole group."""
        return self._covered(self.settings.samples)

    def forward(self, *args: Any) -> Any:
        """The averaged output of the model; in training mode over `training_samples` elements.

        Raises:
            RepresentationError: arguments or output do not fit in_rep and out_rep.
        """
        elements = self._elements
        if self.training:
            if not self.settings.training_samples:
                return self.model(*args)
            elements = self._draw(self.settings.training_samples, None)
        total: Any = None
        for g in elements:
            turned = act_on_all(g, args, self.in_kinds)
            back = act_on_output(self.group.inverse(g), self.model(*turned), self.out_kinds)
            total = back if total is None else _sum(total, back)
        count = len(elements)
        return tuple(part / count for part in total) if isinstance(total, tuple) else total / count

    def _covered(self, samples: int) -> bool:
        return self.group.order is not None and self.group.order <= samples

    def _draw(self, samples: int, generator: torch.Generator | None) -> Tensor:
        """(M, n, n): the whole group, or elements drawn from it, without translations."""
        if self._covered(samples):
            return self.group.elements()
        elements = self.group.sample(samples, generator=generator)
        if self.group.dim != self.group.linear_dim:
            elements[:, : self.group.linear_dim, self.group.linear_dim] = 0.0
        return elements

    def extra_repr(self) -> str:
        """Shown by `print(model)`."""
        how = "all" if self.exact else f"{self.settings.samples} sampled"
        return f"{how} elements of {self.group.name}, training_samples={self.settings.training_samples}"


def _sum(a: Any, b: Any) -> Any:
    return tuple(x + y for x, y in zip(a, b, strict=True)) if isinstance(a, tuple) else a + b


EquiTuned.__signature__ = checking.signature_of(EquiTuned.__init__, EquiTuned.Settings)  # type: ignore[attr-defined]
