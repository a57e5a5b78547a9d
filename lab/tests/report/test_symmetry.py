"""The symmetry report: numbers come from the right places, and sentences say no more than they do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from equirelax_lab.report.runs import sizes
from equirelax_lab.report.symmetry import (
    deployed,
    findings,
    page,
    symmetry_study,
    symmetry_table,
)
from equirelax_lab.report.symmetry_picture import draw_symmetry
from equirelax_lab.training.dynamics import dynamics
from PIL import Image

from equirelax.auditing.bounds import NetworkBounds
from equirelax.auditing.breaking import Breaking

NO_CHAIN = NetworkBounds("EGNN is not a chain of layers (nn.Sequential) with known Lipschitz constants")


def metrics(
    kinds: tuple[str, ...] = ("gamma", "multiplier", "slack", "weight"), epochs: int = 20
) -> list[dict[str, str]]:
    """Two residuals whose values tell kind, residual and epoch."""
    base = {"gamma": 1.0, "multiplier": 2.0, "slack": 3.0, "weight": 4.0}
    found = []
    for epoch in range(epochs):
        row = {"epoch": str(epoch), "val/projected": "1.0", "val/relaxed": "1.0"}
        for kind in kinds:
            for i, key in enumerate(("a", "b:x")):
                row[f"{kind}/{key}"] = str(base[kind] + 0.1 * i + epoch / 1000)
        found.append(row)
    return found


def result(method: str = "resilient", gammas: tuple[float, float] = (1.01, 1.11)) -> dict[str, Any]:
    return {
        "benchmark": "mocap",
        "model": "egnn",
        "method": method,
        "seed": 0,
        "epochs": 20,
        "selected_epoch": 11,
        "gammas": dict(zip(("a", "b:x"), gammas, strict=True)),
        "equivariance_error": {"before": 0.2, "after": 1e-16, "group": "E(3)", "dtype": "float64"},
        "scaled_down": None,
    }


def measured(alone: tuple[float, float] = (0.1, 0.02), **changes: Any) -> tuple[Breaking, ...]:
    one = Breaking("a", "EGNNLayer", "E(3)", 1.01, 2.0, 0.3, 0.4, None, "it has a bias", alone[0])
    two = Breaking("b:x", "EGNNLayer", "E(3)", 1.11, None, None, None, 0.5, "", alone[1])
    return tuple(Breaking(**{**vars(b), **changes}) for b in (one, two))


def study(**changes: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "result": result(),
        "rows": metrics(),
        "measured": measured(),
        "bounds": NO_CHAIN,
        "samples": 8,
    }
    return symmetry_study(**{**given, **changes})


def test_values_are_those_of_the_selected_epoch_and_of_the_end() -> None:
    found = study()
    first, second = found["residuals"]
    assert (first["key"], second["key"]) == ("a", "b:x")
    assert first["gamma"] == 1.01
    assert first["multiplier"] == pytest.approx(2.010)
    assert second["slack"] == pytest.approx(3.110)
    assert first["end"] == pytest.approx({"gamma": 1.019, "multiplier": 2.019, "slack": 3.019})
    assert first["size"] == pytest.approx(2.02)
    assert second["size"] is None
    assert found["dynamics"] == dynamics(metrics())
    assert found["deployed"] == "relaxed"
    assert json.loads(json.dumps(found)) == found


def test_the_table_says_na_where_there_is_nothing() -> None:
    lines = symmetry_table(study()).markdown().splitlines()
    assert lines[0].startswith("| residual | relaxes | gamma | slack u | multiplier | norm of W |")
    assert lines[2] == "| a | E(3) | 1 | 3 | 2 | 2 | 2 | 0.3 | 0.4 | n/a | 0.1 |"
    assert lines[3] == "| b:x | E(3) | 1.1 | 3.1 | 2.1 | n/a | n/a | n/a | n/a | 0.5 | 0.02 |"
    plain = symmetry_table(study(result=result("scheduled"), rows=metrics(("gamma",)))).head
    assert "slack" not in plain
    assert "multiplier" not in plain


def test_without_weights_the_measured_columns_are_left_out() -> None:
    found = study(measured=None, bounds=None)
    assert "norm of W" not in symmetry_table(found).head
    assert symmetry_table(found).markdown().splitlines()[2] == "| a |  | 1 | 3 | 2 |"
    text = "\n".join(findings(found))
    assert "best.ckpt" in text
    assert "Bound" not in text


def test_the_deployed_form_comes_first() -> None:
    kept = deployed(study())
    assert kept.startswith(
        "Deployed with its residuals: the relative equivariance error of the output under E(3) is 2.0e-01."
    )
    assert "Projected it is 1.0e-16." in kept
    assert "epoch 11 of 20" in kept
    given = deployed(study(result=result("ace")))
    assert given.startswith("Deployed projected: ")
    assert (
        "E(3) is 1.0e-16, exact to rounding in float64. As it is trained, with its residuals, it is 2.0e-01."
        in given
    )
    unknown = deployed(study(result={**result("ace"), "equivariance_error": None}))
    assert "error" not in unknown
    text = page(study(), "A title", "equirelax symmetry RUN")
    assert text.index(kept) < text.index("| residual |") < text.index("`equirelax symmetry RUN`")


def test_sentences_name_the_residual_that_is_measured_to_break_most() -> None:
    text = "\n".join(findings(study()))
    assert "a breaks it most: alone it gives the output an error of 1.0e-01." in text
    assert "The multipliers name no layer: they are alike" in text
    assert "no proof that they have converged" in text
    assert "Bounds n/a: a: it has a bias." in text
    assert "n/a: EGNN is not a chain" in text
    rows = metrics()
    for row in rows:
        row["multiplier/b:x"] = "9.0"
    other = "\n".join(findings(study(rows=rows, result=result(gammas=(0.2, 1.11)))))
    assert "gamma alone would have named b:x (1.11, error 2.0e-02)" in other
    assert "that of b:x (9, slack 3.11; the smallest is 2.01)" in other


def test_sentences_claim_nothing_where_there_is_nothing() -> None:
    quiet = "\n".join(findings(study(measured=measured(alone=(3e-16, 2e-8)))))
    assert "no residual breaks the symmetry measurably" in quiet
    assert "breaks it most" not in quiet
    fixed = "\n".join(findings(study(result=result("scheduled"), rows=metrics(("gamma", "weight")))))
    assert "its gamma is set, not learnt from the data" in fixed
    assert "multiplier" not in fixed.replace("no multipliers", "")


@pytest.mark.parametrize(
    ("course", "verdict"),
    [
        (lambda e: 2.0, "they hardly move there, which is no proof that they have converged"),
        (lambda e: e / 20, "they still move"),
        (lambda e: (-1.0) ** e, "they go around zero"),
    ],
)
def test_what_is_said_of_multipliers(course: Any, verdict: str) -> None:
    rows = metrics()
    for epoch, row in enumerate(rows):
        row["multiplier/a"] = row["multiplier/b:x"] = str(course(epoch))
    assert any(f": {verdict}." in line for line in findings(study(rows=rows)))


def test_bounds_of_a_network_that_has_them() -> None:
    bounds = NetworkBounds("", ((1.0, 1.0), (1.0, 1.0)))  # (m, g b) of every layer
    text = page(study(bounds=bounds), "A title", "equirelax symmetry RUN")
    assert text.startswith("# A title\n\n**Deployed ")
    # 2 g b L (m + g b)^(L-1) and (m + g b)^L - m^L with m = 1, b = 2, g = 0.5, L = 2
    assert "equivariance error 8, distance to the projected network 3." in text
    assert "8 group elements" in text


@pytest.mark.parametrize(
    "kinds",
    [
        ("gamma",),
        *(
            pytest.param(kinds, marks=pytest.mark.slow)
            for kinds in (("gamma", "multiplier"), ("gamma", "multiplier", "slack", "weight"))
        ),
    ],
)
@pytest.mark.parametrize("known", [True, False])
def test_pictures(kinds: tuple[str, ...], known: bool, tmp_path: Path) -> None:
    rows = metrics(kinds)
    found = study(rows=rows, measured=measured() if known else None)
    draw_symmetry(tmp_path / "symmetry.png", found, rows, "A run", "equirelax symmetry RUN")
    with Image.open(tmp_path / "symmetry.png") as picture:
        assert picture.size[0] > 1000
        assert (picture.size[1] > 700) is known
        assert len(picture.convert("RGB").getcolors(2**24)) > 30


def test_a_picture_of_nothing_but_zeros(tmp_path: Path) -> None:
    zero = measured(alone=(0.0, 0.0), gamma=0.0, weight=0.0, share=0.0, added=0.0, bound=0.0)
    found = study(measured=zero, result=result(gammas=(0.0, 0.0)))
    draw_symmetry(tmp_path / "symmetry.png", found, metrics(), "A run", "equirelax symmetry RUN")
    assert (tmp_path / "symmetry.png").stat().st_size > 1000


def test_sizes_are_products_of_gamma_and_the_norm_of_the_weight() -> None:
    assert sizes(metrics(("gamma",))) == {}
    found = sizes(metrics())
    assert found["a"][1] == pytest.approx(4.0)
    assert found["b:x"][11] == pytest.approx(1.11 * 4.11)
