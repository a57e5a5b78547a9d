"""The memory that a summary states is what a training step is seen to hold."""

from __future__ import annotations

from typing import Any

import pytest
import stream_toys
import torch
from equirelax_lab.models import GroupConv2d
from equirelax_lab.models.vector_neurons import VNLinear
from torch import Tensor, nn

import equirelax as er
from equirelax.relaxation.columns import dense
from equirelax.relaxation.kinds import low_rank
from equirelax.relaxation.summary import readable
from equirelax.relaxation.terms.linear import second_moment
from equirelax.symmetry import Cyclic, trivial

KINDS: dict[str, er.relaxation.ResidualKind] = {
    "dense": er.Dense("default"),
    "biased": er.Dense("default", bias=True),
    "low rank": er.LowRank(2),
    "perceptron": er.MLP(2),
}


class Two(nn.Module):
    """Two vector layers with an odd number of channels between them, and a parameter that is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = VNLinear(4, 7), VNLinear(7, 2)
        self.scale = nn.Parameter(torch.ones(5), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.scale[0] * self.last(y * torch.sigmoid(y.norm(dim=2, keepdim=True)))


def held(tensors: Any) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("learnt", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_weights_gradients_and_moments(kind: str, learnt: bool, dtype: torch.dtype) -> None:
    model = Two().to(dtype)
    own = held(model.parameters())
    relaxation = er.relax(model, residual=KINDS[kind])
    method = er.ACE(relaxation, dual_lr=0.1) if learnt else er.Scheduled(relaxation, total_steps=5)
    memory = relaxation.summary().memory
    relaxation.set_gamma(0.5)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    ((model(torch.randn(5, 4, 3, 7, dtype=dtype)) - 1).square().sum() + method.penalty()).backward()
    optimizer.step()
    assert memory.strict == own
    assert memory.residual == held(
        p for name, p in model.state_dict().items() if "residual" in name and p.is_floating_point()
    )
    assert memory.gradients == held(p.grad for p in model.parameters() if p.grad is not None)
    moments = [t for state in optimizer.state.values() for key, t in state.items() if key != "step"]
    assert memory.optimizer == held(moments)
    assert memory.training == memory.strict + memory.residual + 3 * memory.trained
    assert str(memory) in str(relaxation.summary())


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_penalty_keeps_and_makes(kind: str) -> None:
    model = Two()
    relaxation = er.relax(model, residual=KINDS[kind])
    memory = relaxation.summary().memory
    penalty = er.relaxation.regularizers.LieDerivative(relaxation)
    rows = 5 * 30
    model(torch.randn(5, 4, 3, 30))
    kept = {key: [dense(x) for x in residual.take_inputs()] for key, residual in penalty.relaxation}
    assert memory.input_row * rows == held(x for inputs in kept.values() for x in inputs)
    assert memory.gram == sum(gram(residual, kept[key]) for key, residual in relaxation)
    assert (memory.gram == 0) == (kind == "perceptron")


def gram(residual: er.relaxation.Residual, inputs: list[Tensor]) -> int:
    """Bytes of what the penalty makes of the inputs, made here."""
    if not residual.is_linear:
        return 0
    map_ = residual.linear_map
    if isinstance(map_, low_rank.LowRankMap):
        moved = low_rank._moved(map_.down, residual.in_rep)
        return held([low_rank._representatives(moved, inputs, -2)])
    bias = map_.effective_bias() is not None
    moment = second_moment(inputs, -2, torch.float32, residual.in_rep.dim, bias)
    assert isinstance(moment, er.relaxation.terms.linear.Moment)
    return held([moment.dense()])


def test_low_rank_takes_a_fraction() -> None:
    found = {}
    for name, kind in {
        "dense": er.Dense(),
        "low rank": er.LowRank(8),
    }.items():
        model = nn.Sequential(VNLinear(64, 64), VNLinear(64, 64))
        found[name] = er.relax(model, residual=kind).summary().memory
    whole = found["dense"]
    assert whole.residual == 2 * (4 * 192**2 + 4)
    assert found["low rank"].residual == 2 * (4 * 8 * 384 + 4)


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (1_234_567, "1.23 MB"), (5 * 10**12, "5e+03 GB")],
)
def test_bytes_in_words(count: int, words: str) -> None:
    assert readable(count) == words


def test_streams_keep_one_input_and_convolutions_none() -> None:
    _, relaxation = stream_toys.relaxed()
    relaxation.model.train()
    penalty = er.relaxation.regularizers.LieDerivative(relaxation)
    _, pos = stream_toys.atoms(n=9)
    relaxation.model(*stream_toys.atoms(n=9))
    kept = {x.data_ptr(): x for _, residual in penalty.relaxation for x in map(dense, residual.take_inputs())}
    assert len(kept) == 1 < len(relaxation)
    assert relaxation.summary().memory.input_row * len(pos) == held(kept.values())
    plane = GroupConv2d(4 * trivial(Cyclic(4)), 4 * trivial(Cyclic(4)), 3)
    memory = er.relax(plane).summary().memory
    assert memory.input_row == memory.gram == 0
