"""Relaxed networks under `torch.func.vmap`: every member of a stack computes, and differentiates, what it does alone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import nullcontext

import pytest
import torch
from equirelax_lab import models
from equirelax_lab.models.fast import by_hand
from equirelax_lab.placements import EGNOStreams
from model_inputs import batch_graphs, bodies, full_graph
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

import equirelax as er
from equirelax.methods import Method
from equirelax.relaxation import Relaxation
from equirelax.relaxation.kinds import MLP, Grouped, LowRank, ResidualKind

MEMBERS, GRAPHS, NODES = 3, 2, 4
TOLERANCE = 1e-12
Inputs = tuple[Tensor, ...]


def graphs() -> tuple[Tensor, Tensor]:
    return batch_graphs(full_graph(NODES), NODES, GRAPHS), torch.arange(GRAPHS).repeat_interleave(NODES)


def segnn_inputs(generator: torch.Generator) -> Inputs:
    return (*bodies(generator, GRAPHS * NODES), graphs()[0])


def egno_inputs(generator: torch.Generator) -> Inputs:
    positions, velocities, charges = bodies(generator, GRAPHS * NODES)
    edges, graph = graphs()
    distances = (positions[edges[0]] - positions[edges[1]]).square().sum(1, keepdim=True)
    return (
        positions,
        velocities,
        torch.cat([charges, velocities.norm(dim=1, keepdim=True)], 1),
        edges,
        distances,
        graph,
    )


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[torch.Generator], Inputs]]] = {
    "SEGNN": (lambda: models.SEGNN(hidden=8, layers=2), segnn_inputs),
    "EGNO": (
        lambda: models.EGNO(8, 2, in_features=2, edge_features=1, steps=3, time_features=4),
        egno_inputs,
    ),
    "VNPointNet": (
        lambda: models.VNPointNet(classes=5, neighbours=4, width=0.125, dropout=0.0),
        lambda generator: (torch.randn(8, 12, 3, generator=generator),),
    ),
    "EGNN": (lambda: models.EGNN(8, 2), segnn_inputs),
}
METHODS: dict[str, Callable[[Relaxation], Method]] = {
    "ACE": lambda relaxation: er.ACE(relaxation, dual_lr=0.1, augmented=0.2),
    "CR": lambda relaxation: er.Scheduled(relaxation, total_steps=9),
    "CR, means": lambda relaxation: er.Scheduled(relaxation, total_steps=9, scaling="mean"),
    "swing": lambda relaxation: er.Swing(relaxation, period=9),
    "resilient": lambda relaxation: er.ResilientACE(relaxation, dual_lr=0.1, primal_lr=0.1),
}
KINDS: dict[str, ResidualKind | None] = {
    "": None,
    "MLP": MLP(),
    "low rank": LowRank(rank=2),
    "grouped": Grouped(groups=2),
}
FAST = {("SEGNN", "CR", ""), ("EGNO", "resilient", "")}
CASES = [
    *((network, method, "") for network in NETWORKS for method in ("strict", *METHODS) if network != "EGNN"),
    *(("SEGNN", "CR", kind) for kind in KINDS if kind),
    ("EGNN", "strict", ""),
]


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


class Member(nn.Module):
    """The loss and the penalty of one batch."""

    def __init__(self, model: nn.Module, method: Method | None) -> None:
        super().__init__()
        self.model, self.method = model, method

    def forward(self, vectors: dict[str, Tensor], *inputs: Tensor) -> tuple[Tensor, Tensor]:
        with nullcontext() if self.method is None else self.method.mapped(vectors):
            out = self.model(*inputs)
            loss = (out.square() * torch.linspace(1, 2, out.numel()).view_as(out)).sum()
            return loss, loss.new_zeros(()) if self.method is None else self.method.penalty()


def member(network: str, method: str, kind: str, seed: int) -> Member:
    """Weights, strengths and vectors are its own."""
    torch.manual_seed(seed)
    model = NETWORKS[network][0]()
    if method == "strict":
        return Member(model, None).train()
    if network == "EGNO":
        relaxation = er.relax(model, EGNOStreams())
    else:
        relaxation = er.relax(model, residual=KINDS[kind])
    made = METHODS[method](relaxation)
    with torch.no_grad():
        for parameter in relaxation.residual_parameters().values():
            parameter.normal_(std=0.1)
        for residual in relaxation.residuals.values():
            residual.gamma.normal_()
        for vector in made.state_vectors().values():
            vector.uniform_()
    return Member(model, made).train()


@pytest.mark.parametrize("inside", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("network", "method", "kind"),
    [pytest.param(*case, marks=() if case in FAST else pytest.mark.slow) for case in CASES],
)
def test_every_member_is_as_alone(network: str, method: str, kind: str, inside: bool) -> None:
    """Losses, penalties, gradients, and the running statistics of batch norms, with gradients taken outside or inside."""
    stacked = [member(network, method, kind, seed) for seed in range(MEMBERS)]
    alone = copy.deepcopy(stacked)
    inputs = [NETWORKS[network][1](torch.Generator().manual_seed(k)) for k in range(MEMBERS)]
    parameters, buffers = stack_module_state(stacked)
    states = [{} if m.method is None else m.method.state_vectors() for m in stacked]
    vectors = {name: torch.stack([state[name] for state in states]) for name in states[0]}
    batches = [torch.stack(each) for each in zip(*inputs, strict=True)]

    def terms(p: dict[str, Tensor], *rest: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        b, v, *x = rest
        loss, penalty = functional_call(stacked[0], (p, b), (v, *x))
        return loss + penalty, (loss, penalty)

    if inside:
        plain = {key: p.detach() for key, p in parameters.items()}
        slopes, (losses, penalties) = torch.vmap(torch.func.grad(terms, has_aux=True))(
            plain, buffers, vectors, *batches
        )
    else:
        totals, (losses, penalties) = torch.vmap(terms)(parameters, buffers, vectors, *batches)
        totals.sum().backward()
        slopes = {key: torch.zeros_like(p) if p.grad is None else p.grad for key, p in parameters.items()}
    for k, one in enumerate(alone):
        loss, penalty = one(states[k], *inputs[k])
        torch.testing.assert_close(losses[k], loss, rtol=TOLERANCE, atol=0)
        torch.testing.assert_close(penalties[k], penalty, rtol=TOLERANCE, atol=0)
        (loss + penalty).backward()
        found = {key: p.grad for key, p in one.named_parameters() if p.grad is not None and p.numel()}
        largest = max(float(gradient.abs().max()) for gradient in found.values())
        for key, gradient in found.items():
            torch.testing.assert_close(slopes[key][k], gradient, rtol=0, atol=TOLERANCE * largest, msg=key)
        for key, buffer in one.named_buffers():
            torch.testing.assert_close(buffers[key][k], buffer, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["strict", "CR"])
def test_ordinary_operations_as_on_a_gpu(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """There all members are computed at once, and none of them by hand."""
    monkeypatch.setattr(by_hand, "may_map_hand_written", lambda module, x: False)
    test_every_member_is_as_alone("SEGNN", method, "", False)
