"""Inputs of an audit: representations in every form or from the model, and samples that are one argument."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from equirelax.auditing import audit, breaking, label_free
from equirelax.errors import AuditError
from equirelax.symmetry import SE, SO, Cyclic, E, GridField, O, On, positions, regular, vector
from equirelax.testing import assert_equivariant

torch.set_num_threads(1)


class Norms(nn.Module):
    """2x0e+1x1o -> 1x0e+1x1o."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[..., :1] * x[..., 1:2], x[..., 2:] * x[..., :1]], dim=-1)


def test_irreps_as_text() -> None:
    """Text is a representation."""
    x = torch.randn(4, 5)
    report = audit(Norms(), x, "2x0e + 1x1o", "1x0e+1x1o", samples=4, lie=False)
    assert report.equivariant
    assert report.group == "O(3)"
    assert not audit(Norms(), x, "2x0e+1x1o", "1x0e+1x1e", samples=4, lie=False).equivariant
    assert audit(Norms(), x, "2x0e+1x1o", "1x0e+1x1e", SO(3), samples=4, lie=False).equivariant
    assert assert_equivariant(Norms(), x, "2x0e+1x1o", "1x0e+1x1o").equivariant


def test_text_takes_the_group_of_its_neighbours() -> None:
    def model(h: Tensor, x: Tensor) -> Tensor:
        return (x - x.mean(0)) * h[:, :1]

    sample = (torch.randn(4, 2), torch.randn(4, 3))
    for group in (SE(3), E(3)):
        report = audit(model, sample, ("2x0e", positions(group)), "1x1o", samples=4, lie=False)
        assert report.equivariant
        assert report.group == group.name
    assert audit(model, sample, ("2x0e", positions(E(3))), "1o", SE(3), samples=4, lie=False).group == "SE(3)"


def test_irreps_of_e3nn_as_they_are() -> None:
    """e3nn's Irreps are a tuple, but not a tree."""
    o3 = pytest.importorskip("e3nn.o3")
    linear = o3.Linear("2x0e+1x1o", "1x0e+2x1o")
    x = torch.randn(3, 5)
    given = audit(linear, x, linear.irreps_in, linear.irreps_out, samples=3, lie=False, per_layer=False)
    assert given.equivariant
    own = audit(linear, x, samples=3, lie=False, per_layer=False)
    assert (own.equivariant, own.inputs) == (True, given.inputs)
    product = o3.FullyConnectedTensorProduct("1x0e+1x1o", "1x0e+1x1o", "1x1o")
    both = audit(product, (torch.randn(3, 4), torch.randn(3, 4)), samples=3, lie=False, per_layer=False)
    assert both.equivariant
    assert set(both.inputs) == {"input[0]", "input[1]"}
    assert assert_equivariant(linear, x).equivariant
    assert label_free(linear, [x], samples=3).relative < 1e-6
    declared = audit(
        nn.Sequential(linear, nn.Linear(7, 3)),
        x,
        linear.irreps_in,
        "1x1o",
        layer_reps={"0": linear.irreps_out},
    )
    assert declared.first_break == "1"


def test_what_is_nothing_of_the_kind_is_refused_with_what_is_accepted() -> None:
    x = torch.randn(4, 5)
    with pytest.raises(AuditError, match=r"in_rep\[1\]: .*3 \(int\).*e3nn Irreps") as raised:
        audit(lambda x, y: x, (x, x), ("2x0e+1x1o", 3), "2x0e+1x1o")
    assert "None" in str(raised.value)
    with pytest.raises(AuditError, match=r"out_rep: .*'1x1q'"):
        audit(torch.neg, x, "2x0e+1x1o", "1x1q")
    with pytest.raises(AuditError, match=r"layer_reps\['0'\]"):
        audit(nn.Sequential(nn.Identity()), x, "5x0e", "5x0e", layer_reps={"0": 7})


def test_a_model_that_says_nothing() -> None:
    with pytest.raises(AuditError, match=r"in_rep is not given, and Norms .*irreps_in"):
        audit(Norms(), torch.randn(4, 5))
    with pytest.raises(AuditError, match="out_rep is not given"):
        audit(Norms(), torch.randn(4, 5), "2x0e+1x1o")


def test_a_models_own_representations() -> None:
    class Own(Norms):
        in_rep, out_rep = On("2x0e+1x1o"), On("1x0e+1x1o")  # type: ignore[arg-type]

    assert audit(Own(), torch.randn(4, 5), samples=3, lie=False).equivariant
    turns = GridField(regular(Cyclic(4)))
    assert turns.dim == 4


class OnDicts(nn.Module):
    """Like NequIP's, MACE's and SevenNet's networks: a dict in, the same dict with more entries out."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, data: dict[str, Tensor], training: bool = False) -> dict[str, Tensor]:
        data["vectors"] = self.scale * (data["pos"] - data["pos"].mean(0)) * data["charge"]
        data["energy"] = data["vectors"].square().sum()
        return data


def test_a_dict_is_one_argument() -> None:
    """Networks on dicts are not called with keywords that they do not have."""
    sample = {"pos": torch.randn(5, 3), "charge": torch.randn(5, 1), "species": torch.arange(5)}
    in_rep = {"pos": positions(E(3))}
    out_rep = {"pos": positions(E(3)), "vectors": vector(E(3))}
    report = audit(nn.Sequential(OnDicts()), sample, in_rep, out_rep, samples=4)
    assert report.equivariant
    assert set(sample) == {"pos", "charge", "species"}
    assert report.before.outputs.keys() >= {"output.energy", "output.vectors", "output.species"}
    assert any(row.path == "0" for row in report.layers)
    assert audit(OnDicts(), (sample,), (in_rep,), out_rep, samples=2, lie=False).equivariant
    compiled = torch.compile(OnDicts(), backend="eager")
    assert audit(compiled, sample, in_rep, out_rep, samples=2, lie=False, per_layer=False).equivariant
    wrong = audit(nn.Sequential(OnDicts()), sample, in_rep, {"pos": positions(E(3))}, samples=4)
    assert not wrong.equivariant
    assert wrong.worst.output == "output.vectors"
    assert any("output.vectors" in note and "out_rep" in note for note in wrong.notes)


def test_a_mapping_of_forwards_parameters_is_keywords() -> None:
    def model(x: Tensor, scale: float = 1.0, *, shift: Tensor | None = None) -> Tensor:
        return scale * x if shift is None else scale * x + shift

    x = torch.randn(4, 3)
    assert audit(model, {"x": x, "scale": 3.0}, {"x": vector(O(3))}, vector(O(3)), lie=False).equivariant
    v = vector(O(3))
    assert audit(model, {"x": x, "shift": x}, {"x": v, "shift": v}, v, lie=False).equivariant

    def rest(**tensors: Tensor) -> Tensor:
        return tensors["a"] + tensors["b"]

    assert audit(rest, {"a": x, "b": x}, {"a": v, "b": v}, v, lie=False).equivariant


def test_irreps_by_name_of_a_network_on_dicts() -> None:
    """NequIP's modules hold a dict of irreps, whose names may be absent in the sample."""
    o3 = pytest.importorskip("e3nn.o3")
    model = OnDicts()
    model.irreps_in = {
        "pos": o3.Irreps("1x1o"),
        "charge": o3.Irreps("1x0e"),
        "absent": o3.Irreps("1o"),
        "species": None,
    }
    model.irreps_out = {**model.irreps_in, "vectors": o3.Irreps("1o"), "missing": o3.Irreps("0e")}
    sample = {"pos": torch.randn(5, 3), "charge": torch.randn(5, 1), "species": torch.arange(5)}
    report = audit(model, sample, samples=3, lie=False)
    assert report.equivariant
    assert report.inputs["input.pos"].startswith("1x1o")
    assert report.outputs["output.vectors"].startswith("1x1o")


def test_breaking_takes_text() -> None:
    from equirelax_lab.models.vector_neurons import VNLinear

    import equirelax as er

    network = VNLinear(3, 2).double()
    relaxation = er.relax(network, residual=er.Dense("normal", std=0.1))
    relaxation.set_gamma(0.5)
    found = breaking(relaxation, torch.randn(5, 3, 3), "1x1o", "1x1o", SO(3), samples=3)
    assert found[0].alone > 1e-3
