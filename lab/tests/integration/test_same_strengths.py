"""Micro-batches, bfloat16 and compilation give the strengths, multipliers and penalties of plain training."""

from __future__ import annotations

import pytest
import torch
from runtime_networks import CASES, STEPS, Run, run
from test_runtime import METHODS
from tolerances import BFLOAT16, BFLOAT16_WEIGHTS, COMPILED, ROUNDING
from torch import Tensor

import equirelax as er


def near(found: Run, expected: Run, tolerance: float, weights: float | None = None) -> None:
    """Compare every number within one tolerance, and the weights within another."""
    ours, theirs = found.numbers(), expected.numbers()
    assert ours.keys() == theirs.keys()
    assert len(expected.penalties) == STEPS
    for name, value in theirs.items():
        _near(ours[name], value, tolerance, name)
    for (name, p), q in zip(expected.model.named_parameters(), found.model.parameters(), strict=True):
        _near(q.detach(), p.detach(), tolerance if weights is None else weights, name)


def _near(found: Tensor, expected: Tensor, tolerance: float, name: str) -> None:
    error = float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-30))
    assert error <= tolerance, f"{name}: {error:.1e}"


@pytest.mark.parametrize("parts", [4, 3])
@pytest.mark.parametrize(("network", "method"), CASES)
def test_micro_batches_are_one_batch(network: str, method: str, parts: int) -> None:
    """Also where they differ in size: 8 samples in 3 parts."""
    near(run(network, method, parts=parts), run(network, method), ROUNDING)


@pytest.mark.parametrize("residual", [er.LowRank(2, "default"), er.MLP(2)])
def test_micro_batches_are_one_batch_for_every_kind_of_residual(residual) -> None:
    plain = run("vector neurons", "scheduled", residual=residual)
    near(run("vector neurons", "scheduled", parts=4, residual=residual), plain, ROUNDING)
    assert plain.numbers()["penalty"].min() > 0


def test_penalties_of_single_micro_batches_would_be_others() -> None:
    """The roots of parts do not add up to the root of the whole: sums are added before the root."""
    whole = run("vector neurons", "scheduled")
    relaxation = whole.method.relaxation
    relaxation.set_gamma(0.5)
    x = torch.randn(8, 2, 3, dtype=torch.float64)
    penalty = whole.method.regularizer
    assert penalty is not None
    penalty.forget()
    singles = []
    for part in x.chunk(4):
        whole.model(part)
        singles.append(float(penalty().detach()))
    whole.model(x)
    assert sum(singles) > 1.5 * float(penalty().detach())


@pytest.mark.parametrize("network", ["vector neurons", "declared"])
@pytest.mark.parametrize("method", METHODS)
def test_bfloat16_is_near(method: str, network: str) -> None:
    plain = run(network, method, dtype=torch.float32)
    cast = run(network, method, dtype=torch.float32, autocast=True)
    near(cast, plain, BFLOAT16, BFLOAT16_WEIGHTS)
    assert cast.penalties != plain.penalties or not any(plain.penalties)  # it was cast
    assert all(p.dtype == torch.float32 for p in cast.model.parameters())


def test_e3nn_itself_refuses_bfloat16() -> None:
    """Its products are `tensordot`s, which autocast does not cast; the residuals have no part in it."""
    from e3nn import o3

    layer = o3.Linear("2x0e", "2x0e")
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(RuntimeError, match="same dtype"):
        layer(layer(torch.randn(3, 2)).bfloat16())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(("network", "method"), CASES)
def test_compiled_is_near(network: str, method: str) -> None:
    torch.compiler.reset()
    # GradNorm runs backward passes twice; the compiler's cache may hold them compiled for one call.
    with torch._functorch.config.patch(donated_buffer=method != "remul"):
        compiled = run(network, method, dtype=torch.float32, compiled=True)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    near(compiled, run(network, method, dtype=torch.float32), COMPILED)
