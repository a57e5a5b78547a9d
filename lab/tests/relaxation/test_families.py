"""Every layer family that comes with the package, held to the conformance class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from equirelax.auditing import On
from equirelax.relaxation import Constant, Layers, Linear, Placement, relax
from equirelax.relaxation.layers import get_family
from equirelax.symmetry import (
    Cyclic,
    Lorentz,
    O,
    Representation,
    equivariant_projection,
    from_irreps,
    regular,
    sign,
    trivial,
    vector,
)
from equirelax.testing import LayerFamilyConformance, brute_force_span

torch.set_num_threads(1)


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    """A module built in float64, always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.set_default_dtype(torch.float64)
        try:
            return build()
        finally:
            torch.set_default_dtype(torch.float32)


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


# e3nn


class Steerable(nn.Module):
    """A tensor product between two e3nn linear maps; the attribute's first channel is the constant `one`."""

    def __init__(self, o3: Any, one: float) -> None:
        super().__init__()
        self.one = one
        self.linear = o3.Linear("2x0e+2x1o+1x1e+1x2e", "3x0e+2x1o+1x0o+1x2e")
        self.product = o3.FullyConnectedTensorProduct("3x0e+2x1o+1x0o+1x2e", "0e+1o", "2x0e+2x1o+1x1e")
        self.last = o3.Linear("2x0e+2x1o+1x1e", "1x0e+1x1o", biases=[True, False])

    def forward(self, x: Tensor, vectors: Tensor) -> Tensor:
        attribute = torch.cat((torch.full_like(vectors[:, :1], self.one), vectors), -1)
        return self.last(self.product(self.linear(x), attribute))


class E3nn(LayerFamilyConformance):
    path = "linear"
    one = 1.0

    def build(self):  # type: ignore[no-untyped-def]
        o3 = pytest.importorskip("e3nn.o3")
        in_rep = (from_irreps("2x0e+2x1o+1x1e+1x2e"), vector(O(3)))
        sample = (draw(30, 16), draw(30, 3))
        return seeded(lambda: Steerable(o3, self.one)), self.path, sample, in_rep, from_irreps("1x0e+1x1o")


class TestE3nnLinear(E3nn):
    path = "linear"


@pytest.mark.slow  # its sister stands for it
class TestE3nnLinearWithBias(E3nn):
    path = "last"


class TestE3nnTensorProduct(E3nn):
    path = "product"
    one = -0.3

    def placement(self) -> Placement:
        return Layers(constants=(Constant("product", channel=0, value=self.one),))


@pytest.mark.slow  # its sister stands for it
class TestE3nnTensorProductWithoutConstant(E3nn):
    path = "product"
    foldable = False


class OwnProduct(nn.Module):
    """SEGNN's own product with a constant in its attribute."""

    def __init__(self) -> None:
        super().__init__()
        from equirelax_lab.models import TensorProduct

        self.product = TensorProduct("3x0e+2x1o", "0e+1o", "2x0e+2x1o")

    def forward(self, x: Tensor, vectors: Tensor) -> Tensor:
        return self.product(x, torch.cat((torch.ones_like(vectors[:, :1]), vectors), -1))


class TestOwnTensorProduct(LayerFamilyConformance):
    """It has e3nn's attributes and is recognised by them."""

    def build(self):  # type: ignore[no-untyped-def]
        pytest.importorskip("e3nn")
        in_rep = (from_irreps("3x0e+2x1o"), vector(O(3)))
        return seeded(OwnProduct), "product", (draw(20, 9), draw(20, 3)), in_rep, from_irreps("2x0e+2x1o")

    def placement(self) -> Placement:
        return Layers(constants=(Constant("product"),))


# vector neurons


class VectorGate(nn.Module):
    """Not linear, so that what follows sees features that are not a linear image of the input."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x.norm(dim=2, keepdim=True))


class TestOwnVectorNeurons(LayerFamilyConformance):
    def build(self):  # type: ignore[no-untyped-def]
        from equirelax_lab.models.vector_neurons import VNLinear

        model = seeded(lambda: nn.Sequential(VNLinear(2, 4), VectorGate(), VNLinear(4, 3)))
        along = On(vector(O(3)), 2)
        return model, "2", draw(4, 2, 3, 6), along, along


class ThirdPartyLinear(nn.Module):
    """Vectors before channels, channels last: (batch, points, 3, C)."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels_out, channels_in))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.mT


class TestThirdPartyVectorNeurons(LayerFamilyConformance):
    def build(self):  # type: ignore[no-untyped-def]
        model = seeded(lambda: nn.Sequential(ThirdPartyLinear(2, 4), VectorGate(), ThirdPartyLinear(4, 3)))
        along = On(vector(O(3)), 2)
        return model, "0", draw(4, 6, 3, 2), along, along

    def placement(self) -> Placement:
        return Layers(declare=(Linear("ThirdPartyLinear", On("1x1o", -2), channel_axis=-1),))


# plain linear maps between declared representations: a torch.nn.Linear can express every map, so its
# equivariance is that of its weight, and folding keeps the equivariant part


class Free(LayerFamilyConformance):
    """A `torch.nn.Linear` with an equivariant weight."""

    def reps(self) -> tuple[Representation, Representation]:
        raise NotImplementedError

    def build(self):  # type: ignore[no-untyped-def]
        in_rep, out_rep = self.reps()
        model = seeded(lambda: nn.Sequential(nn.Linear(in_rep.dim, out_rep.dim, bias=False)))
        with torch.no_grad():
            weight = model.get_submodule("0").weight
            weight.copy_(equivariant_projection(weight, in_rep, out_rep))
        return model, "0", draw(in_rep.dim + 8, in_rep.dim), in_rep, out_rep

    def placement(self) -> Placement:
        return Layers(declare=(Linear("0", *self.reps()),))

    def test_fold_is_the_orthogonal_projection_onto_the_layers_span(self) -> None:
        """Onto the equivariant maps here, found from the constraints on the whole matrix at once."""
        relaxation, residual, built = self.relaxed()
        weight = self.random_weight(residual)
        module = relaxation.model.get_submodule(built[1])
        folded = get_family(residual.site.family, built[1]).fold(module, residual.site, weight, None).weight
        torch.testing.assert_close(folded, null_space_projection(weight, *self.reps()), rtol=1e-9, atol=1e-9)

    def _fold_case(self):  # type: ignore[no-untyped-def]
        relaxation, residual, built = self.relaxed()
        weight = null_space_projection(self.random_weight(residual), *self.reps())
        return relaxation, residual, built, weight.unsqueeze(0)


def null_space_projection(weight: Tensor, in_rep: Representation, out_rep: Representation) -> Tensor:
    """The slow reference: all constraints on the flattened matrix, one singular value decomposition."""
    eye_in, eye_out = (torch.eye(rep.dim, dtype=torch.float64) for rep in (in_rep, out_rep))
    equations = [
        torch.kron(b.contiguous(), eye_in) - torch.kron(eye_out, a.mT.contiguous())
        for a, b in zip(
            [*in_rep.generators(), *in_rep.discrete()],
            [*out_rep.generators(), *out_rep.discrete()],
            strict=True,
        )
    ]
    _, values, vh = torch.linalg.svd(torch.cat(equations))
    basis = vh[int((values > 1e-9 * values.max()).sum()) :]
    return (basis.mT @ (basis @ weight.flatten())).reshape(weight.shape)


class TestPlainLinearOrthogonal(Free):
    def reps(self) -> tuple[Representation, Representation]:
        group = O(3)
        v, one, pseudo = vector(group), trivial(group), sign(group)
        return 2 * one + 2 * v + pseudo, one + 2 * pseudo + v


class TestPlainLinearLorentz(Free):
    """Not compact: there is no Reynolds average, and the null space decides."""

    def reps(self) -> tuple[Representation, Representation]:
        v = vector(Lorentz())
        return trivial(Lorentz()) + 2 * v, 2 * v + trivial(Lorentz(), 2)


class TestPlainLinearFinite(Free):
    def reps(self) -> tuple[Representation, Representation]:
        group = Cyclic(4)
        return regular(group) + vector(group), 2 * regular(group) + trivial(group)


def test_the_brute_force_span_of_a_layer_counted_by_hand() -> None:
    """2x0e+1x1o -> 1x0e+2x1o: two numbers between the scalars, two between the vectors."""
    o3 = pytest.importorskip("e3nn.o3")
    layer = seeded(lambda: o3.Linear("2x0e+1x1o", "1x0e+2x1o"))
    relaxation = relax(layer)
    basis = brute_force_span(layer, relaxation[""], (draw(12, 5),), {})
    assert basis.shape == (4, 7, 5)
    assert not bool(basis[:, :1, 2:].abs().gt(1e-9).any())
    torch.testing.assert_close(
        torch.einsum("aoi,boi->ab", basis, basis), torch.eye(4, dtype=torch.float64), rtol=1e-10, atol=1e-10
    )
