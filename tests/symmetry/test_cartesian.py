"""3 x 3 tensors, and subspaces of them, as representations."""

from __future__ import annotations

import pytest
import torch

from equirelax.errors import RepresentationError
from equirelax.symmetry import SE, SO, Group, O, cartesian, from_irreps, hom_basis


def elements(group: Group) -> list[torch.Tensor]:
    """Some rotations and, where there are any, improper elements."""
    rotations = list(SO(3).sample(2, generator=torch.Generator().manual_seed(0)).double())
    return rotations + [mirror.double() @ g for mirror in group.discrete() for g in rotations]


@pytest.mark.parametrize("group", [SO(3), O(3)])
def test_a_tensor_turns_and_an_improper_element_transposes_it(group: Group) -> None:
    rep, x = cartesian(group), torch.randn(3, 3, dtype=torch.float64)
    for g in elements(group):
        expected = g @ (x if torch.linalg.det(g) > 0 else x.T) @ g.T
        assert torch.allclose(rep.apply(g, x.flatten()), expected.flatten(), atol=1e-12)


def test_the_components_of_a_basis_transform_as_the_tensor_does() -> None:
    basis = torch.zeros(3, 3, 3)
    for k, (i, j) in enumerate(((0, 1), (0, 2), (1, 2))):
        basis[k, i, j], basis[k, j, i] = 2.0, -2.0
    rep, c = cartesian(O(3), basis), torch.randn(3, dtype=torch.float64)
    x = torch.einsum("k,kij->ij", c, basis.double())
    for g in elements(O(3)):
        expected = g @ (x if torch.linalg.det(g) > 0 else x.T) @ g.T
        assert torch.allclose(
            torch.einsum("k,kij->ij", rep.apply(g, c), basis.double()), expected, atol=1e-12
        )


def test_it_holds_a_scalar_a_vector_and_a_symmetric_traceless_tensor() -> None:
    """Equivariant maps to each of these are one-dimensional, to others there are none."""
    ((_, block),) = cartesian(O(3)).blocks
    others = [from_irreps(f"1x{irrep}").blocks[0][1] for irrep in ("0e", "1o", "0o", "1e")]
    assert [len(hom_basis(block, other)) for other in others] == [1, 1, 0, 0]
    assert len(hom_basis(block, block)) == 3


@pytest.mark.parametrize(
    "basis", [torch.eye(3), torch.diag_embed(torch.eye(3)), torch.eye(3)[None].repeat(2, 1, 1)]
)
def test_what_is_no_basis_of_an_invariant_subspace_is_refused(basis: torch.Tensor) -> None:
    with pytest.raises(RepresentationError):
        cartesian(O(3), basis)


def test_other_groups_are_refused() -> None:
    for group in (SE(3), O(2)):
        with pytest.raises(RepresentationError):
            cartesian(group)
