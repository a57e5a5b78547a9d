"""SymmetryFollowing: the rule, its dead zone, and that it tells the layer whose data break the symmetry."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest
import torch
from method_toys import batch, chain
from torch import Tensor, nn

import equirelax as er
from equirelax.errors import MethodError
from equirelax.relaxation import Relaxation


@dataclass
class Given:
    """A score with these ratios."""

    ratios: dict[str, float] = field(default_factory=dict)
    examples: int = 100


def course(score: Given, steps: int, **settings: object) -> list[list[float]]:
    relaxation = chain(2)
    optimizer = torch.optim.SGD(relaxation.model.parameters(), lr=1e-3)
    method = er.methods.SymmetryFollowing(relaxation, lambda _: score, **settings).attach(optimizer)  # type: ignore[arg-type]
    x, y = batch()
    found = []
    for _ in range(steps):
        found.append(relaxation.gammas().tolist())
        ((relaxation.model(x) - y).square().mean() + method.penalty()).backward()
        optimizer.step()
    return found


def test_in_the_dead_zone_gamma_decays_and_ends_at_exactly_0() -> None:
    score = Given({"mixes.0": 0.04, "mixes.1": -0.01})
    found = course(score, 12, measure_every=1, rate=0.5, dead_zone=4.0, threshold=0.01)
    for step, strengths in enumerate(found):
        value = 0.5**step
        assert strengths == [value if value >= 0.01 else 0.0] * 2


def test_gamma_goes_where_the_ratio_says_and_changes_at_every_kth_step_alone() -> None:
    score = Given({"mixes.0": 1.0, "mixes.1": 0.28})
    found = course(score, 60, measure_every=2, rate=0.5, dead_zone=4.0, largest=0.8, initial=0.0)
    assert found[0] == found[1] == [0.0, 0.0]
    assert found[2] == found[3] == pytest.approx([0.4, 0.1])
    assert found[-1] == pytest.approx([0.8, 0.2])


def test_a_residual_that_is_not_scored_counts_as_symmetric() -> None:
    found = course(Given({"mixes.1": 0.5}), 30, measure_every=1, rate=0.5)
    assert found[-1][0] == 0.0
    assert found[-1][1] > 0.4


def test_what_is_no_score_and_too_few_examples_are_refused() -> None:
    with pytest.raises(MethodError, match="measure"):
        er.methods.SymmetryFollowing(chain(2), Given())  # type: ignore[arg-type]
    with pytest.raises(MethodError, match="measure"):
        er.methods.SymmetryFollowing(chain(2))
    for wrong in (Given({"around.mixes.0": 0.5}), Given({"mixes.0": math.nan})):
        with pytest.raises(MethodError, match="mixes"):
            course(wrong, 2, measure_every=1)
    with pytest.raises(MethodError, match="examples"):
        course(Given(examples=0), 2, measure_every=1)
    with pytest.raises(MethodError, match="examples"):
        course(Given(examples=4), 2, measure_every=1)
    with pytest.raises(MethodError, match="measure"):
        course({"mixes.0": 1.0}, 2, measure_every=1)  # type: ignore[arg-type]
    for settings in (
        {"measure_every": 0},
        {"rate": 0.0},
        {"rate": 1.1},
        {"dead_zone": -1.0},
        {"largest": math.inf},
    ):
        with pytest.raises(MethodError, match=next(iter(settings))):
            er.methods.SymmetryFollowing(chain(2), lambda _: Given(), **settings)  # type: ignore[arg-type]


class TwoTasks(nn.Module):
    """Two linear maps of vectors, each with targets of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.fair, self.bent = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        for layer in (self.fair, self.bent):
            nn.init.eye_(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.fair(x), self.bent(x)], dim=1)


def test_it_finds_the_layer_whose_task_breaks_the_symmetry() -> None:
    """The targets of one layer are stretched along z: it stays relaxed, and the other becomes strict."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4 * 128, 3, generator=generator)
    y = torch.cat([x, x * torch.tensor([1.0, 1.0, 1.6])], dim=1)
    y = y + 0.1 * torch.randn(y.shape, generator=generator)
    model = TwoTasks()
    relaxation = er.relax(model, er.Layers(declare=(er.Linear("Linear", "1x1o", "1x1o"),)))

    def measure(found: Relaxation) -> er.auditing.SymmetryScore:
        held_out = (x[:128], y[:128])
        return er.symmetry_score(found.model, held_out, lambda m, b: (m(b[0]) - b[1]).square().sum(1))

    optimizer = torch.optim.SGD(
        [p for p in relaxation.residual_parameters().values()], lr=0.1
    )  # the strict maps are the best equivariant ones but for a factor
    method = er.methods.SymmetryFollowing(relaxation, measure, measure_every=1, rate=0.3).attach(optimizer)
    for step in range(40):
        rows = slice(128 * (1 + step % 3), 128 * (2 + step % 3))
        loss = (model(x[rows]) - y[rows]).square().sum(1).mean() + method.penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    gammas = dict(zip(relaxation.residuals, relaxation.gammas().tolist(), strict=True))
    assert gammas["fair"] == 0.0
    assert gammas["bent"] > 0.05
    assert method.logs()["bent"]["ratio"] > 0.05
