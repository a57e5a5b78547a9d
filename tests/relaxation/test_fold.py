"""Folding: into the layer's own weights, or an error that says why not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import equirelax as er
from equirelax.errors import EquirelaxWarning, NonFiniteError, UnfoldableError
from equirelax.relaxation import Constant, cannot_fold
from equirelax.relaxation.kinds import EquivariantDense
from equirelax.symmetry import Lorentz, equivariant_projection, vector

o3 = pytest.importorskip("e3nn.o3")
from relax_toys import Net, randomise, sample  # noqa: E402

pytestmark = pytest.mark.usefixtures("float64")


def test_folding_without_a_declared_constant_is_refused_and_changes_nothing():
    model = Net()
    relaxation = er.relax(model)
    randomise(relaxation)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(UnfoldableError, match=r"product .*Constant\("):
        er.project(model, mode="fold")
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert set(cannot_fold(relaxation)) == {"product"}
    report = er.project(model, mode="fold", unfoldable="drop")
    assert "not folded" in next(r.note for r in report.residuals if r.key == "product")


def test_fold_keeps_the_outputs_of_an_equivariant_residual():
    model, inputs = Net(), sample()
    relaxation = er.relax(
        model, er.Layers(residual=EquivariantDense(), constants=(Constant("product", 0, 1.0),))
    )
    randomise(relaxation, 0.7)
    relaxed = model(*inputs)
    report = er.project(model, mode="fold")
    for a, b in zip(relaxed, model(*inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)
    assert all(r.error < 1e-10 for r in report.residuals)


def test_a_fold_with_a_constant_other_than_one():
    model = o3.FullyConnectedTensorProduct("2x0e+3x1o+1x2e", "2x1o+2x0e", "3x0e+2x1o+1x2e")
    relaxation = er.relax(
        model,
        er.Layers(residual=EquivariantDense(), constants=(Constant("FullyConnectedTensorProduct", 7, -0.4),)),
    )
    randomise(relaxation)
    x, y = torch.randn(5, 16), torch.randn(5, 8)
    y[:, 7] = -0.4
    before = model(x, y)
    er.project(model, mode="fold")
    torch.testing.assert_close(model(x, y), before, rtol=1e-11, atol=1e-11)


def test_external_weights_cannot_be_folded_into():
    layer = o3.Linear("2x1o", "2x1o", internal_weights=False, shared_weights=False)
    er.relax(layer)
    with pytest.raises(UnfoldableError, match="weights from outside"):
        er.project(layer, mode="fold")


def test_a_bias_folds_into_scalars_and_only_where_there_is_one():
    layer = o3.Linear("2x0e+1x1o", "3x0e+1x1o", biases=True)
    relaxation = er.relax(layer, residual=er.Dense(bias=True))
    relaxation.set_gamma(1.0)
    with torch.no_grad():
        relaxation[""].map.bias[:3] = torch.tensor([1.0, 2.0, 3.0])
    x = torch.randn(4, 5)
    before = layer(x)
    er.project(layer, mode="fold")
    torch.testing.assert_close(layer(x), before)
    layer = o3.Linear("2x0e+1x1o", "3x0e+1x1o")
    relaxation = er.relax(layer, residual=er.Dense("default", bias=True))
    relaxation.set_gamma(1.0)
    with pytest.raises(UnfoldableError, match="no bias"):
        er.project(layer, mode="fold")


def test_lorentz_folds_by_the_null_space_not_by_an_average():
    rep = 2 * vector(Lorentz())
    layer = nn.Linear(8, 8, bias=False)
    layer.weight.data = equivariant_projection(layer.weight.data, rep, rep)
    relaxation = er.relax(layer, er.Layers(declare=(er.relaxation.Linear("Linear", rep, rep),)))
    randomise(relaxation, 1.0)
    residual, strict = relaxation[""].map.weight.detach().clone(), layer.weight.detach().clone()
    er.project(layer, mode="fold")
    torch.testing.assert_close(layer.weight.detach(), strict + equivariant_projection(residual, rep, rep))


def constant_product(value: float):
    model = o3.FullyConnectedTensorProduct("2x0e+3x1o", "1x0e+1x1o", "3x0e+2x1o")
    placement = er.Layers(
        residual=EquivariantDense(), constants=(Constant("FullyConnectedTensorProduct", 0, value),)
    )
    relaxation = er.relax(model, placement)
    randomise(relaxation)
    y = torch.randn(5, 4)
    y[:, 0] = 0.28
    return model, relaxation, torch.randn(5, 11), y


@pytest.mark.parametrize("call", ["position", "keyword"])
def test_n5_a_wrong_constant_is_named_at_the_first_call(call):
    model, _, x, y = constant_product(1.0)
    with pytest.warns(EquirelaxWarning, match=r"channel 0 .* to be 1, but it was 0\.28"):
        model(x, y) if call == "position" else model(y=y, x=x)
    with pytest.raises(UnfoldableError, match=r"to be 1, but it was 0\.28"):
        er.project(model, mode="fold")
    model, _, x, y = constant_product(0.28)
    before = model(x, y)
    er.project(model, mode="fold")
    torch.testing.assert_close(model(x, y), before, rtol=1e-11, atol=1e-11)


def test_n5_a_constant_that_is_none_in_a_later_call_is_not_folded():
    model, relaxation, x, y = constant_product(0.28)
    model(x, y)
    y[3, 0] = 0.3
    model(x, y)
    strict = model.weight.detach().clone()
    with pytest.raises(UnfoldableError, match=r"it was 0\.28 to 0\.3"):
        er.project(model, mode="fold")
    assert torch.equal(model.weight, strict)
    assert set(cannot_fold(relaxation)) == {""}


def test_n5_a_constant_that_no_call_has_shown_is_said_in_the_report():
    model, _, _, _ = constant_product(0.28)
    assert "not seen" in er.project(model, mode="fold").residuals[0].note


def test_n5_a_constant_that_nobody_declared_is_offered():
    model, inputs = Net(), sample()
    er.relax(model)
    model(*inputs)
    with pytest.raises(UnfoldableError, match=r"Constant\('product', 0, 1\) if it always is"):
        er.project(model, mode="fold")


@pytest.mark.parametrize("how", ["parameter", "storage"])
def test_m12_layers_that_share_a_weight_are_not_folded(how):
    model = nn.Sequential(o3.Linear("2x0e+1x1o", "2x0e+1x1o"), nn.Tanh(), o3.Linear("2x0e+1x1o", "2x0e+1x1o"))
    if how == "parameter":
        model[2].weight = model[0].weight
    else:
        model[2].weight.data = model[0].weight.data
    relaxation = er.relax(model)
    randomise(relaxation)
    strict = model[0].weight.detach().clone()
    with pytest.raises(UnfoldableError, match=r"^0 \(Linear\) shares its weight with 2"):
        er.project(model, mode="fold")
    assert set(cannot_fold(relaxation)) == {"0", "2"}
    report = er.project(model, mode="fold", unfoldable="drop")
    assert all("tied" in r.note for r in report.residuals)
    assert torch.equal(model[0].weight, strict)


def test_m12_a_weight_shared_with_a_layer_that_is_not_relaxed_is_not_folded():
    model = nn.Sequential(o3.Linear("2x0e+1x1o", "2x0e+1x1o"), o3.Linear("2x0e+1x1o", "2x0e+1x1o"))
    model[1].weight = model[0].weight
    er.relax(model, include="0")
    with pytest.raises(UnfoldableError, match="shares its weight with 1"):
        er.project(model, mode="fold")


@pytest.mark.parametrize("mode", ["drop", "fold"])
def test_sizes_of_a_model_in_half_precision_are_those_of_its_numbers(mode):
    """Their squares are beyond the largest of float16."""
    model = nn.Sequential(nn.Linear(6, 6, bias=False, dtype=torch.float16))
    relaxation = er.relax(model, er.Layers(declare=(er.relaxation.Linear("0", "2x1o", "2x1o"),)))
    relaxation.set_gamma(1.0)
    with torch.no_grad():
        relaxation["0"].map.weight.fill_(0).diagonal().fill_(300.0)
        relaxation["0"].map.weight[0, 1] = 400.0
    before = model[0].weight.detach().clone()
    (report,) = er.project(model, mode=mode).residuals
    assert report.size == pytest.approx((6 * 300**2 + 400**2) ** 0.5, rel=1e-3)
    assert report.error == pytest.approx(1.0 if mode == "drop" else 400 / report.size, rel=1e-3)
    moved = (model[0].weight.detach() - before).double()
    assert float(moved.norm()) == pytest.approx(report.folded, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 1.0])
def test_a_product_beyond_half_precision_is_never_folded_as_nan(gamma):
    """U V is 160,000, which float16 does not have: times 0 it is 0, and otherwise it is refused."""
    model = nn.Sequential(nn.Linear(6, 6, bias=False, dtype=torch.float16))
    declared = (er.relaxation.Linear("0", "6x0e", "6x0e"),)
    relaxation = er.relax(model, er.Layers(residual=er.LowRank(4), declare=declared))
    relaxation.set_gamma(gamma)
    with torch.no_grad():
        for weight in relaxation["0"].map.parameters():
            weight.fill_(200.0)
    before = model[0].weight.detach().clone()
    if gamma:
        with pytest.raises(NonFiniteError, match=r"0 .*drop"):
            er.project(model, mode="fold")
    else:
        er.project(model, mode="fold")
    assert torch.equal(model[0].weight, before)
