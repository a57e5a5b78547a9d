"""Small networks of three layer families, their batches, and a loop that trains them with whole batches or in parts."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from test_runtime import METHODS, VectorNet, turned
from torch import Tensor, nn

import equirelax as er
from equirelax.methods import Method
from equirelax.symmetry import Cyclic, regular

STEPS = 6
ROWS = 8


def e3nn_net() -> tuple[nn.Module, er.Layers]:
    """A gated perceptron of e3nn: two vectors to one."""
    from e3nn import nn as e3nn_nn
    from e3nn import o3

    gate = e3nn_nn.Gate("6x0e", [torch.tanh], "4x0e", [torch.sigmoid], "4x1o")
    layers = [o3.Linear("2x1o + 1x0e", gate.irreps_in), gate, o3.Linear(gate.irreps_out, "1x1o")]

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(*layers)

        def forward(self, x: Tensor) -> Tensor:  # (batch, 2, 3)
            return self.layers(torch.cat([x.flatten(1), x.square().sum((1, 2))[:, None]], dim=1))

    return Net(), er.Layers(residual=er.Dense("default"))


def vector_net() -> tuple[nn.Module, er.Layers]:
    """Vector neurons."""
    return VectorNet(), er.Layers(residual=er.Dense("default"))


def declared_net() -> tuple[nn.Module, er.Layers]:
    """A perceptron of plain layers on regular representations of C3, which turns x -> y -> z -> x."""
    reps = [n * regular(Cyclic(3)) for n in (2, 4, 1)]

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.maps = nn.ModuleList(
                nn.Linear(a.dim, b.dim, bias=False) for a, b in itertools.pairwise(reps)
            )

        def forward(self, x: Tensor) -> Tensor:  # (batch, 2, 3)
            return self.maps[1](torch.tanh(self.maps[0](x.flatten(1))))

    declared = tuple(er.relaxation.Linear(f"maps.{i}", reps[i], reps[i + 1]) for i in range(2))
    return Net(), er.Layers(residual=er.Dense("default"), declare=declared)


NETWORKS: dict[str, Callable[[], tuple[nn.Module, er.Layers]]] = {
    "vector neurons": vector_net,
    "e3nn": e3nn_net,
    "declared": declared_net,
}

CASES = [
    (network, method)
    for network in NETWORKS
    for method in METHODS
    if (network, method) != ("e3nn", "remul")  # e3nn's weights are flat: GradNorm is to be told its layer
]


@dataclass
class Run:
    """A relaxed network with its method and optimizer, and the penalties of its steps."""

    model: nn.Module
    method: Method
    optimizer: torch.optim.Optimizer
    penalties: list[float]

    def numbers(self) -> dict[str, Tensor]:
        """Strengths, multipliers and slacks by name, (residuals,) each, and the penalties, (steps,)."""
        logs = self.method.logs()
        names = sorted({name for row in logs.values() for name in row})
        found = {name: [row[name] for row in logs.values() if name in row] for name in names}
        found["penalty"] = self.penalties
        return {name: torch.tensor(values, dtype=torch.float64) for name, values in found.items()}


def run(
    network: str,
    method: str,
    *,
    dtype: torch.dtype = torch.float64,
    parts: int = 1,
    autocast: bool = False,
    compiled: bool = False,
    residual: er.relaxation.ResidualKind | None = None,
) -> Run:
    """Train a network for some steps, always from the same weights on the same batches."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            model, placement = NETWORKS[network]()
        if residual is not None:
            placement = er.Layers(residual=residual, declare=placement.declare)
        relaxation = er.relax(model, placement)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        made = METHODS[method](relaxation).attach(optimizer)
        forward = torch.compile(model) if compiled else model
        found = Run(model, made, optimizer, [])
        for x, y in batches(dtype):
            found.penalties.append(_step(found, forward, x, y, parts, autocast))
        return found
    finally:
        torch.set_default_dtype(before)


def _step(
    found: Run, forward: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, parts: int, autocast: bool
) -> float:
    """One optimizer step; returns what the method added to the loss."""
    added = 0.0
    pieces = list(zip(x.tensor_split(parts), y.tensor_split(parts), strict=True))
    for i, (some, target) in enumerate(pieces):

        def loss(some: Tensor, target: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                return (forward(some) - target).square().mean() * (len(some) / len(x))

        task = loss(some, target)
        objective = found.method.objective(
            task, lambda some=some, target=target: loss(turned(some), turned(target)), last=i == parts - 1
        )
        added += float((objective - task).detach())
        objective.backward()
    found.optimizer.step()
    found.optimizer.zero_grad()
    return added


def batches(dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
    """Two vectors, and a function of them that is not equivariant."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        x = torch.randn(ROWS, 2, 3, generator=generator, dtype=torch.float64).to(dtype)
        yield x, x[:, 0] + 0.3 * x[:, 1].roll(1, -1)
