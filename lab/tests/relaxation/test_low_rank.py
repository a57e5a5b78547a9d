"""Low-rank residuals against the dense map with the weight U V: everything that a linear residual must do."""

from __future__ import annotations

import pytest
import torch
from equirelax_lab.models import VNPointNet
from equirelax_lab.models.vector_neurons import VNLinear
from equirelax_lab.tasks.registry import defaults
from equirelax_lab.training.perf import products
from torch import Tensor, nn

import equirelax as er
from equirelax.relaxation.columns import Columns, SharedColumns, dense
from equirelax.relaxation.kinds.dense import DenseMap
from equirelax.relaxation.kinds.low_rank import LowRankMap, low_rank_terms
from equirelax.relaxation.regularizers import linear_terms
from equirelax.symmetry import (
    SO,
    Cyclic,
    Lorentz,
    O,
    Representation,
    equivariant_projection,
    from_irreps,
    trivial,
    vector,
)

torch.set_num_threads(1)


def reps() -> dict[str, Representation]:
    return {
        "irreps": from_irreps("2x0e+1x0o+2x1o+1x1e+1x2e"),
        "vectors": 6 * vector(O(3)),
        "lorentz": 2 * vector(Lorentz()) + trivial(Lorentz()),
        "finite": 2 * vector(Cyclic(4)) + trivial(Cyclic(4), 2),
        "plane": 2 * vector(SO(2)) + 2 * trivial(SO(2)),
    }


EVERY = pytest.mark.parametrize("name", reps())


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def layouts(dim: int) -> dict[str, tuple[list[Columns], int]]:
    """Inputs by layout: many more than a Gram matrix has rows, and fewer than the rank."""
    return {
        "rows": ([random(30, dim), random(4, 9, dim)], -1),
        "columns": ([random(3, dim, 20), random(2, dim, 15)], -2),
        "one column": ([random(1, dim, 1)], -2),
        "single points": ([random(90, dim, 1)], -2),
        "shared": (
            [
                SharedColumns(random(3, dim - 2, 40), random(3, 2)),
                SharedColumns(random(2, 3, 9), random(2, dim - 3)),
            ],
            -2,
        ),
    }


LAYOUTS = pytest.mark.parametrize("layout", layouts(5))


def twins(in_dim: int, out_dim: int, rank: int, axis: int) -> tuple[LowRankMap, DenseMap]:
    """A low-rank map at random and the dense one of the same matrix."""
    thin, full = LowRankMap(in_dim, out_dim, rank, axis).double(), DenseMap(in_dim, out_dim, axis).double()
    with torch.no_grad():
        for parameter in thin.parameters():
            parameter.copy_(random(*parameter.shape))
        full.weight.copy_(thin.effective_weight())
    return thin, full


@LAYOUTS
@pytest.mark.parametrize("scaled", [False, True])
def test_it_is_the_dense_map_of_its_weight(layout: str, scaled: bool) -> None:
    inputs, axis = layouts(12)[layout]
    thin, full = twins(12, 7, 3, axis)
    scale = torch.tensor(0.3, dtype=torch.float64, requires_grad=True) if scaled else None
    for x in inputs:
        # features that points share reach residuals as they are, and all else that takes a gradient as tensors
        points = x if isinstance(x, SharedColumns) else x.clone().requires_grad_()
        found, expected = thin(points, scale), full(points, scale)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        wanted = ([scale] if scale is not None else []) + ([points] if isinstance(points, Tensor) else [])
        cotangent = random(*found.shape)
        if wanted:
            ours, theirs = (
                torch.autograd.grad(y, wanted, cotangent, retain_graph=True) for y in (found, expected)
            )
            torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)
        ours = torch.autograd.grad(found, [thin.up, thin.down], cotangent)
        (by_weight,) = torch.autograd.grad(expected, full.weight, cotangent)
        theirs = (by_weight @ thin.down.T, thin.up.T @ by_weight)
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


def test_the_product_of_the_factors_is_never_formed() -> None:
    in_dim, out_dim, rank, count = 90, 80, 4, 1000
    thin = LowRankMap(in_dim, out_dim, rank, -2)
    nn.init.normal_(thin.up)
    nn.init.normal_(thin.down)
    x = torch.randn(2, in_dim, count // 2, requires_grad=True)
    step = products(lambda: thin(x, torch.tensor(0.5)).sum().backward())
    assert sum(p.multiply_adds for p in step) == 3 * count * rank * (in_dim + out_dim)


@EVERY
@LAYOUTS
def test_penalties_and_gradients_are_those_of_the_dense_weight(name: str, layout: str) -> None:
    rep = reps()[name]
    out = rep + trivial(rep.group)
    inputs, axis = layouts(rep.dim)[layout]
    up, down = random(out.dim, 2).requires_grad_(), random(2, rep.dim).requires_grad_()
    found = low_rank_terms(up, down, inputs, axis, rep, out)
    expected = linear_terms(up @ down, None, [dense(x) for x in inputs], axis, rep, out)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    for a, b in zip(found, expected, strict=True):
        assert b > 1e-3
        ours, theirs = (torch.autograd.grad(sum_, [up, down], retain_graph=True) for sum_ in (a, b))
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@EVERY
@pytest.mark.parametrize("count", [3, 200])
def test_an_equivariant_product_has_no_lie_term(name: str, count: int) -> None:
    """Whatever the factors are, and although both are changed by the group."""
    rep = reps()[name]
    weight = equivariant_projection(random(rep.dim, rep.dim), rep, rep)
    up, mixed = weight @ (mix := random(rep.dim, rep.dim)), torch.linalg.inv(mix)
    assert (weight - up @ mixed).norm() < 1e-12 * weight.norm() * torch.linalg.cond(mix)
    lie, norm = low_rank_terms(weight, torch.eye(rep.dim).double(), [random(count, rep.dim)], -1, rep, rep)
    assert norm > 0.01
    assert lie <= 1e-20 * norm
    lie, norm = low_rank_terms(up, mixed, [random(count, rep.dim)], -1, rep, rep)
    assert lie <= 1e-20 * norm * torch.linalg.cond(mix) ** 2


@pytest.mark.parametrize(("up", "down"), [(0.0, 1.0), (1.0, 0.0), (0.0, 0.0)])
def test_zero_factors_have_finite_terms_and_gradients(up: float, down: float) -> None:
    rep = 2 * vector(O(3))
    factors = [(up * random(6, 2)).requires_grad_(), (down * random(2, 6)).requires_grad_()]
    for rows in (3, 100):
        lie, norm = low_rank_terms(*factors, [random(rows, 6)], -1, rep, rep)
        assert lie == norm == 0
        assert all(torch.isfinite(g).all() for g in torch.autograd.grad(lie + norm, factors))


def test_one_repeated_input_is_counted_as_often_as_it_comes() -> None:
    """The basis of the projected inputs has one direction, where there is room for eight."""
    rep = 2 * vector(O(3))
    thin, full = twins(6, 6, 2, -1)
    x = random(1, 6).expand(500, 6)
    found = low_rank_terms(thin.up, thin.down, [x], -1, rep, rep)
    torch.testing.assert_close(
        found, linear_terms(full.weight, None, [x], -1, rep, rep), rtol=1e-10, atol=1e-10
    )


class Two(nn.Module):
    """Two vector layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = VNLinear(4, 6).double(), VNLinear(6, 2).double()

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.last(y * torch.sigmoid(y.norm(dim=2, keepdim=True)))


def relaxed(kind: er.LowRank, gamma: float = 0.4) -> tuple[Two, er.relaxation.Relaxation]:
    model = Two()
    relaxation = er.relax(model, er.Layers(residual=kind))
    relaxation.set_gamma(gamma)
    return model, relaxation


def test_it_starts_strict_and_trains_with_a_penalty() -> None:
    model, relaxation = relaxed(er.LowRank(2))
    x = random(5, 4, 3, 7)
    with relaxation.strict():
        strict = model(x)
    assert torch.equal(model(x), strict)
    method = er.Scheduled(relaxation, total_steps=10)
    relaxation.set_gamma(0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    before = {name: p.detach().clone() for name, p in relaxation.residual_parameters().items()}
    for _ in range(2):
        optimizer.zero_grad()
        ((model(x) - 1).square().sum() + method.penalty()).backward()
        optimizer.step()
    assert all(torch.isfinite(p).all() for p in model.parameters())
    after = relaxation.residual_parameters()
    assert all(not torch.equal(before[name], after[name]) for name in before)  # U first, then V


def test_the_summary_counts_the_parameters_of_every_layer() -> None:
    """The last layer, 18 -> 6, has no rank above 6."""
    relaxation = relaxed(er.LowRank(8))[1]
    shapes = {key: (r.map.up.shape[1], r.in_rep.dim, r.out_rep.dim) for key, r in relaxation}
    assert shapes == {"first": (8, 12, 18), "last": (6, 18, 6)}
    counts = {row.path: row.parameters for row in relaxation.summary().with_status("relaxed")}
    assert counts == {"first": 8 * (12 + 18), "last": 6 * (18 + 6)}
    assert relaxation.summary().parameters == sum(
        p.numel() for p in relaxation.residual_parameters().values()
    )


@pytest.mark.parametrize("init", ["zeros", "normal", "default"])
def test_inits(init: str) -> None:
    rep = 20 * vector(O(3))
    one, two = (
        er.LowRank(8, init, std=1e-2).build(rep, rep, -1, torch.Generator().manual_seed(s)) for s in (0, 0)
    )
    assert torch.equal(one.up, two.up)
    assert torch.equal(one.down, two.down)
    up, down = one.up.detach(), one.down.detach()
    assert float(down.abs().max()) == pytest.approx(60**-0.5, rel=0.02)
    if init == "normal":
        assert float(up.std()) == pytest.approx(1e-2, rel=0.15)
    else:
        assert float(up.abs().max()) == pytest.approx({"zeros": 0.0, "default": 8**-0.5}[init], rel=0.02)


def test_features_that_points_share_are_relaxed_alike() -> None:
    """VN-PointNet's own shared features, in a network, against the dense residuals of the same weights."""
    points = random(2, 12, 3)
    found = []
    weights: dict[str, Tensor] = {}
    for kind in (er.LowRank(2, init="normal", std=0.3), er.Dense("normal")):
        torch.manual_seed(1)
        model = VNPointNet(classes=4, neighbours=4, width=0.1).double()
        relaxation = er.relax(model, er.Layers(residual=kind))
        for key, residual in relaxation:
            with torch.no_grad():
                if isinstance(residual.map, LowRankMap):
                    weights[key] = residual.map.effective_weight().clone()
                else:
                    residual.map.weight.copy_(weights[key])
        relaxation.set_gamma(0.3)
        penalty = er.relaxation.regularizers.LieDerivative(relaxation, lie_weight=1.0, norm_weight=0.5)
        torch.manual_seed(2)
        found.append((model.train()(points), penalty()))
        assert any(
            isinstance(x, SharedColumns)
            for _, residual in relaxation
            for x in _inputs(model, residual, points)
        )
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)


def _inputs(model: nn.Module, residual: er.relaxation.Residual, points: Tensor) -> list[Columns]:
    residual.keep_inputs = True
    model(points)
    return residual.take_inputs()


def test_settings_choose_it() -> None:
    config = defaults("modelnet40", "vn-pointnet", "scheduled")
    thin = config.updated({"residual": {"kind": "low-rank", "rank": 5, "init": "normal", "std": 1e-3}})
    assert thin.residual.kind == er.LowRank(rank=5, init="normal", std=1e-3)
    assert config.updated(thin.to_dict()) == thin
