"""Representations: the group law, derivatives, fast products against dense ones, tensor products."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from representation_cases import GROUPS, everything, randn, representations, rng

from equirelax.errors import RepresentationError
from equirelax.symmetry import (
    SE,
    SO,
    Dihedral,
    E,
    Group,
    Lorentz,
    O,
    Symmetric,
    custom,
    from_irreps,
    positions,
    pseudovector,
    regular,
    sign,
    trivial,
    vector,
)

pytestmark = pytest.mark.filterwarnings("error")


@pytest.mark.parametrize("group", GROUPS, ids=str)
def test_the_group_law(group: Group) -> None:
    rep = everything(group)
    g = group.sample(16, generator=rng(1))
    a, b = g[:8], g[8:]
    torch.testing.assert_close(rep.matrix(a @ b), rep.matrix(a) @ rep.matrix(b), rtol=0, atol=1e-11)
    torch.testing.assert_close(rep.matrix(group.identity()), torch.eye(rep.dim, dtype=torch.float64))


@pytest.mark.parametrize("group", [g for g in GROUPS if g.compact], ids=str)
def test_compact_groups_act_orthogonally(group: Group) -> None:
    matrix = everything(group).matrix(group.sample(8, generator=rng(2)))
    eye = torch.eye(matrix.shape[-1], dtype=torch.float64).expand_as(matrix)
    torch.testing.assert_close(matrix.mT @ matrix, eye, rtol=0, atol=1e-12)


@pytest.mark.parametrize("group", GROUPS, ids=str)
def test_generators_are_the_derivative_of_the_matrices(group: Group) -> None:
    rep, h = everything(group), 1e-4
    for basis_vector, drho in zip(torch.eye(group.algebra_dim), rep.generators(), strict=True):
        steps = torch.stack([basis_vector, -basis_vector]).double() * h
        plus, minus = rep.matrix(group.exp(steps))
        torch.testing.assert_close((plus - minus) / (2 * h), drho, rtol=0, atol=1e-7)


@pytest.mark.parametrize("group", GROUPS, ids=str)
def test_exponentials_of_generators_are_the_matrices(group: Group) -> None:
    rep = everything(group)
    theta = randn(4, group.algebra_dim)
    lie = torch.einsum("bk,kij->bij", theta, rep.generators())
    matrix = rep.matrix(group.exp(theta))
    scale = float(matrix.abs().max())
    torch.testing.assert_close(torch.matrix_exp(lie), matrix, rtol=0, atol=1e-11 * scale)
    torch.testing.assert_close(rep.discrete(), rep.matrix(group.discrete()))


@pytest.mark.parametrize("group", GROUPS, ids=str)
@given(data=st.data())
@settings(deadline=None, max_examples=12)
def test_fast_products_equal_dense_ones(group: Group, data: st.DataObject) -> None:
    rep = data.draw(representations(group))
    m = data.draw(st.integers(0, 5))
    k, c, dim = group.algebra_dim, group.discrete_count, rep.dim
    lie, disc = rep.generators(), rep.discrete()
    tall, wide = randn(dim, m), randn(m, dim, seed=1)
    close = lambda a, b: torch.testing.assert_close(a, b, rtol=0, atol=1e-12)  # noqa: E731
    close(rep.left(tall), lie @ tall)
    close(rep.right(wide), wide @ lie)
    close(rep.discrete_left(tall), disc @ tall)
    close(rep.discrete_right(wide), wide @ disc)
    close(rep.left_transposed(randn(k, dim, m)), (lie.mT @ randn(k, dim, m)).sum(dim=0))
    close(rep.right_transposed(randn(k, m, dim)), (randn(k, m, dim) @ lie.mT).sum(dim=0))
    close(rep.discrete_left_transposed(randn(c, dim, m)), (disc.mT @ randn(c, dim, m)).sum(dim=0))
    close(rep.discrete_right_transposed(randn(c, m, dim)), (randn(c, m, dim) @ disc.mT).sum(dim=0))
    close(rep.derivative(wide), wide @ lie.mT)
    close(rep.derivative(tall, axis=0), lie @ tall)


@pytest.mark.parametrize("group", [E(3), Lorentz(), Dihedral(4)], ids=str)
def test_transposed_functions_are_adjoints_and_gradients(group: Group) -> None:
    rep = everything(group)
    for forward, adjoint, shape in [
        (rep.left, rep.left_transposed, (rep.dim, 4)),
        (rep.right, rep.right_transposed, (4, rep.dim)),
        (rep.discrete_left, rep.discrete_left_transposed, (rep.dim, 4)),
        (rep.discrete_right, rep.discrete_right_transposed, (4, rep.dim)),
    ]:
        weight = randn(*shape).requires_grad_()
        image = forward(weight)
        other = randn(*image.shape, seed=5)
        (gradient,) = torch.autograd.grad((image * other).sum(), weight)
        torch.testing.assert_close(adjoint(other), gradient, rtol=0, atol=1e-12)


def test_products_of_non_contiguous_matrices_and_other_dtypes() -> None:
    rep = everything(O(3))
    turned = randn(7, rep.dim).T
    torch.testing.assert_close(rep.left(turned), rep.generators() @ turned)
    torch.testing.assert_close(rep.right(randn(rep.dim, 7).T), randn(rep.dim, 7).T @ rep.generators())
    single = rep.left(turned.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single, (rep.generators() @ turned).float())


@pytest.mark.parametrize("group", GROUPS, ids=str)
def test_apply_acts_on_any_axis_with_one_element_or_many(group: Group) -> None:
    rep = everything(group)
    g = group.sample(3, generator=rng(4))
    x = randn(3, 5, rep.dim)
    torch.testing.assert_close(rep.apply(g[0], x), x @ rep.matrix(g[0]).T)
    torch.testing.assert_close(
        rep.apply(g[0], x.movedim(-1, 0), axis=0), (x @ rep.matrix(g[0]).T).movedim(-1, 0)
    )
    torch.testing.assert_close(rep.apply(g[0], x.mT, axis=-2), (x @ rep.matrix(g[0]).T).mT)
    each = torch.stack([x[i] @ rep.matrix(g[i]).T for i in range(3)])
    torch.testing.assert_close(rep.apply(g, x), each)
    torch.testing.assert_close(rep.apply(g.unsqueeze(1), x), each)
    assert rep.apply(g[0], x.float()).dtype == torch.float32


@pytest.mark.parametrize("group", [SE(2), SE(3), E(1), E(3)], ids=str)
def test_positions_rotate_and_shift(group: Group) -> None:
    rep = trivial(group) + 2 * positions(group) + vector(group)
    n = group.linear_dim
    assert not rep.linear
    a, b = group.sample(2, generator=rng(3))
    x = randn(4, rep.dim)
    moved = rep.apply(a, x)
    torch.testing.assert_close(moved[:, 1 : 1 + n], x[:, 1 : 1 + n] @ a[:n, :n].T + a[:n, n])
    torch.testing.assert_close(moved[:, -n:], x[:, -n:] @ a[:n, :n].T)
    torch.testing.assert_close(rep.apply(a @ b, x), rep.apply(a, rep.apply(b, x)))
    batched = rep.apply(torch.stack([a, b]), x[:2])
    torch.testing.assert_close(batched[1], rep.apply(b, x[1]))
    h = 1e-5
    for axis in (-1, 0):
        feature = x if axis == -1 else x.T
        derivative = rep.derivative(feature, axis=axis)
        for i, step in enumerate(h * torch.eye(group.algebra_dim, dtype=torch.float64)):
            plus = rep.apply(group.exp(step), feature, axis=axis)
            minus = rep.apply(group.exp(-step), feature, axis=axis)
            torch.testing.assert_close((plus - minus) / (2 * h), derivative[i], rtol=0, atol=1e-8)


def test_derivative_on_an_inner_axis() -> None:
    rep = 2 * vector(SO(3))
    x = randn(2, 6, 5)
    expected = torch.einsum("kij,bjm->kbim", rep.generators(), x)
    torch.testing.assert_close(rep.derivative(x, axis=1), expected)
    torch.testing.assert_close(rep.derivative(x, axis=-2), expected)


def test_positions_of_a_group_without_translations_are_vectors() -> None:
    assert positions(O(3)) == vector(O(3))
    assert (positions(E(3)) + trivial(E(3))).linear_part() == vector(E(3)) + trivial(E(3))


def test_affine_representations_have_no_matrices() -> None:
    rep = positions(E(3))
    g = E(3).identity()
    for call in (
        lambda: rep.matrix(g),
        lambda: rep.left(torch.eye(3)),
        lambda: rep.right(torch.eye(3)),
        lambda: rep.tensor(vector(E(3))),
        lambda: vector(E(3)).tensor(rep),
    ):
        with pytest.raises(RepresentationError, match=r"linear_part\(\)"):
            call()


@pytest.mark.parametrize("group", GROUPS, ids=str)
@given(data=st.data())
@settings(deadline=None, max_examples=8)
def test_tensor_product_is_the_kronecker_product(group: Group, data: st.DataObject) -> None:
    left, right = (data.draw(representations(group, copies=2, kinds=2)) for _ in range(2))
    product = left.tensor(right)
    g = group.sample(1, generator=rng(6))[0]
    expected = torch.kron(left.matrix(g), right.matrix(g).contiguous())
    torch.testing.assert_close(product.matrix(g), expected, rtol=0, atol=1e-12)
    features = torch.einsum("i,j->ij", randn(left.dim), randn(right.dim, seed=2)).flatten()
    moved = torch.einsum("i,j->ij", left.apply(g, randn(left.dim)), right.apply(g, randn(right.dim, seed=2)))
    torch.testing.assert_close(product.apply(g, features), moved.flatten(), rtol=0, atol=1e-11)


def test_layout_of_direct_sums_and_multiples() -> None:
    group = SO(2)
    rep = 2 * (vector(group) + trivial(group)) + 2 * vector(group)
    g = group.exp(torch.tensor([0.3], dtype=torch.float64))
    one = torch.eye(1, dtype=torch.float64)
    torch.testing.assert_close(rep.matrix(g), torch.block_diag(g, one, g, one, g, g))
    assert rep.dim == 10
    assert [m for m, _ in rep.blocks] == [1, 1, 1, 1, 2]
    assert (vector(group) + vector(group)) == 2 * vector(group)
    assert 0 * rep == trivial(group, 0)
    assert rep.slices()[-1] == slice(6, 10)


def test_sign_and_pseudovector_under_the_inversion() -> None:
    inversion = -torch.eye(3, dtype=torch.float64)
    assert sign(O(3)).matrix(inversion).item() == -1.0
    assert torch.equal(pseudovector(O(3)).matrix(inversion), -inversion)
    swap = Symmetric(3).discrete()[0]
    assert sign(Symmetric(3)).matrix(swap).item() == -1.0
    a, b = randn(3), randn(3, seed=1)
    g = O(3).sample(1, generator=rng(9))[0]
    cross = torch.linalg.cross(a, b)
    torch.testing.assert_close(torch.linalg.cross(g @ a, g @ b), pseudovector(O(3)).matrix(g) @ cross)


def test_regular_representation_permutes_the_elements() -> None:
    group = Dihedral(3)
    elements = group.elements()
    for g in elements:
        matrix = regular(group).matrix(g)
        for h in range(6):
            image = int(matrix[:, h].argmax())
            torch.testing.assert_close(elements[image], g @ elements[h], rtol=0, atol=1e-12)


def test_invariants_may_be_integers() -> None:
    rep = trivial(SO(3), 2)
    assert rep.invariant
    x = torch.arange(6).reshape(3, 2)
    moved = rep.apply(SO(3).identity(), x)
    assert torch.equal(moved, x)
    assert moved is not x
    with pytest.raises(RepresentationError, match="floating-point"):
        vector(SO(3)).apply(SO(3).identity(), torch.arange(3))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_products_on_cuda() -> None:
    rep = everything(E(3))
    weight = randn(rep.dim, 7)
    torch.testing.assert_close(rep.left(weight.cuda()).cpu(), rep.left(weight))
    torch.testing.assert_close(rep.right(weight.T.cuda()).cpu(), rep.right(weight.T))
    generator = torch.Generator("cuda").manual_seed(0)
    g = E(3).sample(3, generator=generator, device="cuda")
    assert E(3).contains(g).all()
    torch.testing.assert_close(
        rep.apply(g, weight[:, :3].T.cuda()).cpu(), rep.apply(g.cpu(), weight[:, :3].T)
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("group", GROUPS, ids=str)
def test_half_precision_is_rounded_and_no_more(group: Group, dtype: torch.dtype) -> None:
    """Elements come in the dtype of a network, as those of a canonicaliser do."""
    rep = everything(group)
    if group in (O(3), SE(3)):
        rep = rep + from_irreps("0o+1o+1e", group)
    g = group.sample(3, generator=rng(2), dtype=dtype)
    for found, exact in (
        (rep.matrix(g), rep.matrix(g.double())),
        (group.inverse(g), group.inverse(g.double())),
    ):
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), exact, rtol=0.03, atol=0.03)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_given_matrices_of_a_finite_group_serve_half_precision(dtype: torch.dtype) -> None:
    group = Dihedral(4)
    g = group.elements(dtype)
    rep = custom(group, discrete=group.discrete())
    torch.testing.assert_close(rep.matrix(g), g, rtol=0, atol=1e-6)
