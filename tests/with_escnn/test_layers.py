"""Each kind of escnn layer, through the conformance class of layer families."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from escnn import group, gspaces
from escnn import nn as enn
from escnn_networks import SPACES, draw, fill, hidden
from torch import nn

import equirelax as er
from equirelax.errors import PlacementError, UnfoldableError
from equirelax.relaxation.layers.escnn import EscnnConvolution, exact_bases
from equirelax.relaxation.relaxation import derived_keys
from equirelax.symmetry import On, as_representation
from equirelax.symmetry.escnn import from_field_type
from equirelax.testing import LayerFamilyConformance


class EscnnConformance(LayerFamilyConformance):
    pickles = False

    def load_state(self, model: nn.Module, state: dict[str, Any]) -> None:
        """Without what escnn computes anew: torch cannot load its tables of channels."""
        derived = derived_keys(model)
        model.load_state_dict({k: v for k, v in state.items() if k not in derived}, strict=False)


class Convolution(EscnnConformance):
    """One layer behind another, called with a GeometricTensor; `space` is of the planar ones."""

    samples = 3  # by 49 pixels: more rows than a kernel has entries for one output, as the brute force needs
    space = "C4"
    size = 3
    # The part of the group that the grid can be moved by, as escnn names subgroups (None: all of it).
    on_grid: Any = None

    def layer(self, in_type: Any, out_type: Any) -> nn.Module:
        return enn.R2Conv(in_type, out_type, self.size, padding=self.size // 2, recompute=True)

    def build(self):  # type: ignore[no-untyped-def]
        space = SPACES[self.space]()
        in_type = enn.FieldType(space, [space.trivial_repr, space.basespace_action])
        middle = enn.FieldType(space, hidden(space))
        first = enn.R2Conv(in_type, middle, 3, padding=1, recompute=True)
        last = self.layer(middle, in_type)
        model = enn.SequentialModule(first, last).double()
        fill(model)
        exact_bases(model)
        sample = enn.GeometricTensor(draw(self.samples, in_type.size, 7, 7), in_type)
        field = as_representation(in_type if self.on_grid is None else in_type.restrict(self.on_grid))
        return model, "1", sample, field, field


class TestC4(Convolution):
    pass


class TestD4(Convolution):
    space = "D4"


class TestFlips(Convolution):
    space = "flips"
    size = 5
    samples = 8


class TestC1(Convolution):
    """Nothing but translations: every dense kernel is equivariant."""

    space = "C1"

    def test_any_other_residual_is_penalised(self) -> None:
        lie, norm = self.terms_of(self.random_weight)
        assert lie == 0 < norm

    def test_equivariant_before_and_after_but_not_between(self) -> None:
        pytest.skip("no element but the identity")


class TestC8(Convolution):
    space = "C8"
    on_grid = 4


class TestSO2(Convolution):
    space = "SO(2)"
    on_grid = 4


class TestO2(Convolution):
    space = "O(2)"
    on_grid = (0.0, 4)


class TestDilatedCircular(Convolution):
    def layer(self, in_type: Any, out_type: Any) -> nn.Module:
        settings = {"padding": 2, "dilation": 2, "padding_mode": "circular", "recompute": True}
        return enn.R2Conv(in_type, out_type, 3, **settings)


class TestStride(Convolution):
    samples = 8

    def layer(self, in_type: Any, out_type: Any) -> nn.Module:
        return enn.R2Conv(in_type, out_type, 3, padding=1, stride=2, recompute=True)


class TestBandLimited(Convolution):
    """A basis with rings as the user wants them."""

    samples = 8

    def layer(self, in_type: Any, out_type: Any) -> nn.Module:
        settings = {
            "padding": 2,
            "rings": [0.0, 1.0, 2.0],
            "sigma": [0.3, 0.5, 0.5],
            "frequencies_cutoff": 3.0,
        }
        return enn.R2Conv(in_type, out_type, 5, recompute=True, **settings)


class TestTransposed(Convolution):
    space = "D4"

    def layer(self, in_type: Any, out_type: Any) -> nn.Module:
        return enn.R2ConvTransposed(in_type, out_type, 3, padding=1, stride=2, recompute=True)


class TestLinear(EscnnConformance):
    def space(self) -> Any:
        return gspaces.no_base_space(group.cyclic_group(8))

    def build(self):  # type: ignore[no-untyped-def]
        space = self.space()
        irreps = [space.irrep(*irrep.id) for irrep in list(space.irreps)[:3]]
        in_type, out_type = enn.FieldType(space, irreps * 2), enn.FieldType(space, irreps[::-1])
        model = enn.SequentialModule(enn.Linear(in_type, out_type, recompute=True)).double()
        fill(model)
        sample = enn.GeometricTensor(draw(40, in_type.size), in_type)
        return model, "0", sample, On(from_field_type(in_type)), On(from_field_type(out_type))


class TestLinearO2(TestLinear):
    def space(self) -> Any:
        return gspaces.no_base_space(group.o2_group(3))


def volume(space: Any, transposed: bool = False) -> tuple[nn.Module, Any]:
    fields = [space.trivial_repr, space.irrep(*next(i.id for i in space.irreps if i.size == 3))]
    in_type, out_type = enn.FieldType(space, fields), enn.FieldType(space, fields[::-1])
    made = enn.R3ConvTransposed if transposed else enn.R3Conv
    layer = made(in_type, out_type, 3, padding=1, recompute=True).double()
    fill(layer)
    return layer, enn.GeometricTensor(draw(2, in_type.size, 5, 5, 5), in_type)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("space", ["SO(3)", "O(3)"])
def test_convolutions_in_space(space: str, transposed: bool) -> None:
    """They fold too, and are penalised by the distance to their own basis."""
    made = {"SO(3)": gspaces.rot3dOnR3, "O(3)": gspaces.flipRot3dOnR3}[space](maximum_frequency=2)
    layer, sample = volume(made, transposed)
    relaxation = er.relax(layer)
    residual = relaxation[""]
    symmetry, weight = residual.site.convolution.symmetry, residual.map.weight
    with torch.no_grad():
        kernel = layer.expand_parameters()[0]
        weight.copy_(kernel)
        layer.weights.zero_()
    relaxation.set_gamma(1.0)
    assert float(symmetry.lie(kernel)) < 1e-20 * float(kernel.square().sum())
    other = torch.randn_like(kernel)
    assert float(symmetry.lie(other)) > 0.1 * float(other.square().sum())
    before = layer(sample).tensor
    report = er.project(layer, mode="fold")
    assert report.residuals[0].error < 1e-10
    assert torch.allclose(layer(sample).tensor, before, rtol=0, atol=1e-10)


def test_grouped_convolutions_are_left_alone_and_the_summary_says_why() -> None:
    space = SPACES["C4"]()
    fields = enn.FieldType(space, 4 * [space.regular_repr])
    model = enn.SequentialModule(
        enn.R2Conv(fields, fields, 3, groups=4, recompute=True), enn.R2Conv(fields, fields, 3, recompute=True)
    )
    relaxation = er.relax(model)
    assert list(relaxation.residuals) == ["1"]
    assert "has 4 groups" in str(relaxation.summary())


def test_a_plain_tensor_is_refused_by_the_residual_as_by_escnn() -> None:
    residual = er.relax(volume(gspaces.rot3dOnR3(maximum_frequency=2))[0])[""]
    with pytest.raises(PlacementError, match="GeometricTensor"):
        residual.site.read((draw(2, 4, 5, 5, 5),), {})


def test_folding_a_bias_keeps_its_invariant_part() -> None:
    space = SPACES["C4"]()
    fields = enn.FieldType(space, [space.regular_repr, space.trivial_repr, space.basespace_action])
    layer = enn.R2Conv(fields, fields, 3, padding=1, recompute=True).double()
    fill(layer)
    exact_bases(layer)
    relaxation = er.relax(layer, residual=er.Dense(bias=True))
    bias = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], dtype=torch.float64)
    with torch.no_grad():
        relaxation[""].map.bias.copy_(bias)
    relaxation.set_gamma(2.0)
    own = layer.expand_parameters()[1]
    er.project(layer, mode="fold")
    kept = torch.tensor([2.5, 2.5, 2.5, 2.5, 5.0, 0.0, 0.0], dtype=torch.float64)
    # escnn keeps the bias' expansion in float32, even after double()
    assert torch.allclose(layer.expand_parameters()[1], own + 2 * kept, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["weights", "bias"])
def test_nothing_is_folded_into_what_a_parametrization_computes(name: str) -> None:
    class Doubled(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * x

    fields = enn.FieldType(SPACES["C4"](), [SPACES["C4"]().trivial_repr] * 2)
    layer = enn.R2Conv(fields, fields, 3, padding=1, recompute=True)
    nn.utils.parametrize.register_parametrization(layer, name, Doubled())
    relaxation = er.relax(layer, residual=er.Dense("normal", std=1.0, bias=True))
    with torch.no_grad():
        relaxation[""].map.bias.fill_(1.0)
    relaxation.set_gamma(1.0)
    with pytest.raises(UnfoldableError, match=name):
        er.project(layer, mode="fold")
    assert len(er.relaxation_of(layer)) == 1


def test_a_layer_of_another_library_is_not_taken_for_escnns() -> None:
    class Linear(nn.Linear):
        in_type = out_type = None

    assert not EscnnConvolution().matches(Linear(2, 2))
    assert not any(family.matches(Linear(2, 2)) for family in er.relaxation.layers.families().values())
