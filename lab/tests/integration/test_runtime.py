"""A relaxed model under torch.compile, gradient checkpointing, autocast, a GradScaler, and after resuming."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
from equirelax_lab.models.vector_neurons import VNLinear
from torch import nn
from torch.utils.checkpoint import checkpoint

import equirelax as er


class VectorNet(nn.Module):
    """Vector neurons with a norm non-linearity: (batch, channels, 3) -> (batch, 3)."""

    def __init__(self, channels: int = 6) -> None:
        super().__init__()
        self.maps = nn.ModuleList(
            [VNLinear(2, channels), VNLinear(channels, channels), VNLinear(channels, 1)]
        )

    def forward(self, x):
        for layer in self.maps[:-1]:
            x = layer(x)
            x = x * torch.tanh(x.norm(dim=2, keepdim=True))
        return self.maps[-1](x)[:, 0]


def score(relaxation):
    """Of this rank's share of a held-out batch."""
    rank, size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    like = next(relaxation.model.parameters())
    held_out = tuple(part[rank::size].to(like) for part in list(batches(7))[-1])
    return er.symmetry_score(
        relaxation.model, held_out, lambda model, batch: (model(batch[0]) - batch[1]).square().sum(1)
    )


METHODS = {
    "scheduled": lambda r: er.Scheduled(r, total_steps=6),
    "scheduled-rows": lambda r: er.Scheduled(r, total_steps=6, rows=5),
    "ace": lambda r: er.ACE(r, dual_lr=0.05),
    "resilient": lambda r: er.ResilientACE(r, dual_lr=0.05, primal_lr=0.01),
    "swing": lambda r: er.Swing(r, period=4, finish=5),
    "symmetry-following": lambda r: er.methods.SymmetryFollowing(r, score, measure_every=2),
    "remul": lambda r: er.methods.REMUL(r, weighting="gradnorm"),
    "rpp": lambda r: er.methods.RPP(r),
}


def setup(method, residual=None, dtype=torch.float64):
    torch.manual_seed(0)
    model = VectorNet().to(dtype)
    relaxation = er.relax(model, residual=residual or er.Dense("default"))
    made = METHODS[method](relaxation)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    return model, made.attach(optimizer), optimizer


def batches(count=6, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        x = torch.randn(8, 2, 3, generator=generator, dtype=dtype)
        yield x, x[:, 0] + 0.3 * x[:, 1].roll(1, -1)


def turned(x):
    """x -> y -> z -> x is a rotation."""
    return x.roll(1, -1)


def train(model, method, optimizer, forward=None, steps=None):
    losses = []
    forward = model if forward is None else forward
    for x, y in steps or batches():
        task = (forward(x) - y).square().mean()
        loss = method.objective(task, lambda x=x, y=y: (forward(turned(x)) - turned(y)).square().mean())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def same(a, b, rtol):
    for (key, x), (other, y) in zip(a.state_dict().items(), b.state_dict().items(), strict=True):
        assert key == other
        torch.testing.assert_close(x, y, rtol=rtol, atol=1e-13, msg=key)


@pytest.mark.parametrize("method", [pytest.param("scheduled", marks=pytest.mark.slow), "ace"])
def test_compiled_training_is_eager_training(method):
    torch.compiler.reset()
    eager, compiled = setup(method), setup(method)
    forward = torch.compile(compiled[0], fullgraph=True)
    expected = train(*eager)
    assert train(*compiled, forward=forward) == pytest.approx(expected, rel=1e-10)
    same(eager[0], compiled[0], 1e-10)
    x, _ = next(batches())
    with er.relaxation_of(compiled[0]).strict():
        strict = forward(x)
    er.project(compiled[0])
    torch.testing.assert_close(compiled[0](x), strict, rtol=1e-10, atol=1e-12)


@pytest.mark.slow
def test_gradnorm_refuses_a_backward_pass_that_was_compiled_for_one_call():
    """The plain step compiles the backward pass; the compiler's cache on the disk may hold another one, from other tests."""
    torch.compiler.reset()
    torch.manual_seed(0)
    model = VectorNet()
    method = METHODS["remul"](er.relax(model))
    forward = torch.compile(model)
    x = torch.randn(8, 2, 3)
    with torch._inductor.config.patch(force_disable_caches=True):
        forward(x).square().mean().backward()
        with pytest.raises(er.errors.MethodError, match="donated_buffer"):
            method.objective(forward(x).square().mean(), lambda: forward(x.roll(1, -1)).square().mean())


@pytest.mark.slow
def test_a_compiled_e3nn_model_is_the_eager_one():
    o3 = pytest.importorskip("e3nn.o3")
    torch.compiler.reset()
    torch.set_default_dtype(torch.float64)
    try:
        model = nn.Sequential(o3.Linear("4x0e+4x1o", "8x0e+4x1o"), o3.Linear("8x0e+4x1o", "1x1o"))
        relaxation = er.relax(model, residual=er.Dense("default"))
        relaxation.set_gamma(0.4)
        penalty = er.relaxation.regularizers.LieDerivative(relaxation)
        x = torch.randn(7, 16)
        eager, first = model(x), penalty()
        torch.testing.assert_close(torch.compile(model)(x), eager, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(penalty(), first, rtol=1e-10, atol=1e-12)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("method", METHODS)
def test_gradient_checkpointing_changes_nothing(method):
    plain, checked = setup(method), setup(method)
    torch.manual_seed(2)
    expected = train(*plain)
    torch.manual_seed(2)
    found = train(*checked, forward=lambda x: checkpoint(checked[0], x, use_reentrant=False))
    if method != "scheduled-rows":  # the random rows and the recomputation share torch's generator
        assert found == pytest.approx(expected, rel=1e-10)
        same(plain[0], checked[0], 1e-10)


@pytest.mark.parametrize("residual", [er.Dense("default"), er.MLP(layers=2)])
def test_autocast_is_near(residual):
    model, method, _ = setup("scheduled", residual, torch.float32)
    method.relaxation.set_gamma(0.5)
    x, _ = next(batches(dtype=torch.float32))
    exact = model(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = model(x)
    assert (cast.float() - exact).norm() < 2e-2 * exact.norm()


@pytest.mark.parametrize("method", ["ace", "resilient"])
def test_a_skipped_step_moves_no_multiplier(method):
    model, made, optimizer = setup(method, dtype=torch.float32)
    scaler = torch.amp.GradScaler("cpu")
    before, gammas = made.logs(), made.relaxation.gammas()
    for poison in (True, False):
        x, y = next(batches(dtype=torch.float32))
        loss = (model(x) - y).square().mean() + made.penalty()
        scaler.scale(loss * float("inf") if poison else loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        moved = any(made.logs()[key] != before[key] for key in before)
        assert moved is not poison
        assert torch.equal(made.relaxation.gammas(), gammas) is poison


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("residual", [er.Dense("normal"), er.MLP(layers=2)])
def test_resuming_continues_bit_for_bit(method, residual, tmp_path):
    steps = list(batches(6))
    torch.manual_seed(3)
    whole = setup(method, residual)
    torch.manual_seed(3)
    losses = train(*whole, steps=steps[:3])
    model, made, optimizer = whole
    er.save(model, tmp_path / "model.pt")
    torch.save(
        {"method": made.state_dict(), "optimizer": optimizer.state_dict(), "rng": torch.get_rng_state()},
        tmp_path / "rest.pt",
    )
    losses += train(*whole, steps=steps[3:])

    rest = torch.load(tmp_path / "rest.pt", weights_only=True)
    twin = VectorNet().double()
    relaxation = er.load(twin, tmp_path / "model.pt")
    again = METHODS[method](relaxation)
    again.load_state_dict(rest["method"])
    optimizer = torch.optim.Adam(twin.parameters(), lr=1e-2)
    again.attach(optimizer)
    optimizer.load_state_dict(rest["optimizer"])
    torch.set_rng_state(rest["rng"])
    assert train(twin, again, optimizer, steps=steps[3:]) == losses[3:]
    for key, value in model.state_dict().items():
        assert torch.equal(value, twin.state_dict()[key]), key


def test_a_deepcopy_trains_like_the_original():
    model, method, optimizer = setup("scheduled")
    twin = copy.deepcopy(model)
    relaxation = er.relaxation_of(twin)
    other = METHODS["scheduled"](relaxation)
    second = torch.optim.Adam(twin.parameters(), lr=1e-2)
    losses = train(model, method, optimizer)
    assert train(twin, other.attach(second), second) == losses
