"""An asymmetry planted at one layer of a small network's task: does the symmetry score name the layer?

The network is a vector-neuron network with a trunk of two layers and three heads. The targets come from a network of the same
kind, in which a dense map that no rotation leaves unchanged is added ("planted") at one of its five layers, or at none. A strict
network is trained on fresh, isotropic examples and scored on held-out ones as it trains. In a relaxed one the gammas follow the
score.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from equirelax.auditing import symmetry_score
from equirelax.errors import ConfigError
from equirelax.files import did_you_mean
from equirelax.methods import SymmetryFollowing
from equirelax.relaxation import Dense, Relaxation, relax
from equirelax_lab.models.vector_neurons import VNLinear
from equirelax_lab.tasks.toy import gate, seeded

CHANNELS, HIDDEN, HEADS = 4, 8, 3
LAYERS = ("trunk.0", "trunk.1", "heads.0", "heads.1", "heads.2")
NOWHERE = "nowhere"
PLANTED = (NOWHERE, *LAYERS)
FOLLOWED = (NOWHERE, "heads.1", "trunk.0")
"""Where an asymmetry is planted for the network whose gammas follow the score."""
BATCH, HELD_OUT = 128, 512
RATE, NOISE, STRENGTH = 5e-3, 0.3, 1.0
"""Learning rate of Adam; standard deviation of the targets' noise; standard deviation of the planted map's output, relative to
that of the layer's output."""
FOLLOWING = SymmetryFollowing.Settings(measure_every=10)

Batch = tuple[Tensor, Tensor]


class Branches(nn.Module):
    """A trunk of two VN-linear maps with norm gates, and a VN-linear head for each of three vectors; O(3)-equivariant."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.ModuleList([VNLinear(CHANNELS, HIDDEN), VNLinear(HIDDEN, HIDDEN)])
        self.heads = nn.ModuleList([VNLinear(HIDDEN, 1) for _ in range(HEADS)])

    def forward(self, x: Tensor) -> Tensor:
        """Map channels of vectors to three vectors.

        Args:
            x: (batch, 4, 3).

        Returns:
            (batch, 3, 3): head, component.
        """
        for layer in self.trunk:
            x = gate(layer(x))
        return torch.cat([head(x) for head in self.heads], dim=1)


class Examples:
    """An endless source of examples whose targets break the symmetry at one layer, or at none.

    Args:
        planted: One of `PLANTED`.
        seed: Seed of the network that makes the targets, and of the examples.

    Raises:
        ConfigError: `planted` is not a layer.
    """

    def __init__(self, planted: str, seed: int) -> None:
        if planted not in PLANTED:
            raise ConfigError(
                f"nothing can be planted at {planted!r}; there are {', '.join(PLANTED)}."
                f"{did_you_mean(planted, PLANTED)}"
            )
        with seeded(seed):
            self.teacher = Branches().double()
            relaxation = relax(self.teacher, residual=Dense(init="normal", std=1.0))
        self._draws = torch.Generator().manual_seed(seed)
        relaxation.set_gamma(0.0)
        x = self._inputs(4096)
        with torch.no_grad():
            self._scale = self.teacher(x).std(dim=(0, 2), keepdim=True)
            if planted != NOWHERE:
                self._plant(relaxation, planted, x)

    def _plant(self, relaxation: Relaxation, planted: str, x: Tensor) -> None:
        outputs: list[Tensor] = []
        layer, residual = self.teacher.get_submodule(planted), relaxation.residuals[planted]
        hook = layer.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
        for gamma in (0.0, 1.0):
            residual.set_gamma(gamma)
            self.teacher(x)
        hook.remove()
        strict, both = outputs
        residual.set_gamma(STRENGTH * float(strict.std() / (both - strict).std()))

    def _inputs(self, count: int) -> Tensor:
        return torch.randn(count, CHANNELS, 3, dtype=torch.float64, generator=self._draws)

    def draw(self, count: int) -> Batch:
        """Draw inputs (count, 4, 3), isotropic, and targets (count, 3, 3): of variance 1 where nothing is planted, plus noise."""
        x = self._inputs(count)
        with torch.no_grad():
            y = self.teacher(x) / self._scale
        return x, y + NOISE * torch.randn(y.shape, dtype=y.dtype, generator=self._draws)


def errors(model: nn.Module, batch: Batch) -> Tensor:
    """The mean squared error of every example, (batch,)."""
    x, y = batch
    return (model(x) - y).square().mean(dim=(1, 2))


def moments(steps: int, records: int) -> Iterator[int]:
    """The steps at which a course is recorded: the start, the end, and steps in between that are denser at the beginning."""
    yield from sorted({round(steps * (index / records) ** 2) for index in range(records + 1)})


def train_strict(planted: str, steps: int, seed: int = 0, records: int = 20) -> dict[str, Any]:
    """Train a strict network, and score it on held-out examples as it trains.

    Args:
        planted: One of `PLANTED`.
        steps: Number of optimizer steps.
        seed: Seed of the targets, examples and initial weights.
        records: How often it is scored after the start.

    Returns:
        {"planted", "step", "loss" (held out), "ratio" (over all layers), "ratios" (key -> r), lists over moments; "score", the
        last score as plain data}.
    """
    examples = Examples(planted, seed)
    held_out = examples.draw(HELD_OUT)
    with seeded(seed + 1):
        model = Branches().double()
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    kept = set(moments(steps, records))
    course: dict[str, Any] = {"planted": planted, "step": [], "loss": [], "ratio": [], "ratios": {}}
    for step in range(steps + 1):
        if step in kept:
            score = symmetry_score(model, held_out, errors)
            with torch.no_grad():
                course["loss"].append(errors(model, held_out).mean().item())
            course["step"].append(step)
            course["ratio"].append(score.whole.ratio)
            for key, ratio in score.ratios.items():
                course["ratios"].setdefault(key, []).append(ratio)
        if step < steps:
            _step(model, optimizer, examples, None)
    return {**course, "score": score.to_dict()}  # the last of `kept` is the last step


def train_following(planted: str, steps: int, seed: int = 0) -> dict[str, Any]:
    """Train a relaxed network whose gammas follow the score (`equirelax.methods.SymmetryFollowing`, settings `FOLLOWING`).

    Args:
        planted, steps, seed: As for `train_strict`, with the same examples.

    Returns:
        {"planted", "step", "gammas" (key -> gamma), lists over the start and the measurements; "loss" and "loss_strict", the
        held-out losses at the end, as deployed and with all gamma 0}.
    """
    examples = Examples(planted, seed)
    held_out = examples.draw(HELD_OUT)
    with seeded(seed + 1):
        model = Branches().double()
        relaxation = relax(model, residual=Dense())
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    method = SymmetryFollowing(
        relaxation, lambda relaxation: symmetry_score(relaxation.model, held_out, errors), FOLLOWING
    ).attach(optimizer)
    course: dict[str, Any] = {"planted": planted, "step": [], "gammas": {key: [] for key in method.paths}}
    for step in range(steps + 1):
        if step % method.settings.measure_every == 0:
            course["step"].append(step)
            for key, residual in relaxation:
                course["gammas"][key].append(float(residual.gamma))
        if step < steps:
            _step(model, optimizer, examples, method)
    with torch.no_grad():
        course["loss"] = errors(model, held_out).mean().item()
        with relaxation.strict():
            course["loss_strict"] = errors(model, held_out).mean().item()
    return course


def _step(
    model: nn.Module, optimizer: torch.optim.Optimizer, examples: Examples, method: SymmetryFollowing | None
) -> None:
    loss = errors(model, examples.draw(BATCH)).mean()
    (loss if method is None else loss + method.penalty()).backward()
    optimizer.step()
    optimizer.zero_grad()


def run_planted(steps: int = 1000, seeds: Sequence[int] = (0,)) -> dict[str, Any]:
    """Plant an asymmetry at every layer in turn, and at none (`FOLLOWED`: where gammas follow); the same numbers on every call.

    Args:
        steps: Number of optimizer steps of every network.
        seeds: Seeds of the targets, examples and initial weights; everything is repeated for each.

    Returns:
        {"settings": {...}, "strict": [see `train_strict`], "following": [see `train_following`]}, runs with their "seed".
    """
    settings = {
        **{"steps": steps, "seeds": list(seeds), "batch": BATCH, "held_out": HELD_OUT, "learning_rate": RATE},
        **{"noise": NOISE, "strength": STRENGTH, "following": dataclasses.asdict(FOLLOWING)},
    }
    return {
        "settings": settings,
        "strict": [
            {"seed": seed, **train_strict(planted, steps, seed)} for seed in seeds for planted in PLANTED
        ],
        "following": [
            {"seed": seed, **train_following(planted, steps, seed)} for seed in seeds for planted in FOLLOWED
        ],
    }
