"""A SchNet-like network and the same streams run row by row, for the tests of residual streams."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import equirelax as er
from equirelax.relaxation import Streams


class Block(nn.Module):
    """Mixes the features of all atoms by what depends on distances alone: (n, width) -> (n, width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.lin = nn.Linear(width, width)

    def forward(self, h: Tensor, weights: Tensor) -> Tensor:
        return torch.tanh(self.lin(weights @ h))


class Net(nn.Module):
    """SchNet's outside: `hidden_channels`, `interactions`, `forward(z, pos, batch)`.

    Args:
        order: the block of every round; a number that comes back is a shared module.
    """

    def __init__(self, width: int = 6, order: tuple[int, ...] = (0, 1, 2)) -> None:
        super().__init__()
        self.hidden_channels = width
        self.embedding = nn.Embedding(10, width)
        blocks = [Block(width) for _ in range(max(order) + 1)]
        self.interactions = nn.ModuleList(blocks[i] for i in order)
        self.fails_after = len(order)

    def forward(self, z: Tensor, pos: Tensor, batch: Tensor | None = None) -> Tensor:
        h = self.embedding(z)
        weights = torch.softmax(-(pos[:, None] - pos[None]).square().sum(-1), dim=1)
        for i, interaction in enumerate(self.interactions):
            if i == self.fails_after:
                raise FloatingPointError("midway")
            h = h + interaction(h, weights)
        return h


class Rows(nn.Module):
    """The stream of a `Net` on every row, by torch's own layers, after copying the residuals' parameters."""

    def __init__(self, relaxation: er.Relaxation) -> None:
        super().__init__()
        maps = [residual.map for _, residual in relaxation]
        width = maps[0].norm.weight.shape[0]
        self.start = nn.Linear(3, width)
        self.start.load_state_dict(maps[0].start.state_dict())
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for _ in maps)
        self.linears = nn.ModuleList(nn.Linear(width, width) for _ in maps)
        for norm, linear, map_ in zip(self.norms, self.linears, maps, strict=True):
            norm.load_state_dict(map_.norm.state_dict(), strict=False)
            linear.load_state_dict(map_.linear.state_dict())

    def forward(self, pos: Tensor, order: tuple[int, ...]) -> list[Tensor]:
        """s_i after every round, (rounds, n, width)."""
        s, found = self.start(pos), []
        for i in order:
            s = self.linears[i](self.norms[i](s))
            found.append(s)
        return found


def reference(
    model: Net, rows: Rows, gammas: list[float], order: tuple[int, ...], z: Tensor, pos: Tensor
) -> Tensor:
    """What the relaxed model is to return: the strict blocks, with gamma s_i added by hand."""
    h = model.embedding(z)
    weights = torch.softmax(-(pos[:, None] - pos[None]).square().sum(-1), dim=1)
    for i, s in zip(order, rows(pos, order), strict=True):
        h = h + torch.tanh(model.interactions[order.index(i)].lin(weights @ h)) + gammas[i] * s
    return h


def atoms(n: int = 9) -> tuple[Tensor, Tensor]:
    """Numbers (n,) and positions (n, 3), off centre and stretched."""
    return torch.randint(1, 10, (n,)), torch.randn(n, 3) * torch.tensor([1.0, 2.0, 0.5]) + 3


def perturb(relaxation: er.Relaxation) -> None:
    """Move every parameter of the residuals off its initial value, and give every strength another value."""
    with torch.no_grad():
        for parameter in relaxation.residual_parameters().values():
            parameter += 0.3 * torch.randn_like(parameter)
    for i, (_, residual) in enumerate(relaxation):
        residual.set_gamma(0.5 + 0.2 * i)


def relaxed(order=(0, 1, 2), **options):
    model = Net(order=order)
    relaxation = er.relax(
        model, Streams("interactions.?", "hidden_channels", **{"centred": False, **options})
    )
    perturb(relaxation)
    return model, relaxation


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
