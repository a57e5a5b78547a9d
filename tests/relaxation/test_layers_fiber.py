"""Linear maps on features by degree: the conformance class, and the modules of the two packages that have them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import equirelax as er
from equirelax.errors import PlacementError, UnfoldableError
from equirelax.relaxation.layers.fiber import weights_by_degree
from equirelax.symmetry import SO, On, vector
from equirelax.testing import LayerFamilyConformance

torch.set_num_threads(1)


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class ByList(nn.Module):
    """Matrices in a list beside their degrees, features keyed by integers."""

    def __init__(self, fiber_in: tuple[int, ...], fiber_out: tuple[int, ...]) -> None:
        super().__init__()
        pairs = list(zip(fiber_in, fiber_out, strict=False))
        self.degrees = list(range(len(pairs)))
        self.weights = nn.ParameterList([nn.Parameter(draw(*pair)) for pair in pairs])

    def forward(self, x: dict[int, Tensor]) -> dict[int, Tensor]:
        pairs = zip(self.degrees, self.weights, strict=True)
        return {degree: torch.einsum("...dm,de->...em", x[degree], weight) for degree, weight in pairs}


class ByDict(nn.Module):
    """Matrices in a dictionary, features keyed by digits."""

    def __init__(self, fiber_in: tuple[int, ...], fiber_out: tuple[int, ...]) -> None:
        super().__init__()
        pairs = enumerate(zip(fiber_in, fiber_out, strict=False))
        self.weights = nn.ParameterDict({str(i): nn.Parameter(draw(*pair)) for i, pair in pairs})

    def forward(self, x: dict[str, Tensor]) -> dict[str, Tensor]:
        return {key: torch.einsum("...dm,de->...em", x[key], w) for key, w in self.weights.items()}


class Net(nn.Module):
    """Two maps with a gate between them; the second keeps fewer degrees than it is given."""

    def __init__(self, linear: type[nn.Module], key: type) -> None:
        super().__init__()
        self.key = key
        self.first = linear((3, 2, 2), (4, 3, 2))
        self.second = linear((4, 3, 2), (1, 2))

    def forward(self, scalars: Tensor, vectors: Tensor, tensors: Tensor) -> tuple[Tensor, Tensor]:
        x = {self.key(0): scalars[..., None], self.key(1): vectors, self.key(2): tensors}
        h = {
            key: value * value.square().sum(-1, keepdim=True).sigmoid()
            for key, value in self.first(x).items()
        }
        out = self.second(h)
        return out[self.key(0)], out[self.key(1)]


class Fiber(LayerFamilyConformance):
    linear: type[nn.Module] = ByList
    key: type = int
    path = "first"

    def build(self):  # type: ignore[no-untyped-def]
        pytest.importorskip("e3nn")
        from equirelax.symmetry import from_irreps

        v = On(vector(SO(3)), -1)
        model = Net(self.linear, self.key)
        return (
            model,
            self.path,
            (draw(30, 3), draw(30, 2, 3), draw(30, 2, 5)),
            ((None, v, On(from_irreps("2e", SO(3)), -1))),
            (None, v),
        )


class TestByList(Fiber):
    pass


class TestByDict(Fiber):
    linear, key = ByDict, str


class TestFewerDegrees(Fiber):
    path = "second"


class TestFewerDegreesByDict(Fiber):
    linear, key, path = ByDict, str, "second"


def look_alikes() -> list[nn.Module]:
    """Modules that have `weights` and are something else."""
    cases: list[nn.Module] = []
    for weights, degrees in (
        (nn.ParameterList([torch.ones(2, 2)]), None),
        (nn.ParameterList([torch.ones(2, 2)]), [0, 1]),
        (nn.ParameterList([torch.ones(2, 2)]), ["a"]),
        (nn.ParameterList([torch.ones(2)]), [0]),
        (nn.ParameterDict({"a": torch.ones(2, 2)}), None),
        (nn.ParameterDict({}), None),
    ):
        module = nn.Module()
        module.weights, module.degrees = weights, degrees  # type: ignore[assignment]
        cases.append(module)
    with_bias = ByDict((2, 2), (2, 2))
    with_bias.bias = nn.Parameter(torch.zeros(2))
    return [*cases, with_bias, nn.Linear(2, 2)]


@pytest.mark.parametrize("number", range(8))
def test_look_alikes_are_left_alone(number: int) -> None:
    assert weights_by_degree(look_alikes()[number]) is None


def test_features_that_are_no_mapping_are_explained() -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = ByDict((2, 2), (2, 2))
            self.inner.forward = lambda x: x  # type: ignore[method-assign]

        def forward(self, x: Any) -> Any:
            return self.inner(x)

    model = Other()
    er.relax(model)
    with pytest.raises(
        PlacementError, match=r"inner: .*must be a mapping with the keys \['0', '1'\].*Tensor"
    ):
        model(torch.zeros(3, 2, 1))
    with pytest.raises(PlacementError, match=r"dict with the keys \[0\]"):
        model({0: torch.zeros(3, 2, 1)})


def test_a_bias_of_scalars_cannot_be_folded() -> None:
    model = nn.ModuleDict({"map": ByList((2, 1), (2, 1))})
    relaxation = er.relax(model, residual=er.Dense(bias=True))
    relaxation.set_gamma(1.0)
    bias = relaxation["map"].linear_map.bias
    with torch.no_grad():
        bias[2:] = 1.0  # of the vector: no equivariant map has one, so it is lost, and that is reported
    report = er.relaxation.project(model, "fold")
    assert report.residuals[0].error == pytest.approx(1.0)
    relaxation = er.relax(model, residual=er.Dense(bias=True))
    relaxation.set_gamma(1.0)
    with torch.no_grad():
        relaxation["map"].linear_map.bias[0] = 1.0
    with pytest.raises(UnfoldableError, match="no bias to fold that of the residual's degree 0 into"):
        er.project(model, "fold")


def test_the_packages_own_maps_are_found() -> None:
    equiformer = pytest.importorskip("equiformer_pytorch.equiformer_pytorch")
    transformer = pytest.importorskip("se3_transformer_pytorch.se3_transformer_pytorch")
    first = equiformer.Linear((3, 2), (4, 1))
    second = transformer.LinearSE3(transformer.Fiber({0: 3, 1: 2}), transformer.Fiber({0: 4, 1: 1}))
    for module, keys in ((first, [0, 1]), (second, ["0", "1"])):
        relaxation = er.relax(module)
        assert (relaxation[""].out_rep.dim, relaxation[""].in_rep.dim) == (7, 9)
        assert relaxation.summary().rows[0].relaxes == "SO(3)"
        out = module({keys[0]: torch.randn(6, 5, 3, 1), keys[1]: torch.randn(6, 5, 2, 3)})
        assert [tuple(out[key].shape) for key in keys] == [(6, 5, 4, 1), (6, 5, 1, 3)]
