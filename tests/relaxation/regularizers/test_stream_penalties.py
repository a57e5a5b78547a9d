"""Lie and norm terms of residual streams: closed form against derivatives row by row."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import equirelax as er
from equirelax.relaxation import StreamResidual, Streams
from equirelax.relaxation.kinds import StreamStep
from equirelax.relaxation.kinds.stream import SpectralLinear
from equirelax.relaxation.regularizers import residual_terms

pytestmark = pytest.mark.usefixtures("float64")


class Net(nn.Module):
    """As much of a SchNet as a stream needs; blocks in the given order."""

    def __init__(self, order: tuple[int, ...] = (0, 1, 2), width: int = 4) -> None:
        super().__init__()
        self.hidden_channels = width
        blocks = [nn.Identity() for _ in range(max(order) + 1)]
        self.interactions = nn.ModuleList(blocks[i] for i in order)
        self.own = nn.Parameter(torch.zeros(()))

    def forward(self, z: Tensor, pos: Tensor, batch: Tensor | None = None) -> Tensor:
        h = self.own + torch.zeros(len(pos), self.hidden_channels)
        for block in self.interactions:
            h = h + block(h)
        return h


def relaxed(order=(0, 1, 2), **options):
    model = Net(order)
    relaxation = er.relax(
        model, Streams("interactions.?", "hidden_channels", **{"centred": False, **options})
    )
    with torch.no_grad():
        for parameter in relaxation.residual_parameters().values():
            parameter += 0.3 * torch.randn_like(parameter)
    relaxation.set_gamma(0.5)
    return model, relaxation


def cloud(n=7):
    return torch.randn(n, 3) * torch.tensor([1.0, 2.0, 0.5]) + 1


def plain_weight(linear: nn.Linear) -> Tensor:
    """The matrix that is applied; asking for it has no side effects."""
    return linear.effective_weight() if isinstance(linear, SpectralLinear) else linear.weight


def one_row(path: list[StreamResidual], x: Tensor):
    """The stream after `path` as a function of one row, its statistics those of the rows x."""
    first = path[0].shared.members[0].map.start

    def start(row):
        return row @ plain_weight(first).T + first.bias

    steps, s = [], start(x)
    for residual in path:
        map_ = residual.map
        mean, variance = s.mean(0), s.var(0, unbiased=False)
        if not map_.training:
            mean, variance = map_.norm.running_mean, map_.norm.running_var
        weight = plain_weight(map_.linear)

        def step(s, mean=mean, variance=variance, norm=map_.norm, weight=weight, bias=map_.linear.bias):
            normal = (s - mean) / (variance + norm.eps).sqrt() * norm.weight + norm.bias
            return normal @ weight.T + bias

        steps.append(step)
        s = step(s)

    def function(row):
        s = start(row)
        for step in steps:
            s = step(s)
        return s

    return function


def slow_terms(path: list[StreamResidual], x: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over rows of |L_A f|^2, of |rho_out(g) f(x) - f(g x)|^2, and of |f|^2, by autograd's Jacobian."""
    f = one_row(path, x)
    in_rep, out_rep = path[-1].in_rep, path[-1].out_rep
    lie, norm = torch.zeros(()), torch.zeros(())
    for row in x:
        y = f(row)
        norm = norm + y.square().sum()
        jacobian = torch.autograd.functional.jacobian(f, row, create_graph=True)
        for direction, moved in zip(in_rep.derivative(row), out_rep.derivative(y), strict=True):
            lie = lie + (moved - jacobian @ direction).square().sum()
        for g in in_rep.group.discrete(row.dtype):
            lie = lie + (out_rep.apply(g, y) - f(in_rep.apply(g, row))).square().sum()
    return lie, norm


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("spectral", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_terms_are_those_of_derivatives_row_by_row(centred, spectral, training):
    _, relaxation = relaxed(centred=centred, residual=StreamStep(spectral=spectral))
    relaxation.model.train(training)
    members = [residual for _, residual in relaxation]
    x = cloud()
    for i, residual in enumerate(members):
        relaxation.model.zero_grad()
        lie, norm = residual_terms(residual, [x])
        (lie + 2 * norm).backward()
        found = [p.grad.clone() for r in members[: i + 1] for p in r.map.parameters()]
        relaxation.model.zero_grad()
        slow_lie, slow_norm = slow_terms(members[: i + 1], x)
        torch.testing.assert_close(lie, slow_lie, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(norm, slow_norm, rtol=1e-9, atol=1e-12)
        (slow_lie + 2 * slow_norm).backward()
        expected = [p.grad for r in members[: i + 1] for p in r.map.parameters()]
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


def test_the_residual_alone_is_what_the_forward_adds():
    model, relaxation = relaxed()
    x = cloud()
    residual = relaxation["interactions.2"]
    taken = []
    model.interactions[2].register_forward_hook(lambda _, args, output: taken.append(output - args[0]))
    model(None, x)
    torch.testing.assert_close(residual.delta(x), taken[0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 0, 1), (0, 1, 0)])
def test_the_penalty_sums_calls_of_every_block(order):
    model, relaxation = relaxed(order)
    penalty = er.relaxation.regularizers.LieDerivative(
        relaxation, lie_weight=1.0, norm_weight=0.0, rows=2
    )  # rows change nothing here
    clouds = [cloud(), cloud(5)]
    for x in clouds:
        model(None, x)
    value = penalty()
    blocks = {residual.site.path: residual for _, residual in relaxation}
    by_order = [blocks[f"interactions.{order.index(i)}"] for i in order]
    expected = {key: torch.zeros(2) for key, _ in relaxation}
    for x in clouds:
        for i, residual in enumerate(by_order):
            expected[residual.site.key] += torch.stack(slow_terms(by_order[: i + 1], x)).detach()
    for key, (lie, norm) in expected.items():
        torch.testing.assert_close(penalty.terms[key]["lie"], lie, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(penalty.terms[key]["norm"], norm, rtol=1e-9, atol=1e-12)
    total = sum(lie for lie, _ in expected.values())
    torch.testing.assert_close(value.detach(), total.sqrt(), rtol=1e-9, atol=1e-12)


def test_the_penalty_moves_residuals_and_not_their_state():
    model, relaxation = relaxed(residual=StreamStep(spectral=True))
    penalty = er.relaxation.regularizers.LieDerivative(relaxation)
    model(None, cloud())
    before = {key: buffer.clone() for key, buffer in model.named_buffers()}
    penalty().backward()
    assert all(torch.equal(buffer, before[key]) for key, buffer in model.named_buffers())
    assert model.own.grad is None
    assert float(relaxation["interactions.0"].map.start.weight.grad.norm()) > 0


def test_evaluation_and_no_grad_do_not_count():
    model, relaxation = relaxed()
    penalty = er.relaxation.regularizers.LieDerivative(relaxation)
    with torch.no_grad():
        model(None, cloud())
    model.eval()(None, cloud())
    with relaxation.strict():
        model.train()(None, cloud())
    assert all(not residual.take_inputs() for _, residual in relaxation)
    model(None, cloud())
    assert float(penalty().detach()) > 0
