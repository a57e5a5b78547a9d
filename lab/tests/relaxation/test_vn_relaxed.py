"""Vector-neuron networks relaxed and projected: invariance, defects of released code, and features kept in two parts."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from equirelax_lab.models import VNDGCNN, VNPointNet
from equirelax_lab.models.vector_neurons import VNLinear
from equirelax_lab.models.vn_blocks import VNBlock
from relax_toys import randomise, shapes
from torch import Tensor, nn

import equirelax as er
from equirelax.auditing import On
from equirelax.errors import RepresentationError
from equirelax.relaxation.columns import SharedColumns, column_product, dense
from equirelax.relaxation.regularizers import linear_terms, residual_terms
from equirelax.relaxation.regularizers.lie_derivative import choose_rows
from equirelax.relaxation.terms.linear import moment_of
from equirelax.symmetry import O, vector
from equirelax.testing import LayerFamilyConformance

SMALL = {"classes": 6, "neighbours": 5, "width": 0.25}
BOTH = pytest.mark.parametrize("network", [VNPointNet, VNDGCNN])
RESIDUALS = {VNPointNet: 23, VNDGCNN: 15}


def clouds(count: int = 5, n: int = 30, dtype: torch.dtype = torch.float64) -> Tensor:
    """Clouds of different shapes."""
    points = torch.randn(count, n, 3, dtype=torch.float64)
    return (points * (0.2 + torch.rand(count, 1, 3, dtype=torch.float64))).to(dtype)


def rotation() -> Tensor:
    q, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))
    return q * torch.det(q)


def build(network: type[nn.Module], points: Tensor, **options: Any) -> nn.Module:
    """A network in float64 whose batch norms have seen such clouds, in evaluation."""
    model = network(**SMALL, **options).double()
    with torch.no_grad():
        for _ in range(20):
            model.train()(points)
    return model.eval()


def error(model: nn.Module, points: Tensor, g: Tensor) -> float:
    """Change of the logits under a rotation, relative to their spread over objects."""
    with torch.no_grad():
        expected = model(points)
        moved = model((points.double() @ g.T).to(points.dtype))
    spread = (expected - expected.mean(0)).abs().max()
    assert spread > 1e-3
    return float((moved - expected).abs().max() / spread)


@BOTH
@pytest.mark.parametrize("pooling", ["mean", "max"])
@pytest.mark.parametrize("mode", ["drop", "fold"])
def test_invariant_before_relaxing_and_after_projecting(
    network: type[nn.Module], pooling: str, mode: str
) -> None:
    points, g = clouds(), rotation()
    model = build(network, points, pooling=pooling)
    before = shapes(model)
    strict = copy.deepcopy(model)
    assert error(model, points, g) < 1e-9
    relaxation = er.relax(model)
    assert torch.equal(model(points), strict(points))  # gamma is 0
    randomise(relaxation, 0.1)
    assert error(model, points, g) > 1e-3  # it is relaxed indeed
    with relaxation.strict():
        assert error(model, points, g) < 1e-9
        assert torch.equal(model(points), strict(points))
    er.project(model, mode=mode)
    assert shapes(model) == before
    assert error(model, points, g) < 1e-9
    assert torch.equal(model(points), strict(points)) == (mode == "drop")
    single = points.float()
    assert error(model.float(), single, g) < 1e-2


@BOTH
def test_every_vector_map_gets_one_residual(network: type[nn.Module]) -> None:
    model = network(**SMALL)
    relaxation = er.relax(model)
    assert len(relaxation) == RESIDUALS[network]
    assert set(relaxation.residuals) == {p for p, m in model.named_modules() if isinstance(m, VNLinear)}
    expected = ["std_feature.vn_lin"] + (["fstn.fc3", "conv3"] if network is VNPointNet else [])
    assert all(path in relaxation.residuals for path in expected)
    if network is VNDGCNN:  # one direction for all channels
        assert relaxation["conv5.map_to_dir"].linear_map.weight.shape[0] == 3
    pooled = network(**SMALL, pooling="max")
    directions = {p for p, _ in er.relax(pooled) if "pool" in p}
    assert len(directions) == {VNPointNet: 2, VNDGCNN: 4}[network]


@BOTH
def test_a_residual_of_ten_percent_is_caught(network: type[nn.Module]) -> None:
    """Planted: 10 % of anisotropy in one map of many."""
    points = clouds()
    model = build(network, points)
    relaxation = er.relax(model)
    residual = relaxation["conv1.map_to_feat"]
    own = model.get_submodule("conv1.map_to_feat").weight
    with torch.no_grad():
        residual.linear_map.weight.copy_(torch.kron(own, torch.diag(torch.tensor([1.0, 0.0, 0.0]))))
    residual.set_gamma(0.1)
    assert error(model, points, rotation()) > 1e-4


# defects of released code


def test_defect_1_an_exactly_equivariant_residual_has_no_lie_term() -> None:
    """CR's release split x with the wrong reshape. Through the network itself, all residuals at once."""
    model = VNPointNet(**SMALL).double().train()
    relaxation = er.relax(model)
    penalty = er.relaxation.regularizers.LieDerivative(relaxation)
    for right in (True, False):
        for path, residual in relaxation:
            own = model.get_submodule(path).weight.detach()
            weight = residual.linear_map.weight
            eye = torch.eye(3, dtype=torch.float64)
            weight.data.copy_(torch.kron(own, eye) if right else torch.kron(eye, own))
        relaxation.set_gamma(0.5)
        model(clouds())
        penalty()
        for key, terms in penalty.terms.items():
            assert terms["norm"] > 0
            if right:
                assert terms["lie"] <= 1e-20 * terms["norm"], key
            elif relaxation[key].in_rep.dim > 3:
                assert terms["lie"] > 1e-2 * terms["norm"], key


@pytest.mark.parametrize("rows", [None, 7])
def test_defect_2_feature_and_direction_maps_are_penalised_once_each(rows: int | None) -> None:
    """CR's release penalised the one twice and the other never."""
    block = VNBlock(4, 3).double().train()
    relaxation = er.relax(block)
    randomise(relaxation)
    x = torch.randn(2, 4, 3, 9, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    penalty = er.relaxation.regularizers.LieDerivative(
        relaxation, rows=rows, lie_weight=1.0, norm_weight=1.0, generator=generator
    )
    block(x)
    total = penalty()
    columns = x.reshape(2, 12, 9)
    assert set(penalty.terms) == {"map_to_feat", "map_to_dir"}
    total.backward()
    sums = torch.zeros(2, dtype=torch.float64)
    for key, residual in relaxation:
        assert residual.linear_map.weight.grad.abs().max() > 0
        if rows is None:
            expected = residual_terms(residual, [columns])
            torch.testing.assert_close(penalty.terms[key]["lie"], expected[0], rtol=1e-10, atol=0)
            torch.testing.assert_close(penalty.terms[key]["norm"], expected[1], rtol=1e-10, atol=0)
            sums += torch.stack(expected).detach()
    if rows is None:
        torch.testing.assert_close(total.detach(), sums.sqrt().sum(), rtol=1e-10, atol=0)


def test_maps_that_read_the_same_share_their_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    from equirelax.relaxation.terms import linear

    def counted(*args: Any) -> Any:
        calls.append(1)
        return moment_of(*args)

    monkeypatch.setattr(linear, "moment_of", counted)
    block = VNBlock(4, 3).double().train()
    penalty = er.relaxation.regularizers.LieDerivative(er.relax(block))
    block(torch.randn(2, 4, 3, 9, dtype=torch.float64))
    penalty()
    assert len(calls) == 1


@BOTH
def test_defect_6_the_projected_network_is_what_strict_shows(network: type[nn.Module]) -> None:
    """CR's release evaluated the relaxed VN-DGCNN."""
    points = clouds()
    model = build(network, points)
    relaxation = er.relax(model)
    randomise(relaxation, 0.3)
    with relaxation.strict(), torch.no_grad():
        strict = model(points)
    with torch.no_grad():
        relaxed = model(points)
    assert (relaxed - strict).abs().max() > 1e-3
    er.project(model)
    assert torch.equal(model(points), strict)


@pytest.mark.parametrize("dims", [3, 4, 5])
def test_defect_7_residuals_act_point_by_point(dims: int) -> None:
    """ACE's release mixed points in 4-D tensors. One forward for features of 3, 4 and 5 dimensions."""
    layer = VNLinear(4, 3).double()
    relaxation = er.relax(layer)
    randomise(relaxation, 0.7)
    points = (5, 2)[: dims - 3]
    x = torch.randn(3, 4, 3, *points, dtype=torch.float64)
    found = layer(x)
    assert found.shape == (3, 3, 3, *points)
    weight = torch.kron(layer.weight, torch.eye(3, dtype=torch.float64))
    weight = weight + 0.7 * relaxation[""].linear_map.weight
    slow = torch.einsum("oi,bip->bop", weight, x.reshape(3, 12, -1)).view_as(found)
    torch.testing.assert_close(found, slow, rtol=0, atol=1e-12)
    if dims > 3:
        changed = x.clone()
        changed[:, :, :, 1] += 1
        same = (layer(changed) - found).flatten(3).view(3, 3, 3, *points).abs().amax((0, 1, 2))
        assert same[0].max() == 0
        assert same[2:].max() == 0
        assert same[1].min() > 0


@BOTH
def test_relaxed_features_follow_a_permutation_of_points(network: type[nn.Module]) -> None:
    points = clouds()
    model = build(network, points)
    randomise(er.relax(model), 0.1)
    order = torch.randperm(points.shape[1])
    with torch.no_grad():
        torch.testing.assert_close(model(points[:, order]), model(points), rtol=0, atol=1e-9)


@BOTH
def test_training_copies_and_pickles(network: type[nn.Module]) -> None:
    points = clouds(dtype=torch.float32)
    model = network(**SMALL)
    relaxation = er.relax(model)
    method = er.ACE(relaxation, dual_lr=1e-3)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(3):
        loss = model(points).square().mean() + method.penalty()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        method.step()
    assert all(p.isfinite().all() for p in model.parameters())
    assert all(r.linear_map.weight.abs().max() > 0 for _, r in relaxation if "map_to_feat" in r.site.path)
    model.eval()
    expected = model(points)
    assert torch.equal(copy.deepcopy(model)(points), expected)
    assert torch.equal(pickle.loads(pickle.dumps(model))(points), expected)


@BOTH
def test_the_audit_blames_a_relaxed_map(network: type[nn.Module]) -> None:
    """Layers that are called with common vectors are localised too."""
    points = clouds(3, 12)
    model = build(network, points)
    relaxation = er.relax(model)
    relaxation.set_gamma(0.0)
    residual = relaxation["std_feature.vn1.map_to_feat"]
    nn.init.normal_(residual.linear_map.weight)
    residual.set_gamma(1.0)
    group = er.symmetry.SO(3)
    report = er.audit(model, points, vector(group), 6 * er.symmetry.trivial(group), lie=False, samples=2)
    assert "std_feature.vn1.map_to_feat" in str(report)
    assert not report.equivariant


# features that all points share


class WithCommon(nn.Module):
    """A map of vectors and their mean, after something that is not linear."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.linear = VNLinear(2, 3), VNLinear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        y = y * torch.sigmoid(y.norm(dim=2, keepdim=True))
        return self.linear(y, common=y.mean(-1))


class TestCommonVectors(LayerFamilyConformance):
    def build(self):  # type: ignore[no-untyped-def]
        torch.manual_seed(0)
        along = On(vector(O(3)), 2)
        sample = torch.randn(14, 2, 3, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        return WithCommon().double(), "linear", sample, along, along


def shared(samples: int = 3, dims: tuple[int, int] = (6, 9), points: int = 11) -> SharedColumns:
    own = torch.randn(samples, dims[0], points, dtype=torch.float64)
    return SharedColumns(own, torch.randn(samples, dims[1], dtype=torch.float64))


def test_columns_in_two_parts_are_the_columns() -> None:
    x = shared()
    whole = x.dense()
    assert x.shape == whole.shape == (3, 15, 11)
    assert x.numel() == whole.numel()
    assert torch.equal(whole[:, 6:, 0], x.common)
    assert torch.equal(whole[:, 6:, 10], x.common)
    weight = torch.randn(4, 15, dtype=torch.float64)
    torch.testing.assert_close(column_product(weight, x), weight @ whole, rtol=0, atol=1e-12)
    chosen = torch.tensor([0, 12, 32, 5])
    rows = whole.mT.reshape(33, 15)[chosen]
    assert torch.equal(x.rows(chosen), rows)
    generators = [torch.Generator().manual_seed(4) for _ in range(2)]
    several = choose_rows([x, shared()], -2, 20, generators[0])
    assert several.shape == (20, 15, 1)
    picked = choose_rows([x], -2, 8, torch.Generator().manual_seed(5))
    assert torch.equal(picked, choose_rows([whole], -2, 8, torch.Generator().manual_seed(5)))
    # a map that is no matrix gets them written out
    mlp = er.MLP(layers=2).build(5 * vector(O(3)), vector(O(3)), -2).double()
    torch.testing.assert_close(mlp(x), mlp(whole), rtol=0, atol=1e-12)


@pytest.mark.parametrize("samples", [1, 2, 30])
@pytest.mark.parametrize("kind", ["one", "two", "mixed", "unlike"])
def test_moments_of_columns_in_two_parts(samples: int, kind: str) -> None:
    inputs: list[Any] = [shared(samples)]
    if kind != "one":
        inputs.append({"two": shared(2), "mixed": shared(2).dense(), "unlike": shared(2, (9, 6))}[kind])
    moment = moment_of(inputs, -2, torch.float64)
    rows = torch.cat([dense(x).mT.reshape(-1, 15) for x in inputs])
    torch.testing.assert_close(moment.dense(), rows.T @ rows, rtol=1e-11, atol=1e-11)
    few = {"one": samples < 3, "two": samples < 2, "mixed": False, "unlike": False}[kind]
    assert (moment.rows is not None) == few
    matrix, out = torch.randn(7, 15, dtype=torch.float64), torch.empty(7, 15, dtype=torch.float64)
    moment.times(matrix, out)
    torch.testing.assert_close(out, matrix @ (rows.T @ rows), rtol=1e-10, atol=1e-10)


def test_penalties_of_columns_in_two_parts() -> None:
    rep, out = 5 * vector(O(3)), 2 * vector(O(3))
    x = shared()
    weight = torch.randn(6, 15, dtype=torch.float64, requires_grad=True)
    for with_bias in (False, True):
        bias = torch.randn(6, dtype=torch.float64) if with_bias else None
        found, expected = (linear_terms(weight, bias, [y], -2, rep, out) for y in (x, x.dense()))
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=0)
            grads = [torch.autograd.grad(y, weight, retain_graph=True)[0] for y in (a, b)]
            torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-10)


def test_common_vectors_of_another_size_are_refused() -> None:
    layer = VNLinear(5, 2)
    er.relax(layer)
    with pytest.raises(RepresentationError, match=r"\(batch, 3, 3"):
        layer(torch.randn(2, 5, 3, 4), torch.randn(2, 2, 3))
