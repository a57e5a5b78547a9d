"""Which of the modules around a tensor product is relaxed, and that what is added comes out where it should (N1)."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from torch import nn

import equirelax as er
from equirelax.errors import PlacementError, RepresentationError, UnfoldableError
from equirelax.relaxation import Constant, Layers
from equirelax.relaxation.kinds import EquivariantDense
from equirelax.symmetry import O, from_irreps, vector

pytest.importorskip("e3nn")
from e3nn import o3
from wrapped_products import IN_IRREPS, OUT_IRREPS, Gated, OfDicts, Scaled, node, sample

PATHS = ["gated.tp", "plain", "normed.tp", "alone.tp", "dicts.fc_tensor_product"]


pytestmark = pytest.mark.usefixtures("float64")


def randomise(relaxation, gamma=1.0):
    for p in relaxation.residual_parameters().values():
        nn.init.normal_(p)
    relaxation.set_gamma(gamma)


def test_the_outermost_module_whose_output_is_its_products_is_relaxed():
    model, x = node().eval(), sample()
    before = model(*x)
    relaxation = er.relax(model)
    assert list(relaxation.residuals) == PATHS
    assert torch.equal(model(*x), before)


@pytest.mark.parametrize("path", PATHS)
def test_every_residual_contributes_where_its_module_gives_its_output(path):
    """The output of the module moves by gamma W x and by nothing else, and the network's output moves with it."""
    model = node().eval()
    x = sample()
    relaxation = er.relax(model)
    randomise(relaxation, 0.0)
    seen = {}
    module = model.get_submodule(path)
    handle = module.register_forward_hook(lambda m, args, out: seen.update(read=args[0], out=out))
    strict_out, strict = model(*x), dict(seen)
    relaxation[path].set_gamma(1.0)
    relaxed_out = model(*x)
    handle.remove()
    added = seen["read"] @ relaxation[path].map.weight.T
    torch.testing.assert_close(seen["out"], strict["out"] + added, rtol=1e-12, atol=1e-12)
    assert added.norm() > 1
    assert (relaxed_out - strict_out).norm() > 1e-3


def test_projected_networks_of_wrappers_are_equivariant_and_the_authors():
    model = node().eval()
    x = sample()
    before, keys = model(*x), list(model.state_dict())
    relaxation = er.relax(model)
    randomise(relaxation)
    reps = (from_irreps(IN_IRREPS), from_irreps("1x0e+1x1o")), from_irreps(OUT_IRREPS)
    assert er.audit(model, x, *reps, per_layer=False, lie=False).relative > 1e-2
    er.project(model)
    assert torch.equal(model(*x), before)
    assert list(model.state_dict()) == keys
    assert er.audit(model, x, *reps, per_layer=False, lie=False).relative < 1e-10


def test_children_of_what_is_excluded_or_not_included_are_looked_at():
    assert list(er.relax(node(), exclude="plain").residuals) == [
        p.replace("plain", "plain.tp") for p in PATHS
    ]
    assert list(er.relax(node(), include="*.tp").residuals) == [
        f"{p}.tp" for p in ("gated", "plain", "normed", "alone")
    ]
    assert "plain.tp" not in er.relax(node(), exclude=("plain*", "alone*")).residuals


def test_classes_are_excluded_and_included_by_name_n12():
    assert list(er.relax(node(), include=["Scaled"]).residuals) == ["plain"]
    assert list(er.relax(node(), exclude="FullyConnectedTensorProduct").residuals) == ["plain"]
    with pytest.raises(PlacementError, match="Did you mean 'Scaled'"):
        er.relax(node(), exclude="Scalde")


def test_what_excludes_only_modules_around_layers_says_so():
    with pytest.raises(PlacementError, match=r"inner.*'inner\.\*'"):
        er.relax(nn.ModuleDict({"inner": nn.ModuleDict({"a": Scaled("1x1o", "1x0e")})}), exclude="inner")
    with pytest.raises(PlacementError, match=r"a\.tp .*exclude 'a'"):
        er.relax(nn.ModuleDict({"a": Scaled("1x1o", "1x0e")}), exclude="a.tp")


def test_a_declaration_for_a_child_wins():
    rep = from_irreps("4x0e+3x1o"), from_irreps("2x0e+2x1o")
    relaxation = er.relax(node(), Layers(declare=(er.relaxation.Linear("plain.tp", *rep),)))
    assert "plain.tp" in relaxation.residuals
    assert "plain" not in relaxation.residuals
    assert relaxation["plain.tp"].site.family == "plain-linear"
    rows = {row.path: row for row in relaxation.summary().rows}
    assert rows["plain"].status == "skipped"
    assert "declared" in rows["plain"].reason


def test_copies_are_surveyed_as_their_originals_are():
    relaxation = er.relax(node())
    again = er.relaxation_of(copy.deepcopy(relaxation.model))
    assert [row.path for row in again.summary().with_status("relaxed")] == PATHS


def test_residuals_fold_through_wrappers_that_multiply_by_constants():
    model = nn.ModuleDict({"layer": Scaled("4x0e+3x1o", "2x0e+2x1o")})
    x = torch.randn(6, 13), sample()[1]
    kind = EquivariantDense("normal", 0.3)
    er.relax(model, Layers(residual=kind)).set_gamma(1.0)
    with pytest.raises(UnfoldableError, match="constant"):
        er.project(model, mode="fold")
    er.project(model)
    relaxation = er.relax(model, Layers(residual=kind, constants=(Constant("layer", 0, 1.0),)))
    relaxation.set_gamma(1.0)
    relaxed = model["layer"](*x)
    report = er.project(model, mode="fold")
    assert report.residuals[0].error < 1e-12
    assert report.residuals[0].size > 0.1
    torch.testing.assert_close(model["layer"](*x), relaxed, rtol=1e-12, atol=1e-12)


def test_wrappers_that_do_more_than_to_multiply_refuse_to_fold():
    class Curved(Scaled):
        def forward(self, x, y):
            return self.product(x, y) ** 3

    model = nn.ModuleDict({"curved": Curved("1x1o", "1x0e+1x1o")})
    relaxation = er.relax(model, Layers(constants=(Constant("curved", 0, 1.0),)))
    randomise(relaxation)
    with pytest.raises(UnfoldableError, match=r"curved \(Curved\).*constants"):
        er.project(model, mode="fold")


def test_outputs_of_another_shape_are_refused_and_never_broadcast():
    """(3, 1) + (3, 8) is (3, 8): N1."""

    class Narrow(Scaled):
        def forward(self, x, y):
            return self.product(x, y).sum(-1, keepdim=True)

    model = nn.ModuleDict({"narrow": Narrow("2x0e+2x1o", "2x0e+2x1o")})
    relaxation = er.relax(model)
    for gamma in (0.0, 1.0):
        relaxation.set_gamma(gamma)
        with pytest.raises(RepresentationError, match=re.escape("narrow (Narrow)")) as caught:
            model["narrow"](torch.randn(3, 8), torch.randn(3, 4))
        assert all(word in str(caught.value) for word in ("(3, 8)", "(3, 1)", "exclude=('narrow',)"))
    with relaxation.strict():
        assert model["narrow"](torch.randn(3, 8), torch.randn(3, 4)).shape == (3, 1)


@pytest.mark.parametrize("given", ["dict out", "integers", "dict in"])
def test_calls_that_give_or_take_no_features_are_refused_with_the_path(given):
    class Odd(Scaled):
        def forward(self, x, y):
            x = x["x"] if isinstance(x, dict) else x
            out = self.product(x, y)
            return {"out": out} if given == "dict out" else out.long() if given == "integers" else out

    model = nn.ModuleDict({"odd": Odd("2x0e+2x1o", "2x0e+2x1o")})
    er.relax(model)
    x = torch.randn(3, 8)
    with pytest.raises(RepresentationError, match=r"odd \(Odd\).*exclude=\('odd',\)"):
        model["odd"]({"x": x} if given == "dict in" else x, torch.randn(3, 4))


class Casting(nn.Module):
    """Keeps float64 weights, takes float32 features and gives them back."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3, dtype=torch.float64))

    def forward(self, x):
        return (x.double() @ self.weight.T).float()


def test_networks_that_cast_inside_keep_their_dtypes():
    model = nn.ModuleDict({"cast": Casting()})
    x = torch.randn(5, 3, dtype=torch.float32)
    relaxation = er.relax(model, Layers(declare=(er.relaxation.Linear("cast", vector(O(3)), vector(O(3))),)))
    before = model["cast"](x)
    randomise(relaxation)
    after = model["cast"](x)
    assert after.dtype == torch.float32
    expected = before.double() + x.double() @ relaxation["cast"].map.weight.T
    torch.testing.assert_close(after.double(), expected, rtol=1e-5, atol=1e-5)


def test_the_check_lets_autocast_pass():
    layer = nn.ModuleDict({"map": nn.Linear(3, 3, bias=False)}).float()
    relaxation = er.relax(layer, Layers(declare=(er.relaxation.Linear("map", vector(O(3)), vector(O(3))),)))
    randomise(relaxation)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer["map"](torch.randn(4, 3, dtype=torch.float32))
    assert out.dtype == torch.bfloat16


@pytest.mark.parametrize("layer", ["tensor product", "wrapper", "linear"])
def test_arguments_by_keyword_are_read_by_the_names_of_forward_m14(layer):
    irreps = "1x0e+1x1o"
    built = {
        "tensor product": lambda: o3.FullyConnectedTensorProduct(irreps, irreps, irreps),
        "wrapper": lambda: Scaled(irreps, irreps),
        "linear": lambda: o3.Linear(irreps, irreps, internal_weights=False, shared_weights=False),
    }[layer]()
    relaxation = er.relax(built)
    randomise(relaxation)
    x, y = torch.randn(5, 4), torch.randn(5, 4)
    if layer == "linear":
        weight = torch.randn(5, built.weight_numel)
        assert torch.equal(built(weight=weight, features=x), built(x, weight))
    else:
        assert torch.equal(built(y=y, x=x), built(x, y))


def test_quadratic_and_channelled_maps_of_e3nn_are_refused_m13_m17():
    model = nn.ModuleDict(
        {
            "square": o3.TensorSquare("2x0e+1x1o", "2x0e+1x1o"),
            "channels": o3.Linear("2x0e+1x1o", "2x0e+1x1o", f_in=3, f_out=4),
            "linear": o3.Linear("2x0e+1x1o", "2x0e+1x1o"),
        }
    )
    relaxation = er.relax(model)
    assert list(relaxation.residuals) == ["linear"]
    rows = {row.path: row for row in relaxation.summary().rows}
    assert "quadratic" in rows["square"].reason
    assert "f_in" in rows["channels"].reason
    assert model["channels"](torch.randn(2, 3, 5)).shape == (2, 4, 5)


def test_maps_of_invariants_have_nothing_to_relax_n7():
    model = nn.ModuleDict({"scalars": o3.Linear("4x0e", "3x0e"), "mixed": o3.Linear("4x0e", "3x0e+1x1o")})
    relaxation = er.relax(model)
    assert list(relaxation.residuals) == ["mixed"]
    rows = {row.path: row for row in relaxation.summary().rows}
    assert rows["scalars"].status == "skipped"
    assert "invariants" in rows["scalars"].reason


def test_layers_without_odd_irreps_break_rotations_alone_n7():
    model = nn.ModuleDict({"even": o3.Linear("2x0e+2x1e", "1x1e"), "odd": o3.Linear("2x0e+2x1o", "1x1o")})
    relaxation = er.relax(model)
    assert {row.path: row.relaxes for row in relaxation.summary().with_status("relaxed")} == {
        "even": "SO(3)",
        "odd": "O(3)",
    }


def test_gates_inside_a_wrapper_are_found_through_subclasses():
    model = nn.ModuleDict({"gated": Gated("2x0e+2x1o", 2, 2), "dicts": OfDicts("2x0e+2x1o", "1x0e+1x1o")})
    assert list(er.relax(model).residuals) == ["gated.tp", "dicts.fc_tensor_product"]
