"""A regulariser that is computed at every k-th step; means that do not depend on the batch; batches without rows."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from equirelax_lab.models import GroupConv2d
from torch import Tensor, nn

import equirelax as er
from equirelax.errors import PenaltyError
from equirelax.relaxation import Layers, Linear, Relaxation
from equirelax.relaxation.regularizers import LieDerivative
from equirelax.symmetry import SO, Cyclic, regular, sign, trivial, vector


class Maps(nn.Module):
    """Two linear maps of vectors, rows (n, 6) -> (n, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 9, bias=False)
        self.second = nn.Linear(9, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.first(x))
        return y


def relaxed(kind: er.relaxation.ResidualKind | None = None) -> Relaxation:
    torch.manual_seed(0)
    v = vector(SO(3))
    declared = (Linear("first", 2 * v, 3 * v), Linear("second", 3 * v, v))
    relaxation = er.relax(
        Maps().double(), Layers(residual=kind or er.Dense("normal", std=0.3), declare=declared)
    )
    relaxation.set_gamma(0.5)
    return relaxation


def rows(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("every", [1, 2, 5])
def test_the_mean_over_k_steps_at_fixed_weights_is_the_exact_one(every: int) -> None:
    relaxation, x = relaxed(), rows(20)
    exact = LieDerivative(relaxation, 0.3, 0.2)
    relaxation.model(x)
    expected = exact()
    (gradient,) = torch.autograd.grad(expected, relaxation["first"].map.weight)
    regularizer = LieDerivative(relaxation, 0.3, 0.2, every=every)
    values, gradients = [], []
    for step in range(2 * every):
        assert regularizer.due is (step % every == 0)
        relaxation.model(x)
        assert bool(relaxation["first"]._kept) is regularizer.due  # the others keep nothing
        value = regularizer()
        assert value.dtype == expected.dtype
        assert value.shape == ()
        values.append(value.detach())
        if value.requires_grad:
            gradients.append(torch.autograd.grad(value, relaxation["first"].map.weight)[0])
        regularizer.advance()
    torch.testing.assert_close(torch.stack(values[:every]).mean(), expected.detach())
    torch.testing.assert_close(torch.stack(values[every:]).mean(), expected.detach())
    torch.testing.assert_close(torch.stack(gradients).sum(0) / (2 * every), gradient)


def test_micro_batches_are_one_step_of_the_counter() -> None:
    relaxation = relaxed()
    optimizer = torch.optim.SGD(relaxation.model.parameters(), lr=0.01)
    method = er.Scheduled(relaxation, 9, every=3).attach(optimizer)
    assert method.regularizer is not None
    for step in range(6):
        for part in rows(12, step).chunk(3):
            relaxation.model(part).square().mean().backward()
        penalty = method.penalty()
        assert bool(penalty > 0) is (step % 3 == 0)
        if penalty.requires_grad:
            penalty.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert method.regularizer.steps == 6


def test_the_counter_is_in_the_state_and_a_run_goes_on_bit_for_bit() -> None:
    def start() -> tuple[Relaxation, torch.optim.Optimizer, er.ACE]:
        relaxation = relaxed()
        optimizer = torch.optim.Adam(relaxation.model.parameters(), lr=0.01)
        generator = torch.Generator().manual_seed(7)
        regularizer = LieDerivative(relaxation, rows=5, generator=generator, every=3)
        return (
            relaxation,
            optimizer,
            er.ACE(relaxation, dual_lr=0.1, regularizer=regularizer).attach(optimizer),
        )

    def train(run: tuple[Relaxation, torch.optim.Optimizer, er.ACE], first: int, last: int) -> list[float]:
        losses = []
        for step in range(first, last):
            loss = run[0].model(rows(12, step)).square().mean() + run[2].penalty()
            run[1].zero_grad()
            loss.backward()
            run[1].step()
            losses.append(loss.item())
        return losses

    whole, part, rest = start(), start(), start()
    losses = train(whole, 0, 9)
    begun = train(part, 0, 4)  # in the middle of three steps
    buffer = io.BytesIO()
    torch.save([part[0].model.state_dict(), part[1].state_dict(), part[2].state_dict()], buffer)
    buffer.seek(0)
    states = torch.load(buffer, weights_only=True)
    for thing, state in zip((rest[0].model, rest[1], rest[2]), states, strict=True):
        thing.load_state_dict(state)
    assert begun + train(rest, 4, 9) == losses


@pytest.mark.parametrize("every", [0, -2])
def test_every_is_at_least_one(every: int) -> None:
    with pytest.raises(PenaltyError, match=f"every is {every}"):
        LieDerivative(relaxed(), every=every)


class Pooled(nn.Module):
    """A convolution, then a linear map of an invariant: (batch, 2, h, w) -> (batch, 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = GroupConv2d(vector(Cyclic(4)), regular(Cyclic(4)), 3)
        self.linear = nn.Linear(1, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(self.conv(x).sum(dim=(1, 2, 3))[:, None])
        return y


def test_the_mean_of_convolutions_and_maps_together_does_not_depend_on_the_batch() -> None:
    """Defect M10: 0.705 for 10 images and 0.233 for 100 of the same."""
    torch.manual_seed(0)
    model, group = Pooled().double(), Cyclic(4)
    declared = Linear("linear", sign(group), trivial(group, 2))
    relaxation = er.relax(model, Layers(declare=(declared,), residual=er.Dense("normal", std=0.3)))
    regularizer = LieDerivative(relaxation, scaling="mean")
    images, values = torch.randn(10, 2, 5, 5, dtype=torch.float64), []
    for copies in (1, 10):
        model(images.repeat(copies, 1, 1, 1))
        values.append(regularizer().detach())
    torch.testing.assert_close(values[0], values[1], rtol=1e-12, atol=0)
    # the mean over both residuals, each of its own mean
    kernel, linear = regularizer.terms["conv"], regularizer.terms["linear"]
    means = [(kernel[name] + linear[name] / 100) / 2 for name in ("lie", "norm")]
    torch.testing.assert_close(values[1], 0.01 * (means[0].sqrt() + means[1].sqrt()))


KINDS: dict[str, Any] = {
    "dense": er.Dense("normal", std=0.3),
    "bias": er.Dense("normal", std=0.3, bias=True),
    "low-rank": er.LowRank(2, init="normal", std=0.3),
    "mlp": er.MLP(layers=2),
}


@pytest.mark.parametrize("scaling", ["root-sum", "mean"])
@pytest.mark.parametrize("sampled", [None, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_without_rows_gives_zero_and_finite_gradients(
    kind: str, sampled: int | None, scaling: str
) -> None:
    """Defect M15."""
    relaxation = relaxed(KINDS[kind])
    regularizer = LieDerivative(relaxation, rows=sampled, scaling=scaling)
    loss = relaxation.model(rows(0)).sum() + regularizer()
    assert loss.item() == 0.0
    loss.backward()
    for name, parameter in relaxation.residual_parameters().items():
        assert parameter.grad is None or bool(parameter.grad.isfinite().all()), name
