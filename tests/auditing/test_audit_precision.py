"""Networks that run in float32 only."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from equirelax.auditing import audit
from equirelax.errors import AuditError
from equirelax.symmetry import O, On, vector
from equirelax.testing import assert_equivariant

torch.set_num_threads(1)
ALONG = On(vector(O(3)), -2)


class CastsInside(nn.Module):
    """As the official Equiformer and escnn's GroupPooling: something inside is float32 whatever the weights are."""

    def __init__(self, bias: bool = False) -> None:
        super().__init__()
        self.map = nn.Linear(4, 3, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return torch.eye(3, dtype=torch.float32) @ self.map(x)


def test_a_float32_network_is_taken_as_it_is() -> None:
    """It does not end in torch's own dtype error."""
    x = torch.randn(5, 3, 4)
    report = audit(CastsInside(), x, ALONG, ALONG, samples=4)
    assert report.equivariant
    assert (report.dtype, report.tolerance) == ("float32", 1e-5)
    assert any("float32" in note and "RuntimeError" in note for note in report.notes)
    broken = audit(CastsInside(bias=True), x, ALONG, ALONG, samples=4)
    assert not broken.equivariant
    assert broken.first_break == "map"
    assert assert_equivariant(CastsInside(), x, ALONG, ALONG).equivariant


def test_a_given_dtype_in_which_the_model_fails_is_refused() -> None:
    x = torch.randn(5, 3, 4)
    with pytest.raises(AuditError, match=r"dtype=torch\.float32"):
        audit(CastsInside(), x, ALONG, ALONG, dtype=torch.float64)
    assert audit(CastsInside(), x, ALONG, ALONG, dtype=torch.float32, samples=2).notes == ()


def test_an_error_of_the_models_own_stays_its_own() -> None:
    def wrong(x: Tensor) -> Tensor:
        raise ValueError("no such thing")

    with pytest.raises(ValueError, match="no such thing"):
        audit(wrong, torch.randn(2, 3), "1x1o", "1x1o")
    for dtype in (torch.float64, torch.float32):
        with pytest.raises(ValueError, match="no such thing"):
            audit(wrong, torch.randn(2, 3), "1x1o", "1x1o", dtype=dtype)


def test_a_float64_model_runs_in_float64() -> None:
    report = audit(nn.Linear(4, 3, bias=False).double(), torch.randn(5, 3, 4), ALONG, ALONG, samples=2)
    assert (report.dtype, report.notes) == ("float64", ())


def test_a_function_that_calls_a_float32_module() -> None:
    linear = nn.Linear(4, 3, bias=False)
    report = audit(lambda x: linear(x), torch.randn(5, 3, 4), ALONG, ALONG, samples=2)
    assert report.equivariant
    assert any("not cast" in note for note in report.notes)
