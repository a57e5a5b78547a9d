"""Penalties of models in half precision: in float32 or better, for every kind of residual (defect M8)."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from equirelax_lab.models import GroupConv2d
from torch import Tensor, nn

import equirelax as er
from equirelax.relaxation import Layers, Linear, Relaxation, StreamResidual, Streams
from equirelax.relaxation.kinds import EquivariantDense, StreamStep
from equirelax.relaxation.regularizers import LieDerivative, residual_terms
from equirelax.symmetry import SO, Cyclic, regular, vector

HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}
IN, OUT = 3 * vector(SO(3)), 2 * vector(SO(3))

LINEAR: dict[str, er.relaxation.ResidualKind] = {
    "dense": er.Dense("normal", std=0.3, bias=True),
    "equivariant": EquivariantDense("normal", std=0.3),
    "low-rank": er.LowRank(3, init="normal", std=0.3),
    "mlp": er.MLP(layers=3),
}
CONVOLUTIONS: dict[str, er.relaxation.ResidualKind] = {
    "conv-dense": er.Dense("normal", std=0.3, bias=True),
    "conv-equivariant": EquivariantDense("normal", std=0.3),
    "conv-low-rank": er.LowRank(3, init="normal", std=0.3),
}


class Blocks(nn.Module):
    """As much of a SchNet as a stream needs."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden_channels = 4
        self.interactions = nn.ModuleList(nn.Identity() for _ in range(3))
        self.own = nn.Parameter(torch.zeros(()))

    def forward(self, z: Tensor, pos: Tensor, batch: Tensor | None = None) -> Tensor:
        h = self.own + torch.zeros(len(pos), 4, dtype=pos.dtype)
        for block in self.interactions:
            h = h + block(h)
        return h


def cloud(rows: int, *features: int) -> Tensor:
    return 3 * torch.randn(rows, *features, generator=torch.Generator().manual_seed(0))


def make(kind: str) -> tuple[Relaxation, Callable[[], Tensor]]:
    """A relaxed model, and a forward pass of it in its dtype."""
    torch.manual_seed(0)
    if kind in LINEAR:
        placement = Layers(residual=LINEAR[kind], declare=(Linear("0", IN, OUT),))
        relaxation = er.relax(nn.Sequential(nn.Linear(9, 6, bias=False)), placement)
        inputs: tuple[Tensor, ...] = (cloud(40, 9),)
    elif kind in CONVOLUTIONS:
        group = Cyclic(4)
        model = nn.Sequential(GroupConv2d(vector(group), 2 * regular(group), 3))
        relaxation = er.relax(model, Layers(residual=CONVOLUTIONS[kind]))
        inputs = (cloud(2, 2, 5, 5),)
    else:
        relaxation = er.relax(
            Blocks(),
            Streams(
                "interactions.?",
                "hidden_channels",
                centred=False,
                residual=StreamStep(spectral=kind == "stream-spectral"),
            ),
        )
        inputs = (torch.zeros(9, dtype=torch.long), cloud(9, 3))

    def forward() -> Tensor:
        dtype = relaxation.gammas().dtype
        given = [x.to(dtype) if x.is_floating_point() else x for x in inputs]
        out: Tensor = relaxation.model(*given)
        return out

    return relaxation, forward


def exact_terms(relaxation: Relaxation) -> list[tuple[Tensor, Tensor]]:
    """What the kept inputs and the rounded weights give in float64."""
    found = []
    for _, residual in relaxation:
        inputs = [one.value.double() for one in residual._kept]
        twin = copy.deepcopy(residual)
        if isinstance(twin, StreamResidual):
            for member in twin.shared.members:
                member.double()
        found.append(residual_terms(twin.double(), inputs))
    return found


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("kind", [*LINEAR, *CONVOLUTIONS, "stream", "stream-spectral"])
def test_terms_are_those_of_the_rounded_weights_in_float32(kind: str, dtype: str) -> None:
    relaxation, forward = make(kind)
    relaxation.model.to(HALF[dtype])
    regularizer = LieDerivative(relaxation)
    relaxation.set_gamma(0.5)
    forward()
    expected = exact_terms(relaxation)
    value = regularizer()
    assert value.dtype == torch.float32
    for terms, (lie, norm) in zip(regularizer.terms.values(), expected, strict=True):
        if kind.endswith("equivariant"):
            assert float(terms["lie"]) < 1e-8 * float(norm)
        else:
            torch.testing.assert_close(terms["lie"].double(), lie.detach(), rtol=2e-4, atol=0)
        torch.testing.assert_close(terms["norm"].double(), norm.detach(), rtol=2e-4, atol=0)
    value.backward()
    for name, parameter in relaxation.residual_parameters().items():
        if "bias" in name and kind.startswith("stream"):
            continue  # a bias in front of a normalisation falls out
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
        assert bool(parameter.grad.any()), name


@pytest.mark.parametrize("kind", ["mlp", "dense"])
def test_large_activations_in_float16_do_not_overflow(kind: str) -> None:
    """Squares above 65504 are infinite in float16."""
    relaxation, _ = make(kind)
    relaxation.model.half()
    regularizer = LieDerivative(relaxation)
    relaxation.model(1e3 * torch.ones(40, 9, dtype=torch.float16))
    value = regularizer()
    value.backward()
    assert bool(value.isfinite())
    assert float(value.detach()) > 1.0
    assert all(bool(p.grad.isfinite().all()) for p in relaxation.residual_parameters().values())
