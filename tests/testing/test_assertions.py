"""assert_equivariant, and that the conformance classes fail where they should."""

from __future__ import annotations

import subprocess
import sys
import unittest
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from equirelax.errors import NonFiniteError
from equirelax.methods import ACE, Method
from equirelax.relaxation import Layers, Linear, Placement, Relaxation
from equirelax.symmetry import SO, On, vector
from equirelax.testing import (
    LayerFamilyConformance,
    MethodConformance,
    ModelConformance,
    NetworkConformance,
    assert_equivariant,
)
from equirelax.testing.checks import check, close, equal, finite, refused, same, skip

torch.set_num_threads(1)
V = vector(SO(3))


def test_assertion() -> None:
    x = torch.randn(5, 3)
    assert assert_equivariant(torch.neg, x, V, V).equivariant
    with pytest.raises(AssertionError) as failure:
        assert_equivariant(nn.Sequential(nn.Identity(), nn.Tanh()), x, V, V)
    words = str(failure.value)
    assert "NOT equivariant" in words
    assert "first break: 1 (Tanh)" in words
    assert "worst element: rotation by" in words
    slightly = nn.Linear(3, 3, bias=False, dtype=torch.float64)
    with torch.no_grad():
        slightly.weight.copy_(torch.eye(3))
        slightly.weight[0, 1] = 1e-7
    assert_equivariant(slightly, x, V, V, tolerance=1e-6)
    with pytest.raises(AssertionError, match=r"tolerance 1\.00e-08"):
        assert_equivariant(slightly, x, V, V, tolerance=1e-8)
    assert_equivariant(torch.neg, x, V, V, dtype=torch.float32)


def test_checks() -> None:
    one = torch.ones(2)
    check(True, "never")
    equal([one, torch.zeros(0)], [one, torch.zeros(0)], "x")
    close(one, one + 1e-12, 1e-10, "x")
    finite([("a", one), ("b", None)], "x")
    same(1, 1, "x")
    with pytest.raises(AssertionError, match="wrong"):
        check(False, "wrong")
    with pytest.raises(AssertionError, match="tensor 0 differs by 1"):
        equal([one], [one + 1], "x")
    with pytest.raises(AssertionError, match="another shape"):
        equal([one], [torch.ones(3)], "x")
    with pytest.raises(AssertionError, match="the map"):
        close(one, one + 1e-3, 1e-10, "the map")
    with pytest.raises(AssertionError, match="x of a holds NaN"):
        finite([("a", one / 0)], "x")
    with pytest.raises(AssertionError, match="expected 2, found 1"):
        same(1, 2, "x")
    with pytest.raises(AssertionError, match="nothing was accepted"):
        refused(ValueError, lambda: None, "nothing")
    with pytest.raises(unittest.SkipTest, match="why"):
        skip("why")


def failures(case: Any) -> set[str]:
    """Names of the conformance tests that fail."""
    failed = set()
    for name in dir(case):
        if name.startswith("test_"):
            try:
                getattr(case, name)()
            except unittest.SkipTest:
                continue
            except (AssertionError, NonFiniteError):
                failed.add(name)
    return failed


class NotEquivariant(ModelConformance):
    def build(self) -> tuple[nn.Module, Any, Any, Any]:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 3, dtype=torch.float64)), torch.ones(4, 3).double(), V, V


class Careless(ModelConformance):
    """Writes into its input, is random, divides 0 by 0 in the backward, leaves a parameter unused, minds the
    order.
    """

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used = nn.Parameter(torch.zeros((), dtype=torch.float64))
            self.unused = nn.Parameter(torch.zeros((), dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            noise = 1 + 0.1 * torch.rand((), dtype=x.dtype)
            scale = self.used.abs().sqrt() + 1
            return x.mul_(2) * scale * noise * torch.arange(1, 5).unsqueeze(-1).to(x)

    def build(self) -> tuple[nn.Module, Any, Any, Any]:
        return self.Model(), torch.ones(4, 3, dtype=torch.float64), V, V

    def permute(self, sample: Any, generator: torch.Generator) -> Any:
        return sample.flip(0), lambda y: y.flip(0)


def test_model_conformance_can_fail() -> None:
    assert failures(NotEquivariant()) == {"test_equivariant_in_float64", "test_equivariant_in_float32"}
    assert failures(Careless()) >= {
        "test_order_of_nodes_does_not_matter",
        "test_deterministic",
        "test_gradients_are_finite_and_reach_every_parameter",
        "test_does_not_write_into_its_input",
    }


class WrongRepresentation(LayerFamilyConformance):
    """A layer declared to map vectors to vectors whose axes are swapped."""

    def build(self):  # type: ignore[no-untyped-def]
        model = nn.Sequential(nn.Linear(3, 3, bias=False, dtype=torch.float64))
        with torch.no_grad():
            model[0].weight.copy_(torch.eye(3)[[1, 0, 2]])
        return model, "0", torch.randn(8, 3, generator=torch.Generator().manual_seed(0)).double(), V, V

    def placement(self) -> Placement:
        return Layers(declare=(Linear("0", V, V),))

    def equivariant_residual(self, residual):  # type: ignore[no-untyped-def]
        return torch.eye(3)[[1, 0, 2]]


def test_layer_conformance_can_fail() -> None:
    assert failures(WrongRepresentation()) >= {
        "test_an_equivariant_residual_is_not_penalised",
        "test_equivariant_before_and_after_but_not_between",
        # a Linear can express every map, and the fold keeps the equivariant ones alone
        "test_fold_is_the_orthogonal_projection_onto_the_layers_span",
        "test_fold_leaves_an_equivariant_model",
    }


class Forgetful(ACE):
    """Loses its multipliers at every load, and moves them when a step was skipped."""

    name = "forgetful"

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass

    def _skip(self) -> None:
        self._advance()


class ForgetfulCase(MethodConformance):
    def build_method(self, relaxation: Relaxation) -> Method:
        return Forgetful(relaxation, dual_lr=1e-1)


def test_method_conformance_can_fail() -> None:
    assert failures(ForgetfulCase()) >= {
        "test_resuming_continues_bit_for_bit",
        "test_state_survives_a_file",
        "test_a_foreign_state_is_refused",
        "test_a_skipped_step_moves_nothing",
    }


class VNLinear(nn.Module):
    """A map of vectors in the form of vector neurons' public code, (batch, channels, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.map_to_feat = nn.Linear(4, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.map_to_feat(x.mT).mT


class Theirs(NetworkConformance):
    """A network that does all that it should."""

    name = "Theirs"
    count = 2

    def network(self) -> nn.Module:
        return nn.Sequential(VNLinear(), VNLinear())

    def inputs(self, dtype: torch.dtype) -> Any:
        return torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0), dtype=dtype)

    def representations(self) -> tuple[Any, Any]:
        return On(V, -1), On(V, -1)


class Wronged(Theirs):
    """Says that it cannot be copied in any way, and has another number of residuals."""

    count = 3
    cannot: ClassVar[dict[str, str]] = dict.fromkeys(("copy", "pickle", "export", "script"), "so it says")


class Tilted(Theirs):
    """Is not equivariant, has a residual that no gradient reaches, and returns something else at every call."""

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = VNLinear(), VNLinear()

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.used(x) + 0.1 * torch.rand((), dtype=x.dtype)
            return y + 0.0 * self.unused(x)

    def network(self) -> nn.Module:
        return self.Network()


def test_network_conformance_can_fail_and_notes_what_it_saw() -> None:
    assert failures(Theirs()) == set()
    seen = NetworkConformance.seen.pop("Theirs")
    assert seen["residuals"] == 2
    assert seen["projected_error_float64"] < 1e-10 < 1e-3 < seen["relaxed_error"]
    assert failures(Wronged()) == {
        "test_residuals_are_where_they_should_be",
        "test_copies_compute_the_same",
        "test_projected_it_exports_as_before",
        "test_projected_it_scripts_as_before",
    }
    assert failures(Tilted()) >= {
        "test_projected_it_is_the_authors_network",
        "test_projected_in_single_precision_it_is_the_authors_network",
        "test_ace_trains_every_residual",
        "test_scheduled_trains_every_residual",
        "test_copies_compute_the_same",
    }
    NetworkConformance.seen.pop("Theirs")


def test_needs_neither_pytest_nor_e3nn_nor_pyg() -> None:
    code = (
        "import sys, equirelax.testing, equirelax.auditing\n"
        "names = ('pytest', 'hypothesis', 'e3nn', 'torch_geometric', 'lightning')\n"
        "print([name for name in names if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
