"""How each residual breaks the symmetry: against slow references, and for every kind of residual."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from equirelax_lab.models import EGNN, EGNO
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import equirelax as er
from equirelax.auditing.breaking import Breaking, breaking
from equirelax.errors import AuditError, NonFiniteError
from equirelax.relaxation import Dense, Layers, Linear, Relaxation, relax
from equirelax.relaxation.kinds import EquivariantDense
from equirelax.symmetry import SO, E, O, positions, trivial, vector

REP = 2 * vector(SO(3))


class Gated(nn.Module):
    """Two equivariant linear maps with norm gates, (rows, 6) -> (rows, 6); `share` calls the first one twice."""

    def __init__(self, share: bool = False) -> None:
        super().__init__()
        self.mixes = nn.ModuleList(nn.Linear(6, 6, bias=False) for _ in range(2))
        self.share = share
        with torch.no_grad():
            for mix in self.mixes:
                mix.weight.copy_(torch.kron(torch.randn(2, 2), torch.eye(3)))

    def forward(self, x: Tensor) -> Tensor:
        for mix in (*self.mixes, self.mixes[0]) if self.share else self.mixes:
            y = mix(x).unflatten(-1, (2, 3))
            x = (y / (1 + y.norm(dim=-1, keepdim=True))).flatten(-2)
        return x


def relaxed(seed: int = 0, kind: Any = None, share: bool = False) -> Relaxation:
    torch.manual_seed(seed)
    model = Gated(share).double()
    kind = kind or Dense(init="normal", std=0.5)
    relaxation = relax(model, Layers(residual=kind, declare=(Linear("Linear", REP, REP),)))
    for i, (_, residual) in enumerate(relaxation):
        residual.set_gamma(0.4 - 0.7 * i)
    return relaxation


def rows(seed: int = 1) -> Tensor:
    return torch.randn(7, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def both(relaxation: Relaxation, **settings: Any) -> tuple[Breaking, ...]:
    return breaking(relaxation, rows(), REP, REP, **settings)


@pytest.mark.parametrize("which", [0, 1])
def test_errors_agree_with_a_slow_reference(which: int) -> None:
    relaxation = relaxed()
    found = both(relaxation, samples=5, seed=3)[which]
    key = list(relaxation.residuals)[which]
    residual = relaxation[key]
    with torch.no_grad():
        relaxation.enable(False)
        seen: list[Tensor] = []
        handle = relaxation.model.mixes[which].register_forward_hook(
            lambda m, args, out: seen.extend((args[0], out))
        )
        relaxation.model(rows())
        handle.remove()
        x, strict = seen
        delta = residual.gamma * x @ residual.map.weight.T
        size = (strict + delta).norm()
        added = alone = 0.0
        residual.enabled = True
        for g in SO(3).sample(5, generator=torch.Generator().manual_seed(3), dtype=torch.float64):
            moved = residual.gamma * REP.apply(g, x) @ residual.map.weight.T
            added = max(added, float((REP.apply(g, delta) - moved).norm() / size))
            a, b = REP.apply(g, relaxation.model(rows())), relaxation.model(REP.apply(g, rows()))
            alone = max(alone, float((a - b).norm() / max(a.norm(), b.norm())))
    assert found.added == pytest.approx(added, rel=1e-10)
    assert found.alone == pytest.approx(alone, rel=1e-10)
    assert found.share == pytest.approx(float(delta.norm() / size), rel=1e-10)
    assert found.gamma == pytest.approx(0.4 - 0.7 * which)
    norm = float(torch.linalg.matrix_norm(residual.map.weight.detach(), 2))
    assert found.weight == pytest.approx(norm)
    assert found.size == pytest.approx(abs(0.4 - 0.7 * which) * norm)
    assert found.bound == pytest.approx(2 * found.size * float(x.norm() / size))
    assert (found.key, found.type, found.relaxes, found.reason) == (key, "Linear", "SO(3)", "")


def test_alone_is_what_an_audit_finds_with_the_others_off() -> None:
    relaxation = relaxed()
    found = both(relaxation, samples=6, seed=2)
    for key, one in zip(relaxation.residuals, found, strict=True):
        for other, residual in relaxation:
            residual.enabled = other == key
        report = er.audit(relaxation.model, rows(), REP, REP, samples=6, seed=2, lie=False, per_layer=False)
        assert one.alone == pytest.approx(report.relative, rel=1e-9)
        assert one.added > 0.05


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), layers=st.integers(0, 3))
def test_bounds_are_never_below_the_errors(seed: int, layers: int) -> None:
    kind = er.MLP(layers, hidden=4) if layers else Dense(init="normal", std=0.5)
    relaxation = relaxed(seed, kind)
    for _, residual in relaxation:
        for name, parameter in residual.map.named_parameters():
            with torch.no_grad():
                parameter.mul_(0.0 if name.endswith("bias") else 2.0)
    for one in breaking(relaxation, rows(seed), REP, REP, samples=6, seed=seed):
        assert one.bound is not None
        assert one.added is not None
        assert one.added <= one.bound * (1 + 1e-12)


def test_a_bound_is_reached_by_a_reversal_of_sign() -> None:
    """diag(1, -1) against a quarter turn: rho W = -W rho, twice the size of W x."""
    rep = vector(SO(2))
    model = nn.Sequential(nn.Linear(2, 2, bias=False)).double()
    nn.init.eye_(model[0].weight)
    relaxation = relax(model, Layers(declare=(Linear("0", rep, rep),)))
    with torch.no_grad():
        relaxation["0"].map.weight.copy_(torch.diag(torch.tensor([1.0, -1.0])))
    relaxation.set_gamma(0.3)
    found = breaking(relaxation, torch.randn(5, 2), rep, rep, samples=200)[0]
    assert found.added == pytest.approx(found.bound, rel=1e-3)


def test_equivariant_residuals_break_nothing_whatever_gamma_is() -> None:
    for one in both(relaxed(kind=EquivariantDense(init="normal", std=0.5))):
        assert one.size > 0.1
        assert one.share > 0.05
        assert one.added < 1e-12
        assert one.alone < 1e-12


def test_trading_gamma_for_weights_changes_gamma_alone() -> None:
    relaxation = relaxed()
    before = both(relaxation)
    for _, residual in relaxation:
        residual.set_gamma(float(residual.gamma) * 10)
        with torch.no_grad():
            residual.map.weight /= 10
    for old, new in zip(before, both(relaxation), strict=True):
        assert new.gamma == pytest.approx(10 * old.gamma)
        for name in ("size", "share", "added", "bound", "alone"):
            assert getattr(new, name) == pytest.approx(getattr(old, name), rel=1e-9), name


def test_the_model_is_given_back_as_it_was_also_after_an_error() -> None:
    relaxation = relaxed()
    model = relaxation.model.float().train()
    relaxation["mixes.1"].enabled = False
    before = {key: value.clone() for key, value in model.state_dict().items()}
    sites = {key: residual.site for key, residual in relaxation}
    hooks = {name: len(module._forward_hooks) for name, module in model.named_modules()}

    def check() -> None:
        assert model.training
        assert [residual.enabled for _, residual in relaxation] == [True, False]
        assert all(residual.site is sites[key] for key, residual in relaxation)
        assert {name: len(module._forward_hooks) for name, module in model.named_modules()} == hooks
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())

    found = both(relaxation)
    check()
    assert (found[1].added, found[1].share, found[1].bound) == (None, None, None)
    assert found[1].reason == "it did not run on this sample"
    assert found[1].alone < 1e-6
    with pytest.raises(NonFiniteError):
        breaking(relaxation, rows() * float("nan"), REP, REP)
    check()


def test_a_shared_module_is_measured_at_every_call() -> None:
    relaxation = relaxed(share=True)
    single = both(relaxed())[0]
    found = both(relaxation)[0]
    assert found.added >= single.added - 1e-9  # its first call is the same, the larger counts
    assert found.alone != pytest.approx(single.alone)


def test_a_function_that_calls_the_model_is_run_instead() -> None:
    relaxation = relaxed()
    found = breaking(
        relaxation, rows(), REP, None, model=lambda x: relaxation.model(x).square().sum(-1), samples=4
    )
    assert found[0].added == pytest.approx(both(relaxation, samples=4)[0].added)
    assert 0 < found[0].alone < 1


def test_mistakes() -> None:
    with pytest.raises(AuditError, match="samples=0"):
        both(relaxed(), samples=0)
    with pytest.raises(AuditError, match="no representation, and no group"):
        breaking(relaxed(), rows(), None, None)


def graph(nodes: int = 5) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    x, v = torch.randn(2, nodes, 3, generator=generator)
    h = torch.rand(nodes, 1, generator=generator)
    pairs = torch.cartesian_prod(torch.arange(nodes), torch.arange(nodes)).T
    return x, v, h, pairs[:, pairs[0] != pairs[1]]


def loosen(relaxation: Relaxation) -> Relaxation:
    torch.manual_seed(1)
    for parameter in relaxation.residual_parameters().values():
        nn.init.normal_(parameter, std=0.3)
    relaxation.set_gamma(0.5)
    return relaxation


def test_an_egnn_has_errors_for_every_slot_and_no_bounds() -> None:
    relaxation = loosen(relax(EGNN(8, 2), "egnn"))
    where, group = positions(E(3)), E(3)
    found = breaking(relaxation, graph(), (where, vector(group), None, None), where)
    assert [one.key for one in found] == ["layers.0:h", "layers.0:x", "layers.1:h", "layers.1:x"]
    assert all(one.bound is None and one.reason for one in found)
    assert all(one.added > 1e-3 and one.share > 1e-3 for one in found)
    # h of the last layer is read by nobody: its residual breaks the layer, and not the network
    assert [one.alone > 1e-3 for one in found] == [True, True, False, True]


@pytest.mark.parametrize("centred", [False, True])
def test_streams_of_an_egno(centred: bool) -> None:
    torch.manual_seed(0)
    model = EGNO(hidden=8, layers=2, in_features=1, edge_features=0)
    relaxation = loosen(relax(model, "egno-centred" if centred else "egno"))
    x, v, h, edges = graph()
    sample = {"positions": x, "velocities": v, "features": h, "edge_index": edges}
    if centred:
        sample["graph"] = torch.zeros(len(x), dtype=torch.long)
    group = E(3)
    reps = {"positions": positions(group), "velocities": vector(group)}
    found = {one.key: one for one in breaking(relaxation, sample, reps, positions(group))}
    assert len(found) == 4
    for key, one in found.items():
        assert "batch norm" in one.reason
        assert one.bound is None
        assert one.weight > 0
        assert one.share > 0
        if key.endswith(":h"):  # its inputs are invariant: it relaxes nothing
            assert one.added < 1e-6
            assert one.alone < 1e-6
        else:
            assert one.added > 1e-3
            assert one.alone > 1e-6


def test_the_slope_of_a_stream_is_that_of_its_jacobian() -> None:
    torch.manual_seed(0)
    relaxation = loosen(
        relax(EGNO(hidden=8, layers=3, in_features=1, edge_features=0).double(), "egno")
    ).model.eval()
    found = er.relaxation.relaxation_of(relaxation)
    point = torch.randn(1, 3, dtype=torch.float64)
    for key, residual in found:
        if key.endswith(":x"):
            residual.set_gamma(1.0)
            jacobian = torch.autograd.functional.jacobian(residual.delta, point).reshape(3, 3)
            expected = float(torch.linalg.matrix_norm(jacobian, 2))
            assert residual.slope().constant == pytest.approx(expected, rel=1e-9), key


def test_a_group_that_does_not_act_on_what_is_added() -> None:
    """A site of O(3) representations under a group of another dimension has no error of its own."""
    relaxation = relaxed()
    changed: Callable[[Any], Any] = lambda site: dataclasses.replace(site, out_rep=trivial(O(2), 6))  # noqa: E731
    for _, residual in relaxation:
        residual.site = changed(residual.site)
    for one in both(relaxation):
        assert one.added is None
        assert one.alone > 0
