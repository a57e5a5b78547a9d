"""What a person sees of a relaxation: tables that fit a terminal, notebooks, warnings, a picture."""

from __future__ import annotations

import itertools
import warnings
from types import SimpleNamespace

import pytest
import torch
from handle_toys import DECLARED, Pair, Part, X, both_relaxed, fill, linear
from torch import nn

import equirelax as er
from equirelax.errors import RelaxationStateError
from equirelax.relaxation.history import LIMIT, History
from equirelax.relaxation.residual import enrol

pytestmark = pytest.mark.usefixtures("float64")


def deep(blocks: int) -> er.Relaxation:
    return er.relax(nn.Sequential(*(Part() for _ in range(blocks)), nn.Bilinear(2, 2, 2)), DECLARED)


@pytest.mark.parametrize("blocks", [3, 40])
def test_a_summary_fits_a_terminal_and_hides_nothing_unnamed(blocks):
    summary = deep(blocks).summary()
    text = str(summary)
    assert len(text.splitlines()) <= 40
    assert f"{2 * blocks} relaxed" in text
    assert "Bilinear" in text
    if blocks == 40:
        assert "{0..39}.a (40)" in text
    assert sum(row.path in summary.full() for row in summary.rows) == len(summary.rows)
    assert len(summary.full().splitlines()) == len(summary.rows) + 4


def test_many_different_modules_are_named_where_they_do_not_fit():
    names = [f"{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(60)]
    model = nn.ModuleDict({name: linear() for name in names} | {f"{name}_act": nn.Tanh() for name in names})
    text = str(er.relax(model, DECLARED).summary())
    assert len(text.splitlines()) <= 40
    assert "not shown, relaxed: " in text
    assert "not shown, skipped: " in text
    assert "more; see full()" in text


def test_notebooks_get_tables():
    model, relaxation, _ = both_relaxed()
    for page in (
        relaxation._repr_html_(),
        relaxation.summary()._repr_html_(),
        er.project(model)._repr_html_(),
    ):
        assert page.startswith("<table>")
        assert "enc.a" in page
        assert "<td>" in page


def test_item_6_a_residual_that_no_call_reaches_is_named_once():
    class Fused(Part):
        def forward(self, x):
            return nn.functional.linear(self.a(x), self.b.weight)

    model = Fused()
    relaxation = er.relax(model, DECLARED)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(X)
        with pytest.raises(UserWarning, match=r"residual of b \(Linear\) in the last step"):
            relaxation.after_step()
        relaxation["b"].enabled = False
        for _ in range(3):
            model(X)
            relaxation.after_step()
        relaxation["b"].enabled = True
        model(X)
        relaxation.after_step()  # said already


def test_project_and_prune_let_go_of_the_method():
    model, relaxation, _ = both_relaxed()
    calls = []

    class Driver:
        def forgotten(self) -> str:
            return "ACE never stepped"

        def detach(self) -> None:
            calls.append("detached")

    driver = Driver()
    enrol(driver, [residual for _, residual in relaxation][:2])
    relaxation["dec.a"].set_gamma(0.0)
    relaxation.prune()
    assert calls == ["detached"]
    with pytest.warns(UserWarning, match="ACE never stepped"):
        er.project(model)
    assert calls == ["detached", "detached"]


def test_a_history_is_bounded_and_evenly_spaced():
    history = History()
    for i in range(4 * LIMIT):
        history.step(torch.tensor([float(i), 0.0]))
    steps, values = history.curves()
    assert len(steps) <= LIMIT
    assert {b - a for a, b in itertools.pairwise(steps)} == {steps[0]}
    assert values[:, 0].tolist() == [step - 1.0 for step in steps]


def test_a_plot_has_every_strength_and_the_recorded_errors(tmp_path):
    pytest.importorskip("matplotlib")
    model = Pair()
    relaxation = fill(er.relax(model, DECLARED))
    with pytest.raises(RelaxationStateError, match="nothing to plot"):
        relaxation.plot()
    for gamma in (0.5, 0.4, 0.3):
        relaxation.set_gamma(gamma)
        relaxation.record(SimpleNamespace(before=SimpleNamespace(relative=gamma / 10), after=None))
        model(X)
        relaxation.after_step()
    relaxation.record(0.02)
    figure = relaxation.plot()
    strengths, errors = figure.axes
    lines = {line.get_label(): line for line in strengths.get_lines()}
    assert [name for name in lines if not name.startswith("_")] == list(relaxation.residuals)
    assert list(lines["enc.a"].get_xdata()) == [1, 2, 3]
    assert list(lines["dec.b"].get_ydata()) == pytest.approx([0.5, 0.4, 0.3])
    assert list(errors.get_lines()[0].get_ydata()) == pytest.approx([0.05, 0.04, 0.03, 0.02])
    assert list(errors.get_lines()[0].get_xdata()) == [0, 1, 2, 3]
    figure.savefig(tmp_path / "training.png")
    relaxation["enc.b"].set_gamma(0.0)
    relaxation.prune()
    assert len(relaxation.plot().axes[0].get_lines()) == 4  # three strengths and the line at 0
