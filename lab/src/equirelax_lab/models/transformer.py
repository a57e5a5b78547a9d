"""A Transformer on the bodies of a system, without symmetry; REMUL trains it towards equivariance.

The encoder of Vaswani et al. (arXiv 1706.03762) with norms first, as in Xiong et al. (arXiv 2002.04745); every body is a token.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from equirelax.errors import RepresentationError


class TransformerLayer(nn.Module):
    """x' = x + attention(norm(x)), x'' = x' + feedforward(norm(x')), all tokens of a system attending to all.

    Args:
        hidden: width of a token, a multiple of `heads`.
        heads: number of attention heads.
    """

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.queries_keys_values = nn.Linear(hidden, 3 * hidden)
        self.mix = nn.Linear(hidden, hidden)
        self.feedforward = nn.Sequential(
            nn.Linear(hidden, 4 * hidden), nn.GELU(), nn.Linear(4 * hidden, hidden)
        )

    def forward(self, x: Tensor) -> Tensor:
        """x (systems, tokens, hidden) -> the same shape."""
        x = x + self.mix(self._attention(self.queries_keys_values(self.norm_1(x))))
        return x + self.feedforward(self.norm_2(x))

    def _attention(self, projected: Tensor) -> Tensor:
        """(systems, tokens, 3 hidden) -> (systems, tokens, hidden), in ordinary operations: with so few tokens a fused
        kernel gains nothing, and forward mode and `torch.func` work."""
        split = projected.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        queries, keys, values = split.unbind(0)  # (systems, heads, tokens, hidden / heads)
        scores = queries @ keys.transpose(2, 3) / queries.shape[3] ** 0.5
        return (scores.softmax(dim=3) @ values).transpose(1, 2).flatten(2)


class Transformer(nn.Module):
    """Predicts positions of bodies at several later times from positions, velocities and features.

    The last layer's tokens give the displacement of each body at every time.

    It is not equivariant, since it reads raw coordinates. Bodies have a learnt embedding of their index, so their order
    matters.

    Args:
        bodies: number of bodies of every system.
        hidden: width of a token, a multiple of `heads`.
        layers: number of encoder layers (>= 1).
        heads: number of attention heads (>= 1).
        in_features: number of further node features.
        steps: number of later times (>= 1).

    Raises:
        RepresentationError: a size is out of its range.
    """

    def __init__(
        self,
        bodies: int = 31,
        hidden: int = 128,
        layers: int = 6,
        heads: int = 8,
        in_features: int = 2,
        steps: int = 5,
    ) -> None:
        super().__init__()
        if min(bodies, hidden, layers, heads, steps) < 1 or in_features < 0:
            raise RepresentationError(
                "Transformer: bodies, hidden, layers, heads and steps must be at least 1 and in_features at least 0, got "
                f"{bodies}, {hidden}, {layers}, {heads}, {steps}, {in_features}"
            )
        if hidden % heads:
            raise RepresentationError(f"Transformer: hidden={hidden} must be a multiple of heads={heads}")
        self.bodies, self.in_features, self.steps = bodies, in_features, steps
        self.embedding = nn.Linear(6 + in_features, hidden)
        self.body = nn.Parameter(0.02 * torch.randn(bodies, hidden))
        self.layers = nn.ModuleList(TransformerLayer(hidden, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(hidden)
        self.displacement = nn.Linear(hidden, 3 * steps)

    def forward(self, positions: Tensor, velocities: Tensor, features: Tensor) -> Tensor:
        """positions, velocities (n, 3), features (n, in_features), system by system, n a multiple of `bodies` ->
        positions (n, steps, 3) at the later times.

        Raises:
            RepresentationError: the number of features is wrong, or the nodes are not whole systems.
        """
        n = positions.shape[0]
        if features.shape[1] != self.in_features or n % self.bodies:
            raise RepresentationError(
                f"Transformer: got {n} nodes with {features.shape[1]} features, but was built for systems of "
                f"{self.bodies} bodies with in_features={self.in_features}"
            )
        tokens = self.embedding(torch.cat([positions, velocities, features], dim=1))
        tokens = tokens.unflatten(0, (-1, self.bodies)) + self.body
        for layer in self.layers:
            tokens = layer(tokens)
        displacement = self.displacement(self.norm(tokens)).flatten(0, 1).unflatten(1, (self.steps, 3))
        return positions[:, None] + displacement
