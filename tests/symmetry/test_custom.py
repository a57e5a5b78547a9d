"""Custom representations of groups whose every element follows from the generators."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from equirelax.errors import RepresentationError
from equirelax.symmetry import (
    SO,
    Cyclic,
    Dihedral,
    Group,
    MatrixGroup,
    O,
    Representation,
    Symmetric,
    custom,
    regular,
    sign,
    vector,
)

FINITE = (Cyclic(4), Cyclic(8), Dihedral(1), Dihedral(4), Dihedral(5), Symmetric(4))
ROTATIONS = (SO(2), O(2), SO(3), O(3))


def derived(rep: Representation) -> Representation:
    """The same, by its generators alone."""
    return custom(rep.group, rep.generators(), rep.discrete(), name="derived")


@pytest.mark.parametrize("group", FINITE, ids=str)
def test_elements_of_finite_groups(group: Group) -> None:
    rep = regular(group) + sign(group) + vector(group)
    elements = group.elements()
    assert torch.allclose(derived(rep).matrix(elements), rep.matrix(elements), rtol=0, atol=1e-12)
    batch = elements[torch.tensor([[0, -1], [-1, 0]])]
    assert torch.allclose(derived(rep).matrix(batch), rep.matrix(batch), rtol=0, atol=1e-12)


@pytest.mark.parametrize("group", ROTATIONS, ids=str)
def test_elements_of_rotations_and_reflections(group: Group) -> None:
    rep = (vector(group) + sign(group)).tensor(vector(group))
    g = torch.cat([group.sample(20), torch.eye(group.dim, dtype=torch.float64)[None], group.discrete()])
    assert torch.allclose(derived(rep).matrix(g), rep.matrix(g), rtol=0, atol=1e-12)
    assert derived(rep).matrix(g.float()).dtype == torch.float32


def test_a_group_by_other_reflections_than_ours() -> None:
    flips = MatrixGroup(None, torch.diag(torch.tensor([-1.0, 1.0]))[None], name="flips")
    swap = torch.tensor([[[0.0, 1.0], [1.0, 0.0]]], dtype=torch.float64)
    rep = custom(flips, None, swap)
    found = rep.matrix(flips.elements())
    assert torch.equal(found, torch.stack([torch.eye(2, dtype=torch.float64), swap[0]]))


def test_matrices_that_are_no_representation_are_refused() -> None:
    wrong = torch.tensor(
        [[[0.0, 1.0], [1.0, 0.0]]], dtype=torch.float64
    )  # of order 2, the generator of order 3
    with pytest.raises(RepresentationError, match="obey other relations"):
        custom(Cyclic(3), None, wrong).matrix(Cyclic(3).elements())


@pytest.mark.parametrize(
    ("group", "discrete"),
    [(O(2), torch.eye(2)), (O(3), 2 * torch.eye(3)), (O(3), torch.diag(torch.tensor([1.0, 1.0, -1.0])))],
    ids=["turns no generator", "not of order 2", "another reflection"],
)
def test_discrete_elements_that_do_not_fit_the_generators_are_refused(group: Group, discrete: Tensor) -> None:
    own = vector(group).generators()
    custom(group, own, vector(group).discrete())
    with pytest.raises(RepresentationError, match="not of one representation"):
        custom(group, own, discrete.double()[None])


def test_a_spec_keeps_every_digit() -> None:
    """Lists of numbers are read in float64 whatever the default dtype is."""
    rep = custom(Cyclic(8), None, vector(Cyclic(8)).discrete(), name="turn")
    assert Representation.from_spec(json.loads(json.dumps(rep.spec()))) == rep
    group = MatrixGroup(None, Cyclic(8).discrete(), name="turns")
    assert torch.equal(Group.from_spec(json.loads(json.dumps(group.spec()))).discrete(), group.discrete())
