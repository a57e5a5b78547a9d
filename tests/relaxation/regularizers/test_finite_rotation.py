"""CR's released penalty on MD17, row by row."""

from __future__ import annotations

import math

import pytest
import torch
from stream_toys import relaxed as relaxed_streams

import equirelax as er
from equirelax.errors import PenaltyError
from equirelax.relaxation.regularizers import FiniteRotation, LieDerivative
from equirelax.symmetry import (
    SE,
    SO,
    Cyclic,
    E,
    Group,
    Lorentz,
    O,
    Scaling,
    regular,
    trivial,
    vector,
)


def relaxed(rep: object) -> er.relaxation.Relaxation:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.Linear(6, 6)).double()
    kind = er.MLP(layers=2, init="normal", std=0.3)
    declared = (er.relaxation.Linear("Linear", rep, rep),)
    return er.relax(model, er.Layers(residual=kind, declare=declared))


def test_mean_over_rows_of_norms_at_five_degrees_summed_over_residuals() -> None:
    rep = 2 * vector(SO(3))
    relaxation = relaxed(rep)
    relaxation.set_gamma(1.0)
    penalty = FiniteRotation(relaxation, 0.01, 5.0, torch.Generator().manual_seed(3))
    inputs: dict[str, torch.Tensor] = {}
    for key, residual in relaxation.residuals.items():
        residual.register_forward_pre_hook(lambda m, args, key=key: inputs.update({key: args[0].detach()}))
    relaxation.model(torch.randn(7, 6, dtype=torch.float64))
    found = penalty()

    generator = torch.Generator().manual_seed(3)
    expected = torch.zeros((), dtype=torch.float64)
    for key, residual in relaxation.residuals.items():
        first, second = torch.linalg.qr(torch.randn(3, 2, generator=generator, dtype=torch.float64)).Q.T
        plane = torch.outer(second, first) - torch.outer(first, second)
        turn = torch.linalg.matrix_exp(math.radians(5) * plane)
        both = torch.block_diag(turn, turn)
        assert math.degrees(math.acos((float(turn.trace()) - 1) / 2)) == pytest.approx(5)
        total = 0.0
        for x in inputs[key]:
            total = total + (both @ residual.map(x[None])[0] - residual.map((both @ x)[None])[0]).norm()
        expected = expected + total / len(inputs[key])
    torch.testing.assert_close(found, 0.01 * expected)
    found.backward()
    assert all(p.grad is not None for r in relaxation.residuals.values() for p in r.map.parameters())


def test_it_is_weaker_than_the_root_of_the_sum_and_nothing_for_equivariant_maps() -> None:
    rep = 2 * vector(SO(3))
    relaxation = relaxed(rep)
    relaxation.set_gamma(1.0)
    x = torch.randn(200, 6, dtype=torch.float64)
    values = []
    for penalty in (FiniteRotation(relaxation, 0.01), LieDerivative(relaxation, 0.01, 0.0)):
        relaxation.model(x)
        values.append(float(penalty().detach()))
    assert values[0] < values[1] / 50
    with torch.no_grad():
        for residual in relaxation.residuals.values():
            for parameter in residual.map.parameters():
                parameter.zero_()
    penalty = FiniteRotation(relaxation, 0.01)
    relaxation.model(x)
    value = penalty()
    value.backward()  # the slope of a norm at 0 is taken as 0
    assert float(value) == 0
    assert all(
        bool(torch.isfinite(p.grad).all()) for p in relaxation.model.parameters() if p.grad is not None
    )


def test_angles_and_groups_that_have_none_are_refused() -> None:
    with pytest.raises(PenaltyError, match="degrees"):
        FiniteRotation(relaxed(2 * vector(SO(3))), 0.01, 0.0)
    with pytest.raises(PenaltyError, match=r"Cyclic|C3"):
        FiniteRotation(relaxed(2 * regular(Cyclic(3))), 0.01)
    with pytest.raises(PenaltyError, match=r"O\(1\)"):
        FiniteRotation(relaxed(6 * trivial(O(1))), 0.01)
    with pytest.raises(PenaltyError, match="Scaling"):
        FiniteRotation(relaxed(6 * trivial(Scaling())), 0.01)


@pytest.mark.parametrize("group", [SO(2), O(3), SO(5), SE(2), E(3), SE(4), Lorentz()], ids=str)
def test_in_every_group_it_turns_by_the_angle_in_any_plane_and_shifts_nothing(group: Group) -> None:
    penalty = FiniteRotation(relaxed(6 * trivial(group)), 1.0, 30.0, torch.Generator().manual_seed(0))
    elements = torch.stack([penalty._element(group) for _ in range(30)])
    assert bool(group.contains(elements).all())
    n = 3 if isinstance(group, Lorentz) else group.linear_dim
    linear = elements[:, 1:, 1:] if isinstance(group, Lorentz) else elements[:, :n, :n]
    cosine = (linear.diagonal(dim1=1, dim2=2).sum(1) - (n - 2)) / 2
    torch.testing.assert_close(cosine, torch.full_like(cosine, math.cos(math.radians(30))))
    if group.dim > n:
        rest = elements[:, 0, 1:] if isinstance(group, Lorentz) else elements[:, :n, n]
        assert not rest.any()
    # every pair of axes is mixed by some of them
    assert bool(((linear - torch.eye(n, dtype=torch.float64)).abs().amax(0) > 1e-3).all())


def test_it_reaches_every_axis() -> None:
    """Of a map that stretches one axis of five, whichever it is."""
    for axis in range(5):
        rep = vector(SO(5))
        model = torch.nn.Sequential(torch.nn.Linear(5, 5, bias=False)).double()
        relaxation = er.relax(
            model, er.Layers(residual=er.Dense(), declare=(er.relaxation.Linear("Linear", rep, rep),))
        )
        relaxation.set_gamma(1.0)
        with torch.no_grad():
            relaxation["0"].map.weight.copy_(torch.eye(5))[axis, axis] = 3.0
        penalty = FiniteRotation(relaxation, 1.0, 90.0, torch.Generator().manual_seed(0))
        model(torch.randn(7, 5, dtype=torch.float64))
        assert float(penalty()) > 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_penalised_in_float32(dtype: torch.dtype) -> None:
    relaxation = relaxed(2 * vector(SO(3)))
    x = torch.randn(7, 6).to(dtype)
    values = []
    for of in (dtype, torch.float64):
        relaxation.model.to(of)
        penalty = FiniteRotation(relaxation, 1.0, generator=torch.Generator().manual_seed(0))
        relaxation.model(x.to(of))
        values.append(penalty())
    assert values[0].dtype == torch.float32
    # inputs of the second layer are rounded differently
    torch.testing.assert_close(values[0].double(), values[1], rtol=0.02, atol=0.0)


def test_a_residual_that_read_no_rows_counts_nothing() -> None:
    relaxation = relaxed(2 * vector(SO(3)))
    penalty = FiniteRotation(relaxation, 1.0)
    x = torch.randn(7, 6, dtype=torch.float64)
    first, second = relaxation.model
    first(x[:0])
    second(x)
    value = penalty()
    value.backward()
    assert float(penalty.terms["0"]["lie"]) == 0
    assert float(value) == float(penalty.terms["1"]["lie"]) > 0
    assert all(bool(p.grad.isfinite().all()) for p in relaxation["0"].map.parameters())


def test_not_a_number_is_kept() -> None:
    relaxation = relaxed(2 * vector(SO(3)))
    penalty = FiniteRotation(relaxation, 1.0)
    relaxation.model(torch.full((7, 6), torch.nan, dtype=torch.float64))
    assert penalty().isnan()


def test_streams_are_refused_by_name() -> None:
    _, relaxation = relaxed_streams()
    with pytest.raises(PenaltyError, match=next(iter(relaxation.residuals))):
        FiniteRotation(relaxation, 1.0)
