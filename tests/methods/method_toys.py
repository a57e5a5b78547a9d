"""Small problems that the tests of the methods share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

import equirelax as er
from equirelax.methods import Method
from equirelax.relaxation import Relaxation
from equirelax.symmetry import SO, vector


class Chain(nn.Module):
    """Layers of 2 vectors each with norm gates: equivariant under SO(3); input and output (batch, 6)."""

    def __init__(self, layers: int = 2) -> None:
        super().__init__()
        self.mixes = nn.ModuleList(nn.Linear(6, 6, bias=False) for _ in range(layers))
        with torch.no_grad():
            for mix in self.mixes:
                mix.weight.copy_(torch.kron(torch.randn(2, 2), torch.eye(3)))

    def forward(self, x: Tensor) -> Tensor:
        for mix in self.mixes:
            y = mix(x).unflatten(-1, (2, 3))
            x = (y / (1.0 + y.norm(dim=-1, keepdim=True))).flatten(-2)
        return x


def chain(layers: int = 2, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> Relaxation:
    """A relaxed `Chain`, its residuals drawn from a normal distribution."""
    torch.manual_seed(seed)
    model = Chain(layers).to(dtype)
    rep = 2 * vector(SO(3))
    placement = er.Layers(
        residual=er.Dense(init="normal", std=0.1), declare=(er.relaxation.Linear("Linear", rep, rep),)
    )
    return er.relax(model, placement)


def batch(rows: int = 8, *, seed: int = 1, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Random inputs and targets (rows, 6)."""
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(2, rows, 6, generator=generator, dtype=dtype)
    return x, y


class Quadratic:
    """J0(theta, gamma) = 1/2 z^T Q z - p^T z with z = (theta, gamma): strongly convex, its minima known.

    Args:
        size: number of thetas; gammas: number of gammas.
    """

    def __init__(self, gammas: int, size: int = 3, *, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        n = size + gammas
        root = torch.randn(n, n, generator=generator, dtype=torch.float64)
        self.matrix = root @ root.T / n + torch.eye(n, dtype=torch.float64)
        self.vector = 2.0 * torch.randn(n, generator=generator, dtype=torch.float64)
        self.size = size
        self.theta = nn.Parameter(torch.zeros(size, dtype=torch.float64))

    def __call__(self, gammas: Tensor) -> Tensor:
        z = torch.cat([self.theta, gammas])
        return 0.5 * z @ self.matrix @ z - self.vector @ z

    def equality_solution(self) -> tuple[Tensor, Tensor]:
        """theta* and lambda* of min J0 subject to gamma = 0; lambda* = -grad_gamma J0."""
        k = self.size
        theta = torch.linalg.solve(self.matrix[:k, :k], self.vector[:k])
        return theta, self.vector[k:] - self.matrix[k:, :k] @ theta

    def resilient_solution(self, rho: float) -> tuple[Tensor, Tensor]:
        """theta*, gamma* of min J0 + rho/2 ||u||^2 subject to |gamma| <= u, where u = |gamma|."""
        priced = self.matrix.clone()
        priced.diagonal()[self.size :] += rho
        z = torch.linalg.solve(priced, self.vector)
        return z[: self.size], z[self.size :]


def gammas(relaxation: Relaxation) -> Tensor:
    """All gammas (n,), with gradients."""
    return torch.cat([residual.gamma for _, residual in relaxation])


def gamma_parameters(relaxation: Relaxation) -> list[nn.Parameter]:
    """The gammas that are learnt."""
    return list(relaxation.gamma_parameters().values())


def descend(
    relaxation: Relaxation,
    method: Method,
    task: Callable[[Tensor], Tensor],
    theta: list[nn.Parameter],
    *,
    lr: float,
    steps: int,
) -> list[Tensor]:
    """Run the loop with SGD on theta and gamma; returns the gammas before every step."""
    optimizer = torch.optim.SGD([*theta, *gamma_parameters(relaxation)], lr=lr)
    seen = []
    for _ in range(steps):
        seen.append(gammas(relaxation).detach().clone())
        optimizer.zero_grad()
        (task(gammas(relaxation)) + method.penalty()).backward()
        optimizer.step()
        method.step()
    return seen
