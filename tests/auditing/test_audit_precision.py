"""Networks that run in float32 only."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from equirelax.auditing import audit, label_free
from equirelax.auditing.samples import Function
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


def _calls(linear: nn.Module) -> dict[str, Any]:
    holder = SimpleNamespace(linear=linear)
    return {
        "closure": lambda x: linear(x),
        "partial": functools.partial(lambda module, x: module(x), linear),
        "bound method": linear.forward,
        "out of reach": lambda x: holder.linear(x),
    }


@pytest.mark.parametrize("how", list(_calls(nn.Identity())))
def test_a_function_that_calls_a_float32_module(how: str) -> None:
    linear = nn.Linear(4, 3, bias=False)
    report = audit(_calls(linear)[how], torch.randn(5, 3, 4), ALONG, ALONG, samples=2)
    assert report.equivariant
    assert report.dtype == ("float32" if how == "out of reach" else "float64")
    assert any("not cast" in note for note in report.notes) == (how == "out of reach")
    assert linear.weight.dtype == torch.float32


unrelated = nn.Linear(2, 2)


class Predictor:
    """No module; its network has the name of a global."""

    def __init__(self) -> None:
        self.unrelated = nn.Linear(4, 3, bias=False)

    def predict(self, x: Tensor) -> Tensor:
        return self.unrelated(x)


def test_the_modules_of_a_function_are_those_that_it_reads() -> None:
    predictor = Predictor()
    children = dict(Function(predictor.predict).named_children())
    assert children == {"unrelated": predictor.unrelated}
    assert audit(predictor.predict, torch.randn(5, 3, 4), ALONG, ALONG, samples=2).dtype == "float64"


def test_names_of_a_functions_modules_need_not_be_names_of_attributes() -> None:
    linear = nn.Linear(4, 3, bias=False)
    both = functools.partial(lambda x, **rest: linear(x), **{"a.b": linear, "training": nn.Identity()})
    assert len(list(Function(both).named_children())) == 2  # linear once
    assert audit(both, torch.randn(5, 3, 4), ALONG, ALONG, samples=2).equivariant


def test_a_variable_without_a_value_is_no_module() -> None:
    def make() -> Callable[[Tensor], Tensor]:
        def function(x: Tensor) -> Tensor:
            return x if x is not None else later(x)

        return function

        later = abs

    assert audit(make(), torch.randn(5, 3), "1x1o", "1x1o", samples=2).equivariant


def test_a_function_of_keywords_decides_itself_what_it_takes() -> None:
    head = nn.Linear(4, 3, bias=False)

    def function(*args: Any, **kwargs: Any) -> Tensor:
        return head(kwargs["features"])

    sample = {"features": torch.randn(5, 3, 4)}
    assert audit(function, sample, {"features": ALONG}, ALONG, samples=2).equivariant


class Normalised(nn.Module):
    """Vectors times the batch norm of their lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.norm(x.norm(dim=-1, keepdim=True))


@pytest.mark.parametrize("measure", ["audit", "label_free"])
def test_a_module_that_a_function_calls_runs_in_evaluation_mode_and_is_restored(measure: str) -> None:
    network, x = Normalised().train(), torch.randn(8, 3)
    network(x)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    if measure == "audit":
        report = audit(lambda x: network(x), x, "1x1o", "1x1o", samples=2)
        assert report.relative < 1e-12
        assert report.notes == ()
    else:
        assert label_free(network.forward, [x], "1x1o", "1x1o", samples=2).relative < 1e-12
    assert network.training
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


class Scaled(nn.Module):
    """Vectors times a constant that was rounded to float32."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        constant = torch.tensor([1 / 3])
        if kind == "attribute":
            self.constant = constant
        else:
            self.register_buffer(
                "constant", constant.to(torch.complex64 if kind == "complex" else torch.float32)
            )

    def forward(self, x: Tensor) -> Tensor:
        bent = torch.stack((x[:, 0], x[:, 1], 3 * self.constant.real * x[:, 2]), dim=1)
        return bent + 0 * x


@pytest.mark.parametrize("kind", ["attribute", "buffer", "complex"])
def test_rounded_constants_count_wherever_a_module_keeps_them(kind: str) -> None:
    report = audit(Scaled(kind), torch.randn(5, 3), "1x1o", "1x1o", samples=4, per_layer=False)
    assert 1e-9 < report.relative < 1e-7
    assert report.equivariant
