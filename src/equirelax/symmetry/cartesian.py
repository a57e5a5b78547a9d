"""Cartesian tensors: 3 x 3 matrices, or a subspace of them in a given basis."""

from __future__ import annotations

import torch
from torch import Tensor

from equirelax.errors import RepresentationError
from equirelax.symmetry.constructors import custom
from equirelax.symmetry.group import Group
from equirelax.symmetry.lie import SO, O
from equirelax.symmetry.representation import Representation


def cartesian(group: Group, basis: Tensor | None = None) -> Representation:
    """Build the representation on 3 x 3 matrices X, as in TensorNet: a scalar, a vector and a symmetric traceless tensor.

    A rotation R takes X to R X R^T, and an element with det R = -1 takes it to R X^T R^T. So the antisymmetric part is a vector
    and not a pseudovector, and the whole is 1x0e + 1x1o + 1x2e (Simeon and De Fabritiis, arXiv 2306.06482, section 3). e3nn is
    not needed.

    Args:
        group: SO(3) or O(3).
        basis: matrices B_k, (k, 3, 3), of a subspace that the group maps to itself. The components are the c_k of
            X = sum_k c_k B_k. None: the nine entries of X, row by row.

    Raises:
        RepresentationError: the group is another one, or the matrices are not a basis of such a subspace.

    Examples:
        >>> from equirelax.symmetry import O, cartesian
        >>> cartesian(O(3)).dim
        9
    """
    if not isinstance(group, SO | O) or group.n != 3:
        raise RepresentationError(f"Cartesian tensors belong to SO(3) or O(3), not to {group.name}")
    given = torch.eye(9).reshape(9, 3, 3) if basis is None else basis
    if given.dim() != 3 or given.shape[1:] != (3, 3):
        raise RepresentationError(f"the basis has shape {tuple(given.shape)}; expected (k, 3, 3)")
    matrices = given.detach().to(device="cpu", dtype=torch.float64)
    columns = matrices.flatten(1).T  # (9, k)
    components = torch.linalg.pinv(columns)

    def restrict(images: Tensor) -> Tensor:
        """The action on the components, from images (k, 3, 3) of the basis."""
        found: Tensor = components @ images.flatten(1).T
        if not torch.allclose(columns @ found, images.flatten(1).T, atol=1e-9):
            raise RepresentationError(
                f"the {len(matrices)} matrices of the basis are not mapped to one another by {group.name}"
            )
        return found

    if torch.linalg.matrix_rank(columns) < len(matrices):
        raise RepresentationError(f"the {len(matrices)} matrices of the basis are linearly dependent")
    generators = [restrict(a @ matrices + matrices @ a.T) for a in group.algebra()]
    discrete = [restrict(d @ matrices.mT @ d.T) for d in group.discrete()]
    return custom(
        group, torch.stack(generators), torch.stack(discrete) if discrete else None, name="cartesian"
    )
