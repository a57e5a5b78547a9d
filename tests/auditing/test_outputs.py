"""Nothing is called equivariant by mistake: sizes, kinds of numbers, coarse tensors, far and small coordinates."""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from equirelax.auditing import AuditReport, audit, label_free
from equirelax.auditing.norms import largest, norm, relative_error, root_of_squares
from equirelax.errors import AuditError, NonFiniteError
from equirelax.symmetry import (
    SE,
    SO,
    Cyclic,
    E,
    GridField,
    Lorentz,
    O,
    On,
    Symmetric,
    positions,
    trivial,
    vector,
)

torch.set_num_threads(1)
V = vector(SO(3))


def short(model: Any, x: Any, in_rep: Any = V, out_rep: Any = V, **settings: Any) -> AuditReport:
    return audit(model, x, in_rep, out_rep, samples=4, per_layer=False, **settings)


def bent(x: Tensor, by: float = 1.5) -> Tensor:
    """Not equivariant: one component is stretched."""
    return x * torch.tensor([1.0, 1.0, by], dtype=x.dtype)


# Sizes


@pytest.mark.parametrize("size", [1e-300, 1e-170, 1e-20, 1e20, 1e170, 1e300])
def test_an_error_does_not_depend_on_the_size_of_the_output(size: float) -> None:
    """Norms neither overflow to NaN nor underflow to 0."""
    x = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = short(bent, x)
    found = short(lambda x: bent(x) * size, x)
    assert found.relative == pytest.approx(expected.relative, rel=1e-9)
    assert found.lie.relative == pytest.approx(expected.lie.relative, rel=1e-6)
    assert found.e_prime == pytest.approx(size * expected.e_prime, rel=1e-9)
    assert not found.equivariant
    assert short(lambda x: x * size, x).equivariant
    json.dumps(found.to_dict())


def test_the_layer_is_found_whatever_the_sizes() -> None:
    class Scale(nn.Module):
        def __init__(self, by: float) -> None:
            super().__init__()
            self.by = by

        def forward(self, x: Tensor) -> Tensor:
            return x * self.by

    class Bent(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return bent(x)

    for size in (1e-200, 1e200):
        model = nn.Sequential(Scale(size), Bent(), Scale(1.0))
        assert audit(model, torch.randn(4, 3), V, V, samples=3).first_break == "1"


def test_what_overflows_when_it_is_transformed_is_an_error() -> None:
    with pytest.raises(NonFiniteError, match="overflows"):
        short(lambda x: torch.full_like(x, 1.7e308), torch.randn(2, 3))


def test_norms_against_plain_ones() -> None:
    x = torch.randn(5, 4, dtype=torch.float64)
    y = torch.randn(5, 4, dtype=torch.float64)
    assert norm(x) == pytest.approx(float(x.norm()), rel=1e-14)
    assert norm(x * 1e-300) == pytest.approx(float(x.norm()) * 1e-300, rel=1e-12)
    assert norm(torch.full((2,), 5e-324, dtype=torch.float64)) > 0
    assert norm(x[:0]) == 0
    expected = float((x - y).norm() / max(x.norm(), y.norm()))
    assert relative_error(x, y) == pytest.approx(expected, rel=1e-14)
    assert relative_error(x * 1e200, -x * 1e200) == pytest.approx(2.0)
    assert relative_error(0 * x, 0 * x) == 0
    assert root_of_squares([3e200, 4e200]) == pytest.approx(5e200)
    assert math.isnan(largest([1.0, math.nan, 2.0]))
    assert math.isnan(largest([math.nan, 1.0]))
    assert largest([]) == 0


# Kinds of numbers


def test_complex_outputs_are_compared_as_complex() -> None:
    """Also beside an equivariant output."""

    def good(x: Tensor) -> tuple[Tensor, Tensor]:
        return x, torch.complex(x.square().sum(-1), x.square().sum(-1).sqrt())

    x = torch.randn(4, 3)
    assert short(good, x, V, (V, None)).equivariant
    report = short(lambda x: (x, torch.complex(x[:, 0], x[:, 1])), x, V, (V, None))
    assert report.worst.output == "output[1]"
    assert report.lie.relative > 1e-3
    turning = short(lambda x: torch.complex(x, 2 * x), x, V, V)
    assert turning.equivariant
    assert turning.lie.relative < 1e-9
    assert not short(lambda x: torch.complex(x, bent(x)), x, V, V).equivariant
    phase = torch.complex(torch.randn(4, 3), torch.randn(4, 3))
    assert short(lambda z: z.abs().square().sum(-1), phase, V, None).equivariant
    assert not short(lambda z: z.real, phase, V, None).equivariant
    assert "'1j" not in json.dumps(report.to_dict())
    with pytest.raises(AuditError, match="complex64"):
        short(lambda z: z, phase, positions(E(3)), positions(E(3)))


@pytest.mark.parametrize("kind", [torch.int64, torch.int16, torch.bool, torch.uint8])
def test_whole_numbers_are_right_or_wrong(kind: torch.dtype) -> None:
    """Also beside an equivariant output."""
    x = torch.randn(6, 3)
    right = short(lambda x: (x, (x.norm(dim=-1) > 1).to(kind)), x, V, (V, None))
    assert right.equivariant
    assert "compared exactly" in right.outputs["output[1]"]
    wrong = short(lambda x: (x, (x[:, 0] > 0).to(kind)), x, V, (V, None))
    assert wrong.before.outputs == {"output[0]": pytest.approx(0, abs=1e-12), "output[1]": 1.0}
    assert wrong.worst.output == "output[1]"
    one = short(lambda x: 10**9 * torch.ones(9, dtype=torch.int64) + (x[0, 0] > x.norm()), x, V, None)
    assert one.equivariant
    count = short(lambda x: 10**9 + (x[:, 0] > 0).sum(), x, V, None)
    assert count.relative == 1.0


def test_numbers_of_python_and_numpy_are_compared() -> None:
    """Also beside an equivariant output."""
    x = torch.randn(4, 3, dtype=torch.float64)
    several = (V, *[None] * 5)
    assert short(lambda x: (x, float(x.norm()), 3, True, 2j, np.float32(1.5)), x, V, several).equivariant
    wrongs = (lambda x: float(x[0, 0]), lambda x: int(1e6 * x[0, 0]), lambda x: bool(x[0, 0] > x[1, 0]))
    for wrong in wrongs:
        report = audit(
            lambda x, wrong=wrong: {"good": x, "other": wrong(x)},
            x,
            V,
            {"good": V},
            per_layer=False,
            lie=False,
        )
        assert report.before.outputs["output.good"] < 1e-12
        assert report.worst.output == "output.other"
    assert report.outputs["output.other"].startswith("invariant, compared exactly")
    alone = short(lambda x: float(x[0, 0]), x, V, None)
    assert not alone.equivariant
    array = short(lambda x: {"good": x, "array": x.detach().numpy()[:, :1]}, x, V, {"good": V})
    assert array.worst.output == "output.array"


def test_what_cannot_be_compared_is_named() -> None:
    class Foreign:
        pass

    def model(x: Tensor) -> dict[str, Any]:
        return {"x": x, "label": "water", "thing": Foreign(), "none": None, "empty": x[:0]}

    report = short(model, torch.randn(4, 3), V, {"x": V})
    assert report.equivariant
    assert report.before.not_compared == (
        "output.label (str)",
        "output.thing (Foreign)",
        "output.empty (empty tensor)",
    )
    assert "output.thing (Foreign)" in str(report)
    with pytest.raises(AuditError, match=r"output \(str\)"):
        short(lambda x: "water", torch.randn(4, 3), V, None)


def test_sparse_outputs() -> None:
    x = torch.randn(4, 3)
    assert short(lambda x: (x @ x.T).to_sparse(), x, V, None).equivariant
    assert not short(lambda x: bent(x).to_sparse(), x, V, None).equivariant


def test_outputs_that_come_and_go() -> None:
    x = torch.eye(3)
    with pytest.raises(AuditError, match="come and go"):
        short(lambda x: {"x": x} if x[0, 0] == 1 else {"x": x, "y": x}, x, V, {"x": V})


def test_label_free_measures_the_floating_output() -> None:
    assert label_free(lambda x: (x, 3), [torch.randn(4, 3)], V, (V, None), samples=2).e_prime < 1e-12
    with pytest.raises(AuditError, match="2 floating tensors"):
        label_free(lambda x: (x, x), [torch.randn(4, 3)], V, (V, V))


# Coordinates


@pytest.mark.parametrize("unit", [1e-9, 1.0, 1e6])
def test_translations_are_drawn_at_the_scale_of_the_coordinates(unit: float) -> None:
    """Translations of at most 1 would hide a dependence on the origin of coordinates in the millions, and drown an equivariant
    network of coordinates in nanometres in rounding.
    """
    x = unit * torch.randn(6, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rep = positions(E(3))
    report = short(lambda x: (x / unit).square().sum(-1).add(1).log(), x, rep, None)
    assert report.relative > 0.1
    assert report.translations == pytest.approx(float(x.abs().max()))
    assert f"translations up to {report.translations:.3g}" in str(report)
    rows = {row.name: row.relative for row in report.lie.generators}
    assert rows["translation x"] > 0.01
    assert short(lambda x: x - x.mean(0), x, rep, vector(E(3))).relative < 1e-13
    assert short(lambda x: x, x, V, V).translations is None


def test_errors_of_positions_do_not_drown_in_their_distance_from_the_origin() -> None:
    """Coordinates at 1e4: the error of a step between them is relative to their spread."""
    near = torch.randn(6, 3, generator=torch.Generator().manual_seed(2))
    rep = positions(SE(3))

    def step(x: Tensor) -> Tensor:
        return x + 1e-3 * bent(x - x.mean(0))

    class Step(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return step(x)

    close = short(step, near, rep, rep)
    far = short(step, near + 1e4, rep, rep)
    assert not far.equivariant
    assert far.relative == pytest.approx(close.relative, rel=1e-2)
    assert any("from the origin" in note for note in far.notes)
    assert not close.notes
    assert audit(nn.Sequential(nn.Identity(), Step()), near + 1e4, rep, rep, samples=3).first_break == "1"
    centre = short(lambda x: x.mean(0) + 1e-3 * bent(x - x.mean(0)).abs().sum(0), near + 1e4, rep, rep)
    assert centre.relative > 1e-4
    assert short(lambda x: x.mean(0), near + 1e4, rep, rep).equivariant


def test_far_vectors_are_noted() -> None:
    x = torch.randn(6, 3, dtype=torch.float64) + 1e4
    report = short(lambda x: x, x, V, V)
    assert any("centre the sample" in note for note in report.notes)
    coarse = short(lambda x: x - x.mean(0), x, positions(E(3)), vector(E(3)), dtype=torch.float32)
    assert any("more than the tolerance" in note for note in coarse.notes)
    assert not short(lambda x: x, torch.randn(6, 3), V, V).notes


# Precision


class Holding(nn.Module):
    """x * [1, 1, 1.009] with a half-precision buffer."""

    def __init__(self, kind: torch.dtype, weight: torch.dtype | None) -> None:
        super().__init__()
        self.register_buffer("table", torch.ones(1, dtype=kind))
        if weight is not None:
            self.weight = nn.Parameter(torch.ones((), dtype=weight))

    def forward(self, x: Tensor) -> Tensor:
        return bent(x, 1.009) * self.table * getattr(self, "weight", 1.0)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("weight", [None, torch.float32, torch.float64])
def test_a_half_precision_buffer_does_not_raise_the_tolerance(
    kind: torch.dtype, weight: torch.dtype | None
) -> None:
    """One such buffer must not let errors of 1e-2 pass."""
    report = short(Holding(kind, weight), torch.randn(4, 3))
    assert not report.equivariant
    assert report.tolerance == 1e-5
    assert any(str(kind).removeprefix("torch.") in note for note in report.notes)


def test_mixed_precision() -> None:
    class Mixed(nn.Module):
        def __init__(self, *kinds: torch.dtype) -> None:
            super().__init__()
            self.weights = nn.ParameterList([nn.Parameter(torch.ones((), dtype=kind)) for kind in kinds])

        def forward(self, x: Tensor) -> Tensor:
            for weight in self.weights:
                x = x * weight
            return x

    x = torch.randn(4, 3)
    half, single, double = torch.float16, torch.float32, torch.float64
    found = [
        short(Mixed(*kinds), x).tolerance
        for kinds in ((double,), (single, double), (half, single), (half, half))
    ]
    assert found == [1e-9, 1e-5, 1e-5, 1e-2]
    assert short(Mixed(torch.bfloat16), x).tolerance == 5e-2
    assert short(Mixed(double), x, dtype=torch.float32).tolerance == 1e-5
    casts = short(lambda x: x.float(), x)
    assert casts.tolerance == 1e-5
    assert any("casts inside" in note for note in casts.notes)
    along = On(vector(O(3)), -2)
    assert short(nn.Linear(4, 2, bias=False).half(), torch.randn(5, 3, 4), along, along).equivariant


class Returns(nn.Module):
    """Gives an invariant, a vector, and something that turns without anybody saying so."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"energy": x.square().sum(), "forces": -2 * x, "edges": x[1:] - x[:-1]}


def test_chosen_outputs_alone_are_compared() -> None:
    model, x = Returns(), torch.randn(5, 3)
    whole = short(model, x, V, {"forces": V})
    assert whole.worst.output == "output.edges"
    assert not whole.equivariant
    for asked in (model, model.forward):  # a function too
        report = short(asked, x, V, {"forces": V}, outputs=["energy", "forces"])
        assert set(report.before.outputs) == {"output.energy", "output.forces"}
        assert report.equivariant
    assert set(model(x)) == {"energy", "forces", "edges"}


@pytest.mark.parametrize(
    ("outputs", "words"),
    [(["force"], "'forces'"), ("forces", "expected a list"), (["energy"], "leave them out")],
)
def test_outputs_that_are_not_there_are_named(outputs: Any, words: str) -> None:
    model = Returns() if words != "leave them out" else nn.Identity()
    with pytest.raises(AuditError, match=words):
        short(model, torch.randn(5, 3), V, None, outputs=outputs)
    assert not model._forward_hooks


def test_an_output_that_is_zero_is_named() -> None:
    """Every network passes that returns 0, as one whose last layer begins at 0."""
    report = short(lambda x: (0.0 * x, x, x.long() * 0), torch.randn(4, 3), V, (V, V, None))
    assert report.equivariant
    (note,) = [note for note in report.notes if "is 0 on the sample" in note]
    assert note.startswith("output[0] is 0")


def test_an_output_that_is_listed_as_invariant_is_not_called_unlisted() -> None:
    def model(x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"energy": x[:, :1], "forces": x}

    notes = [
        short(model, torch.randn(4, 3), V, {"forces": V, **more}).notes for more in ({"energy": None}, {})
    ]
    assert [any("does not list it" in note for note in found) for found in notes] == [False, True]


# What a sample may be


def test_masks_and_classes_of_pixels_move_with_their_grid() -> None:
    field = GridField(trivial(Cyclic(4)))
    picture = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    assert short(lambda x: x > 0, picture, field, field).equivariant
    assert short(lambda x: (2 * x).round().long(), picture, field, field).equivariant
    assert not short(lambda x: x.cumsum(-1) > 0, picture, field, field).equivariant


def test_whole_numbers_are_permuted() -> None:
    table = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sample = torch.randn(5, 3), torch.tensor([0, 1, 2, 3, 0])
    rows = On(vector(Symmetric(5)), 0)

    def embedded(x: Tensor, species: Tensor) -> Tensor:
        return x + table[species].to(x)

    assert short(embedded, sample, (rows, rows), rows).equivariant
    assert not short(embedded, sample, (rows, None), rows).equivariant
    with pytest.raises(AuditError, match=r"int64.*casts it"):
        short(lambda x: x, torch.arange(3), V, V)


def test_a_sample_that_requires_gradients_keeps_that() -> None:
    def forces(x: Tensor) -> Tensor:
        return -torch.autograd.grad((x.square().sum() ** 1.5), x, create_graph=True)[0]

    sample = torch.randn(5, 3).requires_grad_()
    report = audit(forces, sample, V, V, samples=2)
    assert report.relative < 1e-12
    assert report.lie.relative < 1e-12
    assert sample.grad is None


def test_a_model_that_wants_no_gradients_is_measured() -> None:
    def strict(x: Tensor) -> Tensor:
        assert not x.requires_grad
        return x * x.norm()

    assert short(strict, torch.randn(5, 3)).equivariant


def test_a_sparse_input_passes_through_submodules() -> None:
    class Sum(nn.Module):
        def forward(self, x: Tensor, neighbours: Tensor) -> Tensor:
            return torch.sparse.mm(neighbours, x)

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.sum = Sum()

        def forward(self, x: Tensor, neighbours: Tensor) -> Tensor:
            return self.sum(x, neighbours) + x

    report = audit(Network(), (torch.randn(5, 3), torch.ones(5, 5).to_sparse()), (V, None), V, samples=2)
    assert report.equivariant
    assert [row.path for row in report.layers].count("sum") == 1


class Closed(OrderedDict[str, Tensor]):
    """As Hugging Face's `ModelOutput`."""

    def update(self, *args: Any, **kwargs: Any) -> None:
        raise Exception("You cannot use ``update``.")


@pytest.mark.parametrize("kind", [Closed, MappingProxyType])
def test_mappings_that_cannot_be_copied_are_taken(kind: Any) -> None:
    assert short(lambda x: kind({"y": x}), torch.randn(5, 3), V, {"y": V}).equivariant


def test_a_wrapper_that_passes_everything_on_takes_what_its_module_takes() -> None:
    class Wrapper(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return self.inner(*args, **kwargs)

    class TakesData(nn.Module):
        def forward(self, data: dict[str, Tensor]) -> Tensor:
            return data["pos"]

    class TakesPositions(nn.Module):
        def forward(self, pos: Tensor) -> Tensor:
            return pos

    for inner in (TakesData(), TakesPositions()):
        assert short(Wrapper(inner), {"pos": torch.randn(5, 3)}, {"pos": V}).equivariant


def test_an_audit_leaves_other_generators_and_switches_alone() -> None:
    x = torch.randn(5, 3)
    torch.manual_seed(42)
    short(nn.Identity(), x)
    assert torch.initial_seed() == 42
    seeds = torch.cuda._lazy_seed_tracker.get_calls()
    assert not any("equirelax/auditing" in line for call in seeds if call for line in call[1])
    before = torch.backends.fp32_precision
    try:
        torch.backends.fp32_precision = "ieee"
        assert torch.backends.mkldnn.conv.fp32_precision == "ieee"
    finally:
        torch.backends.fp32_precision = before


def test_an_audit_runs_under_another_default_device() -> None:
    model, x = nn.Identity(), torch.randn(5, 3)
    with torch.device("meta"):
        assert audit(model, x, V, V, samples=2).equivariant


def test_label_free_refuses_representations_of_another_group() -> None:
    with pytest.raises(AuditError, match="does not contain"):
        label_free(nn.Identity(), [torch.randn(5, 4)], vector(Symmetric(4)), vector(Symmetric(4)), Lorentz())


def test_whole_numbers_that_are_not_exact_in_float64_are_refused() -> None:
    permuted = vector(Symmetric(4))
    with pytest.raises(AuditError, match="above"):
        short(lambda i: i % 2, torch.tensor([2**60 + 1, 3, 5, 7]), permuted, permuted)


def test_nested_tensors_inside_a_model_are_passed_by() -> None:
    class Lengths(nn.Module):
        def forward(self, rows: Tensor) -> Tensor:
            return torch.stack([row.norm() for row in rows.unbind()])

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lengths = Lengths()

        def forward(self, x: Tensor) -> Tensor:
            rows = torch.nested.as_nested_tensor([x[:2], x[2:]], layout=torch.jagged)
            return self.lengths(rows)

    assert audit(Network(), torch.randn(5, 3), V, None, samples=2).equivariant
