"""escnn's gspaces, elements and field types as ours."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from escnn import group, gspaces
from escnn import nn as enn
from escnn_networks import SPACES, draw

from equirelax.errors import RepresentationError
from equirelax.symmetry import (
    SO,
    Cyclic,
    Dihedral,
    Group,
    O,
    Representation,
    as_representation,
    regular,
    vector,
)
from equirelax.symmetry.escnn import (
    element_matrix,
    from_field_type,
    from_gspace,
    from_representation,
)

WITHOUT_BASE: dict[str, Any] = {
    "C2 alone": lambda: gspaces.no_base_space(group.cyclic_group(2)),
    "C8 alone": lambda: gspaces.no_base_space(group.cyclic_group(8)),
    "D4 alone": lambda: gspaces.no_base_space(group.dihedral_group(4)),
    "SO(2) alone": lambda: gspaces.no_base_space(group.so2_group(3)),
    "O(2) alone": lambda: gspaces.no_base_space(group.o2_group(3)),
    "SO(3) alone": lambda: gspaces.no_base_space(group.so3_group(2)),
    "O(3) alone": lambda: gspaces.no_base_space(group.o3_group(2)),
}
OTHERS: dict[str, Any] = {
    "tilted D2": lambda: gspaces.flipRot2dOnR2(2, axis=0.3),
    "D3": lambda: gspaces.flipRot2dOnR2(3),
    "SO(3)": lambda: gspaces.rot3dOnR3(maximum_frequency=2),
    "O(3)": lambda: gspaces.flipRot3dOnR3(maximum_frequency=2),
    "C4 in space": lambda: gspaces.rot2dOnR3(4),
}
ALL = {**SPACES, **WITHOUT_BASE, **OTHERS}


def representations(space: Any) -> list[Any]:
    """Irreps, the base action, the regular one, and a sum of the last two in another basis."""
    found = [space.trivial_repr, *(space.irrep(*irrep.id) for irrep in list(space.irreps)[:4])]
    if space.basespace_action is not None:
        found.append(space.basespace_action)
    if not space.fibergroup.continuous:
        found.append(space.regular_repr)
    both = group.directsum(found[-2:], name="both")
    turn = torch.linalg.qr(draw(both.size, both.size)).Q.numpy()
    return [*found, group.directsum(found[-2:], change_of_basis=turn, name="turned")]


@pytest.mark.parametrize("name", ALL)
def test_every_element_acts_as_in_escnn(name: str) -> None:
    space = ALL[name]()
    field_type = enn.FieldType(space, representations(space))
    rep, fiber = from_field_type(field_type), space.fibergroup
    elements = list(fiber.elements)[:16] if not fiber.continuous else [fiber.sample() for _ in range(16)]
    for element in elements:
        expected = torch.as_tensor(field_type.representation(element))
        assert torch.allclose(rep.matrix(element_matrix(space, element)), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ALL)
def test_elements_multiply_as_in_escnn(name: str) -> None:
    space = ALL[name]()
    a, b = space.fibergroup.sample(), space.fibergroup.sample()
    product = element_matrix(space, a) @ element_matrix(space, b)
    assert torch.allclose(product, element_matrix(space, a @ b), rtol=0, atol=1e-12)
    if from_gspace(space).order is not None or isinstance(from_gspace(space), SO | O):
        from_gspace(space).check(product)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("C1", Cyclic(1)),
        ("C4", Cyclic(4)),
        ("D1", Dihedral(1)),
        ("D4", Dihedral(4)),
        ("C8", Cyclic(8)),
        ("SO(2)", SO(2)),
        ("O(2)", O(2)),
        ("SO(3)", SO(3)),
        ("O(3)", O(3)),
        ("C8 alone", Cyclic(8)),
        ("D4 alone", Dihedral(4)),
    ],
)
def test_groups_that_are_ours_are_named(name: str, expected: Group) -> None:
    assert from_gspace(ALL[name]()) == expected


def test_named_blocks_are_found() -> None:
    space = SPACES["C4"]()
    found = from_field_type(
        enn.FieldType(space, [space.basespace_action, space.regular_repr, space.regular_repr])
    )
    assert found == vector(Cyclic(4)) + 2 * regular(Cyclic(4))


def test_channels_keep_escnns_order_where_its_elements_come_in_another() -> None:
    """By default escnn reflects about the y axis, so its regular fields of D4 are permuted ones of ours."""
    along_y, along_x = SPACES["D4"](), SPACES["D4 along x"]()
    assert from_representation(along_x, along_x.regular_repr) == regular(Dihedral(4))
    assert from_representation(along_y, along_y.regular_repr) != regular(Dihedral(4))


@pytest.mark.parametrize("name", ["C8", "D4", "O(2)", "O(3)", "D3"])
def test_representations_pickle_and_can_be_written_down(name: str) -> None:
    space = ALL[name]()
    rep = from_field_type(enn.FieldType(space, representations(space)))
    assert pickle.loads(pickle.dumps(rep)) == rep
    assert Representation.from_spec(rep.spec()) == rep


def test_fields_move_as_escnns() -> None:
    for name in ("C4", "D4", "flips"):
        space = SPACES[name]()
        field_type = enn.FieldType(space, representations(space))
        x = draw(2, field_type.size, 7, 7)
        for element in space.fibergroup.elements:
            moved = enn.GeometricTensor(x, field_type).transform(element).tensor
            found = as_representation(field_type).apply(element_matrix(space, element), x)
            assert torch.allclose(found, moved.to(found), rtol=0, atol=1e-6)


def test_what_cannot_be_converted_says_so() -> None:
    with pytest.raises(RepresentationError, match=r"infinite fiber group .* on 3 axes"):
        from_gspace(gspaces.rot2dOnR3())
