"""Residual streams: the same numbers as row by row, and nothing left between two forwards."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stream_toys import Rows, atoms, close, reference, relaxed
from torch import nn

from equirelax.relaxation.kinds import StreamStep
from equirelax.relaxation.kinds.stream import SpectralLinear, StreamMap, linear, moments
from equirelax.symmetry import O, trivial, vector

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 0, 1), (0, 1, 0)])
def test_training_is_that_of_torch_row_by_row(order):
    model, relaxation = relaxed(order)
    rows = Rows(relaxation)
    gammas = relaxation.gammas().tolist()
    for _ in range(3):  # running statistics add up
        z, pos = atoms()
        pos.requires_grad_(True)
        out, expected = model(z, pos), reference(model, rows, gammas, order, z, pos)
        close(out, expected)
        target = torch.randn_like(out)
        close(
            torch.autograd.grad((out * target).sum(), pos, retain_graph=True)[0],
            torch.autograd.grad((expected * target).sum(), pos, retain_graph=True)[0],
        )
        model.zero_grad()
        (out * target).sum().backward()
        (expected * target).sum().backward(inputs=list(rows.parameters()))
        for i, (_, residual) in enumerate(relaxation):
            close(residual.map.linear.weight.grad, rows.linears[i].weight.grad)
            close(residual.map.norm.weight.grad, rows.norms[i].weight.grad)
            close(residual.map.norm.bias.grad, rows.norms[i].bias.grad)
            close(residual.map.norm.running_mean, rows.norms[i].running_mean)
            close(residual.map.norm.running_var, rows.norms[i].running_var)
        head = next(iter(relaxation))[1].map.start
        close(head.weight.grad, rows.start.weight.grad)
        rows.zero_grad()
    z, pos = atoms()
    close(model.eval()(z, pos), reference(model, rows.eval(), gammas, order, z, pos))


@settings(max_examples=25, deadline=None)
@given(
    width=st.integers(1, 5),
    dim=st.integers(1, 5),
    rows=st.integers(2, 9),
    steps=st.integers(1, 4),
    spectral=st.booleans(),
    training=st.booleans(),
    seed=st.integers(0, 99),
)
def test_steps_of_any_size_are_those_of_torch(width, dim, rows, steps, spectral, training, seed):
    generator = torch.Generator().manual_seed(seed)
    maps = [
        StreamMap(width, dim if i == 0 and dim != width else None, spectral, generator).train(training)
        for i in range(steps)
    ]
    x = torch.randn(rows, dim, generator=generator)
    value, s = maps[0].begin(count=False), x
    if maps[0].start is not None:
        s = nn.functional.linear(x, value.weight, maps[0].start.bias)
    for map_ in maps:
        with torch.no_grad():
            map_.norm.running_mean.normal_(generator=generator)
            map_.norm.weight.normal_(generator=generator)
        value = map_(value, moments(x), count=False)
        norm, linear = map_.norm, map_.linear
        s = nn.functional.batch_norm(
            s, norm.running_mean.clone(), norm.running_var.clone(), norm.weight, norm.bias, training
        )
        weight = (
            linear.weight / torch.dot(linear.left, linear.weight @ linear.right)
            if spectral
            else linear.weight
        )
        s = nn.functional.linear(s, weight, linear.bias)
    torch.testing.assert_close(x @ value.weight.T + value.offset, s, rtol=1e-8, atol=1e-8)


def test_every_gamma_has_its_own_gradient():
    model, relaxation = relaxed()
    for _, residual in relaxation:
        residual.learn_gamma(0.5)
    rows, (z, pos) = Rows(relaxation), atoms()
    model(z, pos)[:, 0].sum().backward()
    g = [torch.tensor([0.5], requires_grad=True) for _ in range(3)]
    reference(model, rows, g, (0, 1, 2), z, pos)[:, 0].sum().backward()
    for (_, residual), expected in zip(relaxation, g, strict=True):
        close(residual.gamma.grad, expected.grad)


def test_spectral_weights_are_those_of_torch():
    mine, other = SpectralLinear(5, 7), nn.Linear(5, 7)
    other.load_state_dict({"weight": mine.weight, "bias": mine.bias})
    other = torch.nn.utils.spectral_norm(other)
    other.weight_u.copy_(mine.left)
    other.weight_v.copy_(mine.right)
    x = torch.randn(4, 5)
    for _ in range(3):
        for layer in (mine, other):
            layer.zero_grad()
        a, b = mine(x), other(x)
        close(a, b)
        a.square().sum().backward()
        b.square().sum().backward()
        close(mine.weight.grad, other.weight_orig.grad)
    before = mine.left.clone()
    mine.eval()(x)
    assert torch.equal(mine.left, before)
    for _ in range(500):
        mine.iterate()
    close(torch.linalg.matrix_norm(mine.effective_weight(), 2), torch.tensor(1.0))


def test_spectral_steps_have_norm_one_and_the_estimate_moves_in_training_only():
    model, relaxation = relaxed(residual=StreamStep(spectral=True))
    z, pos = atoms()
    for _ in range(300):
        model(z, pos)
    for _, residual in relaxation:
        largest = torch.linalg.matrix_norm(residual.map.linear.effective_weight().detach(), 2)
        assert float(largest) == pytest.approx(1, rel=1e-6)
    before = model.state_dict()
    before = {key: value.clone() for key, value in before.items()}
    model.eval()(z, pos)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_equal_rows_give_no_nan():
    model, _ = relaxed()
    z, pos = atoms()
    out = model(z, torch.ones_like(pos))
    out.sum().backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters() if p.grad is not None)


def test_a_generator_of_its_own_spares_the_global_one():
    before = torch.get_rng_state()
    generator = torch.Generator().manual_seed(0)
    StreamStep(spectral=True, first=True).build(vector(O(3)), trivial(O(3), 6), -1, generator)
    torch.testing.assert_close(torch.get_rng_state(), before, rtol=0, atol=0)


def test_without_one_the_global_generator_goes_on_as_ever():
    """The weights behind a layer's are those that stored runs have: torch's layer draws its own first."""
    after = []
    for draw in (lambda: linear(3, 6, 0), lambda: [nn.Linear(3, 6) for _ in range(2)]):
        torch.manual_seed(0)
        draw()
        after.append(torch.rand(()))
    assert after[0] == after[1]
