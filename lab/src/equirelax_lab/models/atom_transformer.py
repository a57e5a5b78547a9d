"""A plain attention network on atoms, the counterpart of Equiformer without rotational symmetry."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from equirelax.errors import RepresentationError
from equirelax_lab.models.elements import Elements
from equirelax_lab.models.molecular import MD17_ELEMENTS, check_atoms, molecule_sums
from equirelax_lab.models.stack import centres
from equirelax_lab.models.transformer import TransformerLayer


class AtomTransformer(nn.Module):
    """Predicts one energy per molecule. Every atom is a token made of its element and its position relative to the centre.

    Invariant to translations and to the order of the atoms, not to rotations. All atoms of a molecule attend to each other.

    Args:
        hidden: width of a token, a multiple of `heads`.
        layers: number of encoder layers, at least 1.
        heads: number of attention heads.
        elements: atomic numbers that may occur.

    Raises:
        RepresentationError: a size or an element is invalid.
    """

    def __init__(
        self,
        hidden: int = 128,
        layers: int = 6,
        heads: int = 4,
        elements: Sequence[int] = MD17_ELEMENTS,
    ) -> None:
        super().__init__()
        if min(hidden, layers, heads) < 1 or hidden % heads:
            raise RepresentationError(
                "AtomTransformer: hidden, layers and heads must be at least 1 and hidden a multiple of heads, got "
                f"{hidden}, {layers} and {heads}"
            )
        self.elements = Elements(elements, "AtomTransformer")
        self.embedding = nn.Sequential(
            nn.Linear(len(self.elements) + 3, hidden), nn.GELU(), nn.Linear(hidden, hidden)
        )
        self.layers = nn.ModuleList(TransformerLayer(hidden, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(hidden)
        self.head = nn.Sequential(nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, 1))

    @classmethod
    def small(cls, elements: Sequence[int] = MD17_ELEMENTS) -> AtomTransformer:
        """Build a model with about as many parameters as `Equiformer.small`."""
        return cls(hidden=48, layers=2, elements=elements)

    def forward(self, numbers: Tensor, positions: Tensor, batch: Tensor) -> Tensor:
        """Energies (molecules,).

        Args:
            numbers: (n,) long, atomic numbers.
            positions: (n, 3).
            batch: (n,) long, the molecule of every atom, in any order.

        Raises:
            RepresentationError: a shape or dtype is wrong, or an element is not among the model's.
        """
        check_atoms(numbers, positions, batch, "AtomTransformer")
        centred = positions - centres(positions, batch)
        tokens = self.embedding(torch.cat([self.elements.one_hot(numbers, positions), centred], dim=1))
        order = batch.argsort(stable=True)
        counts = batch.bincount().index_select(
            0, batch.index_select(0, order)
        )  # atoms of each atom's molecule
        energies = tokens.new_zeros(tokens.shape[0])
        # molecules of one size are processed in one call, without padding
        for size in counts.unique().tolist():
            mine = order[counts == size]
            x = tokens.index_select(0, mine).unflatten(0, (-1, size))
            for layer in self.layers:
                x = layer(x)
            energies = energies.index_add(0, mine, self.head(self.norm(x)).flatten())
        return molecule_sums(energies, batch)
