"""Penalties against slow, obvious sums over samples, generators and entries."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import equirelax as er
from equirelax.errors import PenaltyError
from equirelax.relaxation.kinds import EquivariantDense
from equirelax.relaxation.layers.vector import VectorSite
from equirelax.relaxation.regularizers import (
    LieDerivative,
    directional_derivative,
    jacobian_terms,
    linear_terms,
    residual_terms,
    safe_root,
)
from equirelax.symmetry import (
    SO,
    Cyclic,
    E,
    Lorentz,
    O,
    Representation,
    equivariant_projection,
    from_irreps,
    positions,
    trivial,
    vector,
)

FEW = settings(deadline=None, max_examples=15)


def reps() -> dict[str, Representation]:
    return {
        "irreps": from_irreps("2x0e+1x0o+2x1o+1x1e+1x2e"),
        "vectors": 3 * vector(O(3)),
        "lorentz": 2 * vector(Lorentz()) + trivial(Lorentz()),
        "finite": 2 * vector(Cyclic(4)) + trivial(Cyclic(4), 2),
        "plane": vector(SO(2)) + 2 * trivial(SO(2)),
    }


def slow_terms(weight, bias, rows, in_rep, out_rep):
    """Sums over samples and elements, with dense matrices; the bias stays outside of W drho_in(A) x."""
    zero = torch.zeros(out_rep.dim, dtype=rows.dtype)
    bias = zero if bias is None else bias
    lie = norm = 0.0
    for x in rows:
        norm += (weight @ x + bias).square().sum()
        for a_in, a_out in zip(in_rep.generators(rows.dtype), out_rep.generators(rows.dtype), strict=True):
            lie += (a_out @ (weight @ x + bias) - weight @ (a_in @ x)).square().sum()
        for g_in, g_out in zip(in_rep.discrete(rows.dtype), out_rep.discrete(rows.dtype), strict=True):
            lie += (g_out @ (weight @ x + bias) - (weight @ (g_in @ x) + bias)).square().sum()
    return lie, norm


@pytest.mark.parametrize("name", reps())
@pytest.mark.parametrize("count", [3, 40])
@pytest.mark.parametrize("with_bias", [False, True])
def test_linear_terms_and_gradients_are_the_slow_sums(name, count, with_bias):
    torch.manual_seed(0)
    rep = reps()[name]
    out = rep + trivial(rep.group)
    rows = torch.randn(count, rep.dim, dtype=torch.float64)
    weight = torch.randn(out.dim, rep.dim, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(out.dim, dtype=torch.float64, requires_grad=True) if with_bias else None
    parameters = [p for p in (weight, bias) if p is not None]
    fast = linear_terms(weight, bias, [rows[:2], rows[2:]], -1, rep, out)
    slow = slow_terms(weight, bias, rows, rep, out)
    for a, b in zip(fast, slow, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)
        for ga, gb in zip(
            torch.autograd.grad(a, parameters, retain_graph=True),
            torch.autograd.grad(b, parameters, retain_graph=True),
            strict=True,
        ):
            torch.testing.assert_close(ga, gb, rtol=1e-10, atol=1e-10)


@FEW
@given(
    batch=st.integers(1, 3), points=st.integers(1, 30), channels=st.integers(1, 4), with_bias=st.booleans()
)
def test_columns_give_the_same_as_rows(batch, points, channels, with_bias):
    rep, out = channels * vector(O(3)), 2 * vector(O(3))
    x = torch.randn(batch, rep.dim, points, dtype=torch.float64)
    weight = torch.randn(out.dim, rep.dim, dtype=torch.float64)
    bias = torch.randn(out.dim, dtype=torch.float64) if with_bias else None
    columns = linear_terms(weight, bias, [x], -2, rep, out)
    rows = linear_terms(weight, bias, [x.transpose(1, 2)], -1, rep, out)
    torch.testing.assert_close(columns, rows, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", reps())
@pytest.mark.parametrize("count", [2, 50])
def test_an_equivariant_residual_has_no_lie_term(name, count):
    rep = reps()[name]
    weight = equivariant_projection(torch.randn(rep.dim, rep.dim, dtype=torch.float64), rep, rep)
    rows = torch.randn(count, rep.dim, dtype=torch.float64)
    lie, norm = linear_terms(weight, None, [rows], -1, rep, rep)
    assert norm > 0.01
    assert lie <= 1e-20 * norm
    lie, norm = jacobian_terms(lambda x: x @ weight.T, [rows], -1, rep, rep)
    assert lie <= 1e-20 * norm
    lie, norm = jacobian_terms(lambda x: x @ weight.T, [rows], -1, rep, rep, finite_difference=True)
    assert lie <= 1e-10 * norm


def test_defect_1_the_penalty_of_an_equivariant_weight_is_not_changed_by_the_layout():
    """CR's release reshaped (-1, d, 3) for (-1, 3, d): W (x) 1 in the other order must
    be penalised, in this one not.
    """
    rep = 4 * vector(O(3))
    mix, x = torch.randn(4, 4, dtype=torch.float64), torch.randn(20, 12, dtype=torch.float64)
    right, wrong = (
        torch.kron(mix, torch.eye(3, dtype=torch.float64)),
        torch.kron(torch.eye(3, dtype=torch.float64), mix),
    )
    lie, norm = linear_terms(right, None, [x], -1, rep, rep)
    assert lie <= 1e-20 * norm
    lie, norm = linear_terms(wrong, None, [x], -1, rep, rep)
    assert lie > 0.1 * norm


def test_an_invariant_bias_is_not_penalised():
    """CR's release put the bias inside W(Ax): a bias on invariants then counts although it breaks nothing."""
    rep, out = 2 * vector(O(3)), trivial(O(3), 3)
    x = torch.randn(10, 6, dtype=torch.float64)
    lie, norm = linear_terms(
        torch.zeros(3, 6, dtype=torch.float64), torch.ones(3, dtype=torch.float64), [x], -1, rep, out
    )
    assert lie == 0
    assert norm == pytest.approx(30)


def test_a_parity_violation_is_penalised_under_o3_and_not_under_so3():
    identity, x = torch.eye(3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    lie, norm = linear_terms(identity, None, [x], -1, from_irreps("1x1e"), from_irreps("1x1o"))
    assert lie == pytest.approx(float(4 * norm))  # || -Wx - Wx ||^2 for the inversion
    so3 = [from_irreps(i, group=SO(3)) for i in ("1x1e", "1x1o")]
    assert linear_terms(identity, None, [x], -1, *so3)[0] <= 1e-20 * norm


@pytest.mark.parametrize("name", reps())
def test_jacobian_terms_of_a_linear_map_are_the_linear_terms(name):
    rep = reps()[name]
    weight = torch.randn(rep.dim, rep.dim, dtype=torch.float64)
    rows = torch.randn(7, rep.dim, dtype=torch.float64)
    expected = linear_terms(weight, None, [rows], -1, rep, rep)
    torch.testing.assert_close(
        jacobian_terms(lambda x: x @ weight.T, [rows], -1, rep, rep), expected, rtol=1e-11, atol=1e-11
    )
    finite = jacobian_terms(lambda x: x @ weight.T, [rows], -1, rep, rep, finite_difference=True)
    torch.testing.assert_close(finite, expected, rtol=1e-6, atol=1e-6)


def test_translations_of_positions_are_penalised():
    """x -> x reads an absolute position: under E(3) the derivative along a
    translation t is W t, for every row.
    """
    rep, out = positions(E(3)), vector(E(3))
    x = torch.randn(4, 3, dtype=torch.float64)
    lie, _ = jacobian_terms(lambda y: y, [x], -1, rep, out)
    assert lie == pytest.approx(4 * 3)


def test_a_finite_difference_is_taken_where_no_forward_rule_exists():
    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx, grad):
            (x,) = ctx.saved_tensors
            return 3 * x**2 * grad

    x, d = torch.rand(6, dtype=torch.float64) + 1, torch.randn(6, dtype=torch.float64)
    value, derivative = directional_derivative(Cube.apply, x, d)
    torch.testing.assert_close(value, x**3)
    torch.testing.assert_close(derivative, 3 * x**2 * d, rtol=1e-8, atol=1e-8)


def test_the_root_has_gradient_zero_at_zero():
    x = torch.zeros(3, requires_grad=True)
    safe_root(x.square().sum()).backward()
    assert torch.equal(x.grad, torch.zeros(3))


class Plain(nn.Module):
    """Two maps of vectors with a norm between, built in the default dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 9, bias=False)
        self.second = nn.Linear(9, 3, bias=False)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


def relaxed(residual=None) -> tuple[nn.Module, er.relaxation.Relaxation]:
    torch.set_default_dtype(torch.float64)
    try:
        model = Plain()
        v = vector(O(3))
        declare = (er.relaxation.Linear("first", 2 * v, 3 * v), er.relaxation.Linear("second", 3 * v, v))
        relaxation = er.relax(model, Layers_(residual, declare))
    finally:
        torch.set_default_dtype(torch.float32)
    return model, relaxation


def Layers_(residual, declare):
    return er.Layers(residual=residual or er.Dense(init="default"), declare=declare)


def test_the_penalty_as_printed():
    model, relaxation = relaxed()
    relaxation.set_gamma(0.3)
    penalty = LieDerivative(relaxation, lie_weight=0.2, norm_weight=0.05)
    x = torch.randn(11, 6, dtype=torch.float64)
    model(x)
    total = penalty()
    with torch.no_grad(), relaxation.strict():
        hidden = model.first(x)
    with torch.no_grad():
        hidden = torch.tanh(hidden + 0.3 * relaxation["first"].map(x))
    lie = norm = 0.0
    for key, rows in (("first", x), ("second", hidden)):
        r = relaxation[key]
        terms = slow_terms(r.map.weight, None, rows, r.in_rep, r.out_rep)
        assert penalty.terms[key]["lie"] == pytest.approx(float(terms[0]))
        lie, norm = lie + terms[0], norm + terms[1]
    assert float(total) == pytest.approx(float(0.2 * lie.sqrt() + 0.05 * norm.sqrt()))


def test_inputs_are_detached_and_gamma_is_left_out():
    model, relaxation = relaxed()
    relaxation["first"].learn_gamma(0.5)
    penalty = LieDerivative(relaxation)
    model(torch.randn(4, 6, dtype=torch.float64))
    penalty().backward()
    assert model.first.weight.grad is None
    assert relaxation["first"].gamma.grad is None
    assert relaxation["first"].map.weight.grad.abs().sum() > 0


def test_micro_batches_add_up_before_the_root():
    model, relaxation = relaxed()
    penalty = LieDerivative(relaxation)
    x = torch.randn(12, 6, dtype=torch.float64)
    model(x)
    whole = penalty()
    model(x[:5]), model(x[5:])
    torch.testing.assert_close(penalty(), whole, rtol=1e-12, atol=0)


def test_the_mean_scaling_does_not_depend_on_the_batch():
    model, relaxation = relaxed()
    x = torch.randn(12, 6, dtype=torch.float64)
    printed, mean = LieDerivative(relaxation), LieDerivative(relaxation, scaling="mean")
    values = {}
    for repeat in (1, 4):
        for name, penalty in (("printed", printed), ("mean", mean)):
            model(x.repeat(repeat, 1))
            values[name, repeat] = float(penalty())
    assert values["mean", 4] == pytest.approx(values["mean", 1])
    assert values["printed", 4] == pytest.approx(2 * values["printed", 1])


@pytest.mark.parametrize("axis", [-1, -2])
def test_sampled_rows_are_unbiased(axis):
    _, relaxation = relaxed()
    residual = relaxation["first"]
    if axis == -2:
        residual.site = VectorSite("first", residual.in_rep, residual.out_rep, channel_axis=1, vector_axis=2)
    shape = (5, 8, 6) if axis == -1 else (5, 6, 8)
    inputs = [torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)]
    generator = torch.Generator().manual_seed(1)
    exact = residual_terms(residual, inputs)
    with torch.no_grad():
        sampled = torch.stack(
            [torch.stack(residual_terms(residual, inputs, 20, generator)) for _ in range(400)]
        )
    for i in range(2):
        deviation = sampled[:, i].std() / 20
        assert abs(sampled[:, i].mean() - exact[i]) < 4 * deviation
        assert 0 < deviation < 0.05 * exact[i]


def test_what_is_kept_and_what_is_not():
    model, relaxation = relaxed()
    residual = relaxation["first"]
    x = torch.randn(4, 6, dtype=torch.float64)
    model(x)
    assert residual.take_inputs() == []  # no penalty has asked yet
    penalty = LieDerivative(relaxation)
    with torch.no_grad():
        model(x)
    model.eval()(x)
    with relaxation.strict():
        model.train()(x)
    with pytest.raises(PenaltyError, match="no inputs were kept"):
        penalty()
    model(x)
    assert len(residual.take_inputs()) == 1
    torch.utils.checkpoint.checkpoint(model, x.requires_grad_(), use_reentrant=False).sum().backward()
    assert len(residual.take_inputs()) == 1  # the recomputation does not count


def test_a_shared_module_counts_once_per_call():
    torch.set_default_dtype(torch.float64)
    try:
        shared = nn.Linear(3, 3, bias=False)
        model = nn.Sequential(shared, shared)
        relaxation = er.relax(
            model,
            er.Layers(
                declare=(er.relaxation.Linear("0", vector(O(3)), vector(O(3))),), residual=er.Dense("default")
            ),
        )
    finally:
        torch.set_default_dtype(torch.float32)
    _ = LieDerivative(relaxation)  # inputs are kept while it is there
    model(torch.randn(2, 3, dtype=torch.float64))
    assert len(relaxation["0"].take_inputs()) == 2


def test_zero_initialised_residuals_train_from_the_first_step():
    model, relaxation = relaxed(er.Dense())
    relaxation.set_gamma(1.0)
    penalty = LieDerivative(relaxation)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = model(torch.randn(4, 6, dtype=torch.float64)).square().sum() + penalty()
    loss.backward()
    optimizer.step()
    for parameter in relaxation.residual_parameters().values():
        assert torch.isfinite(parameter.grad).all()
        assert parameter.abs().sum() > 0


@pytest.mark.parametrize("residual", [er.MLP(layers=2), EquivariantDense("default")])
def test_other_residuals(residual):
    model, relaxation = relaxed(residual)
    relaxation.set_gamma(1.0)
    penalty = LieDerivative(relaxation, norm_weight=0.0)
    model(torch.randn(4, 6, dtype=torch.float64))
    value = penalty()
    if isinstance(residual, EquivariantDense):
        assert float(value) < 1e-10
    else:
        value.backward()
        assert all(torch.isfinite(p.grad).all() for p in relaxation["first"].parameters() if p.requires_grad)


def test_penalties_leave_autocast():
    model, relaxation = relaxed()
    model.float()
    penalty = LieDerivative(relaxation)
    x = torch.randn(16, 6)
    model(x)
    exact = penalty()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(x)
        value = penalty()
    assert value.dtype == torch.float32
    assert float(value) == pytest.approx(float(exact), rel=2e-2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"scaling": "sum"}, "root-sum"),
        ({"lie_weight": -1.0}, "lie_weight is -1.0"),
        ({"norm_weight": math.nan}, "norm_weight is nan"),
        ({"rows": 0}, "rows is 0"),
        ({"rows": True}, "rows is True"),
        ({"every": math.nan}, "every is nan"),
    ],
)
def test_bad_settings(arguments, words):
    _, relaxation = relaxed()
    with pytest.raises(PenaltyError, match=words):
        LieDerivative(relaxation, **arguments)
