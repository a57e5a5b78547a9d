"""Outputs that are 0, exactly or but for rounding: they pass, a note names them, and nothing else passes with them."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from equirelax.auditing import audit
from equirelax.symmetry import SO, Cyclic, vector
from equirelax.testing import assert_equivariant

torch.set_num_threads(1)
ENDS = {"forces": "1x1o", "total": "1x1o"}


class Pairs(nn.Module):
    """Forces between pairs of points, and their total, which is 0."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        apart = x[:, None] - x[None]
        near = (1 + apart.square().sum(-1, keepdim=True)) ** -2
        forces = (near * apart).sum(1)
        return {"forces": forces, "total": forces.sum(0)}


def points(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(6, 3, dtype=dtype, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_total_that_cancels_is_no_break(dtype: torch.dtype) -> None:
    report = audit(Pairs(), points(), "1x1o", ENDS, samples=4, dtype=dtype)
    assert report.equivariant
    assert report.before.vanishing == ("output.total",)
    assert report.before.outputs["output.total"] == 0
    assert 0 < report.before.absolute < 1e-5
    assert report.lie.relative < report.tolerance
    assert all(row.status == "ok" for row in report.layers)
    assert any("output.total is 0" in note for note in report.notes)


def test_the_only_output_may_vanish() -> None:
    report = audit(lambda x: (x - x.mean(0)).sum(0), points(), "1x1o", "1x1o", samples=4)
    assert (report.relative, report.lie) == (0, None)
    assert report.equivariant


@pytest.mark.parametrize(
    "broken",
    [
        lambda x: 1e-14 * x.abs(),  # small, and not rounding
        lambda x: (x - x.mean(0)).sum(0) + 1e-10 * x[0].abs(),  # larger than rounding
        lambda x: (x - x.mean(0)).sum(0) + x[0].clamp(min=2.0) - 2.0,  # 0 on the sample alone
    ],
    ids=["small", "above rounding", "elsewhere"],
)
def test_what_is_small_is_measured_all_the_same(broken: Callable[[Tensor], Tensor]) -> None:
    x = points()
    x[0] = torch.tensor([1.9, 1.9, 1.9], dtype=torch.float64)
    report = audit(broken, x, "1x1o", "1x1o", samples=8, per_layer=False)
    assert report.before.vanishing == ()
    assert not report.equivariant


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_rounding_excuses_no_error_that_is_larger(dtype: torch.dtype) -> None:
    """In half precision, and of a short distance far from the origin, rounding alone changes an output by some per cent."""

    def network(x: Tensor) -> dict[str, Tensor]:
        return {"energy": -1000 - x.square().sum(), "forces": x * x.new_tensor([1.0, -2.0, 0.5])}

    report = audit(network, points(), "1x1o", {"forces": "1x1o"}, samples=4, dtype=dtype, per_layer=False)
    assert not report.equivariant
    assert report.before.vanishing == ()

    far = torch.tensor([[300.0, 0.0, 0.0], [300.002, 0.001, -0.001]])
    report = audit(lambda x: (x[1] - x[0]).abs(), far, "1x1o", "1x1o", samples=4, dtype=dtype, lie=False)
    assert not report.equivariant


def test_a_model_that_takes_the_sample_alone_is_measured() -> None:
    edge = torch.tensor([[1.0, 0.0], [0.0, 1.0]])

    def bounded(x: Tensor) -> Tensor:
        assert bool((x.abs() <= 1).all())
        return 0 * x

    turns = vector(Cyclic(4))
    assert audit(bounded, edge, turns, turns, samples=2).equivariant
    report = audit(lambda x: (1 - x.square().amax()).sqrt(), edge, turns, None, samples=2)
    assert report.equivariant


def test_an_assertion_that_shows_nothing_warns() -> None:
    with pytest.warns(UserWarning, match="returns 0"):
        assert_equivariant(lambda x: 0 * x, points(), "1x1o", "1x1o")
    with pytest.warns(UserWarning, match="returns 0"):
        assert_equivariant(lambda x: (x - x.mean(0)).sum(0), points(), "1x1o", "1x1o")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_equivariant(Pairs(), points(), "1x1o", ENDS)


def test_the_lie_derivative_is_relative_to_each_output() -> None:
    """A large energy beside it does not hide that the forces break a connected group, and no other component is accused."""
    bent = torch.tensor([[0.3, -0.5, 0.1], [0.2, 0.4, -0.3], [-0.6, 0.1, 0.5]], dtype=torch.float64)

    def network(x: Tensor) -> dict[str, Tensor]:
        return {"forces": x + 0.1 * torch.tanh(x @ bent), "energy": x.new_full((), -1e8)}

    report = audit(network, points(), "1x1o", {"forces": "1x1o"}, SO(3), samples=4, per_layer=False)
    assert report.lie.relative > 1e-3
    assert not any("Lie derivative vanishes" in note for note in report.notes)
