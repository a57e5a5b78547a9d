"""Representations as objects: one's own, written out, pickled, compared; errors."""

from __future__ import annotations

import copy
import json
import pickle

import pytest
import torch
from representation_cases import GROUPS, SL2, everything, randn, rng

from equirelax.errors import RepresentationError
from equirelax.symmetry import (
    SO,
    Block,
    E,
    Group,
    O,
    Representation,
    custom,
    positions,
    pseudovector,
    regular,
    trivial,
    vector,
)

pytestmark = pytest.mark.filterwarnings("error")


def symmetric_square(g: torch.Tensor) -> torch.Tensor:
    """Action of (..., 2, 2) matrices on polynomials a x^2 + b x y + c y^2, as (..., 3, 3)."""
    a, b, c, d = g[..., 0, 0], g[..., 0, 1], g[..., 1, 0], g[..., 1, 1]
    rows = [[a * a, a * b, b * b], [2 * a * c, a * d + b * c, 2 * b * d], [c * c, c * d, d * d]]
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


SQUARE_GENERATORS = [
    [[2.0, 0, 0], [0, 0, 0], [0, 0, -2.0]],
    [[0, 1.0, 0], [0, 0, 2.0], [0, 0, 0]],
    [[0, 0, 0], [2.0, 0, 0], [0, 1.0, 0]],
]


def test_custom_representation() -> None:
    rep = custom(SL2, SQUARE_GENERATORS, matrix_fn=symmetric_square, name="square") + vector(SL2)
    a, b = SL2.sample(2, generator=rng(1))
    torch.testing.assert_close(rep.matrix(a @ b), rep.matrix(a) @ rep.matrix(b))
    theta = randn(3)
    lie = torch.einsum("k,kij->ij", theta, rep.generators())
    torch.testing.assert_close(torch.matrix_exp(lie), rep.matrix(SL2.exp(theta)))
    assert pickle.loads(pickle.dumps(rep)) == rep
    with pytest.raises(RepresentationError, match="Python function"):
        rep.spec()
    plain = custom(SL2, SQUARE_GENERATORS, name="square")
    assert Representation.from_spec(plain.spec()) == plain
    assert plain != custom(SL2, SQUARE_GENERATORS, matrix_fn=symmetric_square, name="square")
    with pytest.raises(RepresentationError, match="matrix_fn="):
        plain.matrix(a)
    twice = rep.tensor(rep)
    assert hash(twice) == hash(pickle.loads(pickle.dumps(twice)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"generators": SQUARE_GENERATORS[:2]}, r"\(3, d, d\), got shape \(2, 3, 3\)"),
        ({"generators": [SQUARE_GENERATORS[i] for i in (1, 0, 2)]}, "commutators differ"),
        ({"generators": SQUARE_GENERATORS, "discrete": [[[1.0]]]}, r"\(0, d, d\)"),
        ({"generators": [[[float("inf")]]] * 3}, "NaN or infinity"),
        ({}, r"\(3, d, d\)"),
    ],
)
def test_a_custom_representation_is_checked(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(RepresentationError, match=message):
        custom(SL2, **arguments)  # type: ignore[arg-type]


def test_a_wrong_matrix_function_is_noticed() -> None:
    rep = custom(SL2, SQUARE_GENERATORS, matrix_fn=lambda g: g)
    with pytest.raises(RepresentationError, match="matrix_fn of 'custom' gave shape"):
        rep.matrix(SL2.identity())


@pytest.mark.parametrize("group", GROUPS, ids=str)
def test_spec_pickle_and_copy(group: Group) -> None:
    rep = everything(group)
    if group.dim != group.linear_dim:
        rep = rep + positions(group)
    x = randn(2, rep.dim)
    g = group.sample(1, generator=rng())[0]
    for other in (
        Representation.from_spec(json.loads(json.dumps(rep.spec()))),
        pickle.loads(pickle.dumps(rep)),
        copy.deepcopy(rep),
    ):
        assert other == rep
        assert hash(other) == hash(rep)
        assert repr(other) == repr(rep)
        assert torch.equal(other.apply(g, x), rep.apply(g, x))
        assert torch.equal(other.derivative(x), rep.derivative(x))


def test_pickles_leave_the_cached_constants_out() -> None:
    rep = 64 * vector(SO(3))
    before = len(pickle.dumps(rep))
    rep.right(torch.zeros(5, rep.dim))
    assert len(pickle.dumps(rep)) <= before + 64  # names of groups and blocks may have been filled in
    assert copy.deepcopy(rep).blocks[0][1]._cache == {}


def test_constants_first_used_in_inference_mode_still_train() -> None:
    rep = 3 * vector(SO(3))
    with torch.inference_mode():
        rep.left(torch.zeros(9, 2))
        rep.right(torch.zeros(2, 9))
    weight = torch.ones(9, 2, requires_grad=True)
    (rep.left(weight).square().sum() + rep.right(weight.T).square().sum()).backward()
    assert weight.grad is not None
    assert torch.isfinite(weight.grad).all()


def test_written_form() -> None:
    assert repr(3 * vector(SO(3))) == "3xvector[SO(3)]"
    assert repr(2 * vector(E(3)) + trivial(E(3))) == "2xvector+1xtrivial[E(3)]"
    assert repr(trivial(SO(2), 0)) == "0[SO(2)]"


def test_equality_is_by_group_and_blocks() -> None:
    assert vector(SO(3)) != vector(O(3))
    assert vector(O(3)) != pseudovector(O(3))
    assert vector(O(3)) != vector(O(3)) + trivial(O(3))
    assert len({vector(O(3)), vector(O(3)), 2 * vector(O(3))}) == 2


def test_errors_name_what_was_expected() -> None:
    rep = 2 * vector(SO(3))
    g = SO(3).identity()
    with pytest.raises(RepresentationError, match=r"features of length 6, but axis -1 .* \(2, 5\)"):
        rep.apply(g, torch.zeros(2, 5))
    with pytest.raises(RepresentationError, match="axis 4"):
        rep.derivative(torch.zeros(6), axis=4)
    with pytest.raises(RepresentationError, match=r"\(3, 3\) matrix"):
        rep.apply(torch.eye(2), torch.zeros(6))
    with pytest.raises(RepresentationError, match="must match the first axes"):
        rep.apply(SO(3).sample(3), torch.zeros(2, 6))
    with pytest.raises(RepresentationError, match=r"dim = 6, got shape \(5, 2\)"):
        rep.left(torch.zeros(5, 2))
    with pytest.raises(RepresentationError, match="count = 3"):
        rep.left_transposed(torch.zeros(2, 6, 2))
    with pytest.raises(RepresentationError, match="one group"):
        rep + vector(O(3))
    with pytest.raises(RepresentationError, match="one group"):
        rep.tensor(vector(O(3)))
    with pytest.raises(RepresentationError, match="whole number >= 0"):
        -1 * rep
    with pytest.raises(RepresentationError, match="R\\^2"):
        pseudovector(SO(2))
    with pytest.raises(RepresentationError, match="finite group"):
        regular(SO(2))
    with pytest.raises(RepresentationError, match="keys 'group' and 'blocks'"):
        Representation.from_spec({"group": SO(2).spec()})
    with pytest.raises(RepresentationError, match="Did you mean 'Vector'"):
        Representation.from_spec({"group": SO(2).spec(), "blocks": [[1, {"type": "Vectr"}]]})


def test_equal_blocks_share_nothing_but_compare_equal() -> None:
    a, b = vector(O(3)).blocks[0][1], vector(O(3)).blocks[0][1]
    assert isinstance(a, Block)
    assert a is not b
    assert a == b
