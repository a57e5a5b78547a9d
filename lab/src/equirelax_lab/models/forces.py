"""Forces as the exact negative gradient of a network's energy."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from equirelax.errors import RepresentationError
from equirelax_lab.models.readable import only_mapped


class ConservativeForces(nn.Module):
    """Computes energies and forces of molecules, F = -dE/dx, by autograd.

    Forces are differentiable wherever gradients are recorded, so that a loss on them trains the energy's weights. They are
    also computed under `torch.no_grad` and `torch.inference_mode`.

    Args:
        energy_model: forward(numbers (n,), positions (n, 3), batch (n,)) -> energies (molecules,).
    """

    def __init__(self, energy_model: nn.Module) -> None:
        super().__init__()
        self.energy_model = energy_model

    def forward(self, numbers: Tensor, positions: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Compute energies (molecules,) and forces (n, 3), in the energy's unit per unit of the positions.

        Args:
            numbers: (n,) long, atomic numbers.
            positions: (n, 3).
            batch: (n,) long, the molecule of every atom.

        Raises:
            RepresentationError: autograd finds no path from the energies to the positions, or `torch.func.vmap` maps over
                several networks.
        """
        if only_mapped():
            raise RepresentationError(
                "ConservativeForces differentiates by autograd, which cannot be mapped over networks by torch.func.vmap: call it "
                "for one network at a time"
            )
        create_graph = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.enable_grad():
            numbers, batch = _recordable(numbers), _recordable(batch)
            positions = _recordable(positions)
            if not (create_graph and positions.requires_grad):
                positions = positions.detach().requires_grad_()
            energies = self.energy_model(numbers, positions, batch)
            slope = self._slope(energies, positions, create_graph)
        return (energies if create_graph else energies.detach()), -slope

    def _slope(self, energies: Tensor, positions: Tensor, create_graph: bool) -> Tensor:
        """dE/dx (n, 3)."""
        if positions.shape[0] == 0:
            return torch.zeros_like(positions)
        found = None
        if energies.requires_grad:
            (found,) = torch.autograd.grad(
                energies.sum(), positions, create_graph=create_graph, allow_unused=True
            )
        if found is None:
            raise RepresentationError(
                f"ConservativeForces: the energies of {type(self.energy_model).__name__} carry no gradient of the positions; "
                "look for a detach(), a no_grad block or a conversion to numpy in its forward"
            )
        slope: Tensor = found
        return slope


def _recordable(x: Tensor) -> Tensor:
    """x, or a copy if it was made in inference mode, since such a tensor may not be saved for a backward pass."""
    return x.clone() if x.is_inference() else x
