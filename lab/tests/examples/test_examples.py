"""The examples: other people's networks relaxed, trained a few steps, projected and audited, none edited."""

from __future__ import annotations

import contextlib
import copy
import io
import pickle
import re

import pytest
import torch
from other_networks import EXAMPLES, example
from real_data import SAMPLES
from torch import nn
from undisturbed import undisturbed

import equirelax as er
from equirelax.auditing import AuditReport

torch.set_num_threads(1)

Result = tuple[nn.Module, AuditReport, AuditReport]
# name of the example, package, number of residuals, group, part of the first module that breaks while relaxed
CASES = {
    "nequip_rmd17": ("nequip", "E(3)", "conv.tp_scatter.tp"),
    "equiformer_rmd17": ("equiformer_pytorch", "SE(3)", "tp_in.to_out"),
    "egnn_rmd17": ("egnn_pytorch", "E(3)", "layers.0.1"),
}

QUICK = ("egnn_rmd17",)


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in CASES],
)
def ran(request: pytest.FixtureRequest) -> tuple[str, Result, str]:
    """One example, run for four steps: its name, what it returned and what it printed."""
    printed = io.StringIO()
    with undisturbed(), contextlib.redirect_stdout(printed), pytest.MonkeyPatch.context() as patch:
        patch.setenv("EQUIRELAX_DATA", str(SAMPLES))
        torch.manual_seed(0)
        result = example(request.param, CASES[request.param][0]).main(steps=4)
    return request.param, result, printed.getvalue()


def test_projected_it_is_exactly_equivariant(ran: tuple[str, Result, str]) -> None:
    name, (network, relaxed, projected), _ = ran
    _, group, broken = CASES[name]
    assert (relaxed.group, projected.group) == (group, group)
    assert projected.relative < 1e-9
    assert relaxed.after is not None
    assert relaxed.after.relative < 1e-9 < 1e-3 < relaxed.relative
    assert relaxed.first_break is not None
    assert relaxed.first_break.endswith(broken)
    assert not any("equirelax" in key for key in network.state_dict())
    assert not any(type(module).__module__.startswith("equirelax") for module in network.modules())


def test_it_prints_a_small_table(ran: tuple[str, Result, str]) -> None:
    lines = [line for line in ran[2].splitlines() if not line.startswith("compute")]
    assert [line.split()[0] for line in lines[:3]] == ["group", "relaxed", "projected"]
    assert lines[2].endswith("none")
    (result,) = lines[3:]
    after, before, last, first = map(
        float, re.findall(r"\d[\d.]*(?:e[+-]\d+)?(?= instead|; loss| after 4| at)", result)
    )
    assert after < 1e-9 < 1e-3 < before
    assert 0 < last <= first


def test_copies_of_a_relaxed_network(ran: tuple[str, Result, str]) -> None:
    """deepcopy and pickle carry the relaxation where the network itself can be copied; all three can."""
    _, (network, _, _), _ = ran
    relaxation = er.relax(network)
    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert list(er.relaxation_of(twin).residuals) == list(relaxation.residuals)
    er.project(network)


def test_examples_are_short() -> None:
    for path in EXAMPLES.glob("*.py"):
        assert len(path.read_text().splitlines()) <= 75, f"{path.name} is too long for an example"
