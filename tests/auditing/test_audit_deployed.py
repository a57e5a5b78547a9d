"""Relaxed models: the form that the report leads with, the module that breaks equivariance, and how the report is shown."""

from __future__ import annotations

import json
import re

import pytest
import torch
from torch import Tensor, nn

import equirelax as er
from equirelax.auditing import AuditReport, audit
from equirelax.errors import AuditError
from equirelax.relaxation.residual import enrol
from equirelax.symmetry import SO, Group, MatrixGroup, Representation, vector

torch.set_num_threads(1)


class Expanded(nn.Linear):
    """Mixes vectors that lie one after the other: kron(W, 1)."""

    def __init__(self, copies_in: int, copies_out: int, n: int = 3) -> None:
        super().__init__(n * copies_in, n * copies_out, bias=False)
        self.weight.data = torch.kron(torch.randn(copies_out, copies_in), torch.eye(n))


class Shrink(nn.Module):
    """As a batch norm: a nonlinear map of vectors that no attribute declares."""

    def __init__(self, by: tuple[float, ...] = (1.0, 1.0, 1.0)) -> None:
        super().__init__()
        self.by = by

    def forward(self, x: Tensor) -> Tensor:
        v = x.unflatten(-1, (-1, len(self.by)))
        return (v * torch.tensor(self.by).to(v) / (1 + v.norm(dim=-1, keepdim=True))).flatten(-2)


class Net(nn.Module):
    def __init__(self, shrink: Shrink) -> None:
        super().__init__()
        self.encoder = nn.Sequential(Expanded(4, 4), shrink)
        self.decoder = Expanded(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


def relaxed(
    space: Representation, shrink: Shrink | None = None, inner: bool = False, gamma: float = 0.5
) -> tuple[Net, er.relaxation.Relaxation]:
    torch.manual_seed(0)
    net = Net(shrink or Shrink()).double()
    path = "0" if inner else "encoder.0"
    placement = er.Layers(
        residual=er.Dense("normal", std=0.1), declare=(er.relaxation.Linear(path, 4 * space, 4 * space),)
    )
    relaxation = er.relax(net.encoder if inner else net, placement)
    relaxation.set_gamma(gamma)
    return net, relaxation


def draw(rows: int = 40, width: int = 12) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


V = vector(SO(3))


@pytest.mark.parametrize("inner", [False, True])
def test_the_relaxed_layer_breaks_and_not_the_norm_behind_it(inner: bool) -> None:
    """Also if only the part that contains it was relaxed."""
    net, _ = relaxed(V, inner=inner)
    report = audit(net, draw(), 4 * V, 2 * V, samples=4)
    assert report.first_break == "encoder.0"
    assert "relaxed, gamma = 0.5" in str(report)
    assert [row.path for row in report.layers if row.status == "BREAKS"] == ["encoder.0"]
    assert report.localisation.strict is None


def test_what_breaks_the_strict_network_is_named_beside_the_relaxed_layer() -> None:
    """And nothing else is."""
    net, relaxation = relaxed(V, Shrink((1.0, 1.0, 1.2)))
    report = audit(net, draw(), 4 * V, 2 * V, samples=4)
    assert report.first_break == "encoder.0"
    assert report.localisation.strict.path == "encoder.1"
    assert "the strict network is not equivariant either" in str(report)
    relaxation.set_gamma(0.0)
    alone = audit(net, draw(), 4 * V, 2 * V, samples=4)
    assert alone.first_break == "encoder.1"


def test_a_zero_residual_breaks_nothing() -> None:
    net, relaxation = relaxed(V, Shrink((1.0, 1.0, 1.2)))
    with torch.no_grad():
        for parameter in relaxation.residual_parameters().values():
            parameter.zero_()
    assert audit(net, draw(), 4 * V, 2 * V, samples=4).first_break == "encoder.1"


def turns_about_z() -> MatrixGroup:
    about_z = torch.zeros(1, 3, 3)
    about_z[0, 0, 1], about_z[0, 1, 0] = -1.0, 1.0
    return MatrixGroup(
        about_z, torch.diag(torch.tensor([1.0, 1.0, -1.0]))[None], "turns and a flip", compact=True
    )


def test_an_infinite_matrix_group() -> None:
    """It cannot be decided which matrices are its elements."""
    group = turns_about_z()
    space = vector(group)
    net, _ = relaxed(space)
    report = audit(net, draw(), 4 * space, 2 * space, samples=4)
    assert report.first_break == "encoder.0"
    assert report.after.relative < 1e-12 < report.before.relative
    er.project(net)
    assert audit(net, draw(), 4 * space, 2 * space, samples=4).equivariant


@pytest.mark.parametrize("group", [SO(3), turns_about_z()], ids=str)
def test_groups_given_by_generators_contain_what_their_generators_do(group: Group) -> None:
    """Representations of SO(3) serve its subgroups; those of a subgroup do not serve SO(3)."""
    about_z = turns_about_z()
    only_turns = MatrixGroup(about_z.algebra(), None, "turns", compact=True)
    x = draw(4, 3)
    assert audit(
        torch.neg, x, vector(about_z), vector(about_z), only_turns, samples=2, per_layer=False
    ).equivariant
    if group == SO(3):
        with pytest.raises(AuditError, match="does not contain"):
            audit(torch.neg, x, vector(about_z), vector(about_z), group)
    else:
        with pytest.raises(AuditError, match="does not contain"):
            audit(torch.neg, x, vector(only_turns), vector(only_turns), group)


def test_the_report_leads_with_the_projected_form() -> None:
    net, _ = relaxed(V)
    report = audit(net, draw(), 4 * V, 2 * V, samples=4)
    first, second, *_ = str(report).splitlines()
    assert (report.deployed, report.modules) == ("projected", ())
    assert "deployed projected: equivariant" in first
    assert "relaxed: NOT equivariant" in second
    assert not report.equivariant  # of the model as it is
    assert report.errors()[0] == ["error", "projected", "relaxed"]


def test_a_network_that_is_deployed_relaxed() -> None:
    """The report says how far from equivariant each module is."""
    net, _ = relaxed(V)
    report = audit(net, draw(), 4 * V, 2 * V, samples=4, deployed="relaxed")
    assert "deployed relaxed" in str(report).splitlines()[0]
    assert [one.key for one in report.modules] == ["encoder.0"]
    assert report.modules[0].alone == pytest.approx(report.relative, rel=0.5)
    assert "relaxed module" in str(report)
    found = json.loads(json.dumps(report.to_dict()))
    assert found["modules"][0]["key"] == "encoder.0"
    assert found["deployed"] == "relaxed"
    with pytest.raises(AuditError, match="deployed='strict'"):
        audit(net, draw(), 4 * V, 2 * V, deployed="strict")


def test_what_a_method_deploys() -> None:
    """A network that ResilientACE drives is deployed relaxed, one that ACE drives projected."""
    net, relaxation = relaxed(V)
    for make, form in (
        (lambda: er.ResilientACE(relaxation, dual_lr=1e-3, primal_lr=1e-3), "relaxed"),
        (lambda: er.ACE(relaxation, dual_lr=1e-3), "projected"),
    ):
        method = make()
        enrol(method, relaxation.residuals.values())
        assert audit(net, draw(), 4 * V, 2 * V, samples=2, lie=False, per_layer=False).deployed == form
    chosen = audit(net, draw(), 4 * V, 2 * V, samples=2, lie=False, per_layer=False, deployed="relaxed")
    assert chosen.deployed == "relaxed"


def test_a_model_that_is_not_relaxed() -> None:
    report = audit(Expanded(4, 2).double(), draw(), 4 * V, 2 * V, samples=2, deployed="relaxed")
    assert (report.deployed, report.modules, report.after) == ("as it is", (), None)
    assert "deployed" not in str(report)


def many() -> AuditReport:
    """A report with more of everything than fits: layers, outputs, inputs, notes."""

    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(
                nn.Sequential(Shrink((1.0, 1.1, 1.2)), Expanded(1, 1)) for _ in range(9)
            )

        def forward(self, **inputs: Tensor) -> dict[str, Tensor | str]:
            x = inputs["x0"]
            for layer in self.layers:
                x = layer(x)
            named = {f"y{i}": x * i + value for i, value in enumerate(inputs.values())}
            return {**named, "label": "<b>water</b>"}

    names = [f"x{i}" for i in range(9)]
    reps = dict.fromkeys(names, V)
    return audit(
        Wide().double(), {name: draw(5, 3) for name in names}, reps, {f"y{i}": V for i in range(9)}, samples=3
    )


def test_a_printed_report_has_at_most_forty_lines_and_names_what_it_folded() -> None:
    report = many()
    lines = str(report).splitlines()
    assert 30 < len(lines) <= 40
    folded = [line for line in lines if re.match(r"  \.\.\. \d+ more", line)]
    assert any(".layers" in line for line in folded)
    assert any(".before.outputs" in line for line in folded)
    shown = next(line for line in folded if "(.layers)" in line and "calls" in line)
    table = [line for line in lines if "BREAKS" in line or "inside" in line or "passes on" in line]
    odd = [row for row in report.layers if row.status != "ok"]
    assert len(table) + int(re.search(r"\d+", shown)[0]) == len(odd)


def test_html() -> None:
    net, _ = relaxed(V)
    for report in (many(), audit(net, draw(), 4 * V, 2 * V, samples=3, deployed="relaxed")):
        page = report._repr_html_()
        assert page.count("<table>") == page.count("</table>") >= 2
        assert report.model in page
        assert "First break" in page
        assert len(page) < 20_000
        assert "http" not in page
        assert "<script" not in page
        assert "<b>water" not in page
        assert "#fff" not in page  # colours are the surroundings', so that it can be read on dark ground too


def test_a_page_holds_everything_and_begins_with_the_deployed_form() -> None:
    net, _ = relaxed(V)
    report = audit(net, draw(), 4 * V, 2 * V, samples=3)
    page = report.to_html("audit 'nets:build(\"<b>\")'")
    assert page.startswith("<!DOCTYPE html>")
    assert "default-src 'none'" in page
    assert not re.findall(r"<script|<link|<img|http://|https://|url\(", page)
    first = re.search(r'<h1 class="(\w+)">(.+?)</h1>', page)
    assert first is not None
    assert (first[1], first[2]) == (
        "ok",
        "Net under SO(3), deployed projected: " + first[2].partition(": ")[2],
    )
    assert page.index(">projected<") < page.index(">relaxed<")
    assert "encoder.0 (Expanded)" in page
    assert "nets:build(&quot;&lt;b&gt;&quot;)" in page
    assert "<b>&" not in page


def test_plain_numbers_lead_with_the_deployed_form() -> None:
    net, _ = relaxed(V)
    found = audit(net, draw(), 4 * V, 2 * V, samples=2, lie=False, per_layer=False)
    kept = found.to_dict()
    assert list(kept)[:4] == ["model", "group", "deployed", "passes"]
    assert (found.passes, found.equivariant, kept["passes"]) == (True, False, True)
    assert list(kept["errors"]) == list(found.forms) == ["projected", "relaxed"]
    other = audit(net, draw(), 4 * V, 2 * V, samples=2, lie=False, per_layer=False, deployed="relaxed")
    assert (other.passes, list(other.to_dict()["errors"])) == (False, ["relaxed", "projected"])
