"""An asymmetry planted at one layer: the score names the layer, and gamma follows it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from equirelax_lab.tasks import planted_asymmetry
from equirelax_lab.tasks.planted_asymmetry import (
    FOLLOWED,
    LAYERS,
    PLANTED,
    Examples,
    moments,
    train_following,
    train_strict,
)

from equirelax.errors import ConfigError


def test_the_score_names_the_head_and_clears_its_neighbours():
    run = train_strict("heads.1", steps=50, records=1)
    ratios = {key: course[-1] for key, course in run["ratios"].items()}
    assert run["step"] == [0, 50]
    assert tuple(ratios) == LAYERS
    assert max(ratios, key=ratios.__getitem__) == "heads.1"
    z = {layer["key"]: layer["z"] for layer in run["score"]["layers"]}
    assert z["heads.1"] > 5
    assert max(z["heads.0"], z["heads.2"]) < 3


@pytest.mark.slow
def test_gamma_leaves_the_other_heads_alone():
    gammas = {key: course[-1] for key, course in train_following("heads.1", steps=60)["gammas"].items()}
    assert gammas["heads.0"] == gammas["heads.2"] == pytest.approx(0.9**6)  # in the dead zone all along
    assert gammas["heads.1"] > gammas["heads.0"]


@pytest.mark.parametrize("planted", ["nowhere", "trunk.0", "heads.1"])
def test_what_is_planted_is_no_rotation_of_itself(planted):
    examples = Examples(planted, 0)
    x, _ = examples.draw(16)
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=x.dtype, generator=torch.Generator().manual_seed(0)))[0]
    with torch.no_grad():
        change = examples.teacher(x @ turn) - examples.teacher(x) @ turn
    moved = change.abs().amax(dim=(0, 2)) > 1e-6
    assert moved.tolist() == {"nowhere": [False] * 3, "trunk.0": [True] * 3}.get(
        planted, [False, True, False]
    )


def test_moments_begin_and_end_the_course():
    assert list(moments(1000, 4)) == [0, 62, 250, 562, 1000]


def test_an_unknown_layer_is_an_error():
    with pytest.raises(ConfigError, match=r"heads\.7"):
        Examples("heads.7", 0)


@pytest.mark.slow
def test_the_command_writes_numbers_tables_and_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from equirelax_lab.cli import main

    monkeypatch.setattr(planted_asymmetry, "HELD_OUT", 32)

    assert main(["planted", "--steps", "20", "--seed", "3", "--seeds", "2", "-o", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "planted.json").read_text())
    assert [run["planted"] for run in record["strict"]] == 2 * list(PLANTED)
    assert [run["planted"] for run in record["following"]] == 2 * list(FOLLOWED)
    assert [run["seed"] for run in record["strict"]] == len(PLANTED) * [3] + len(PLANTED) * [4]
    assert {"command", "commit", "hardware", "versions", "settings"} <= set(record)
    assert record["following"][0]["step"] == [0, 10, 20]
    rows = [line for line in (tmp_path / "summary.md").read_text().splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + len(PLANTED) + 2 + len(FOLLOWED)
    losses = [run["loss"][-1] for run in record["strict"] if run["planted"] == "nowhere"]
    mean, half = sum(losses) / 2, abs(losses[0] - losses[1]) / 2
    assert rows[2].endswith(f" {mean:.3f} ± {2**0.5 * half:.3f} |")
    for name in ("scores.png", "courses.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert len(list((tmp_path / "tables").iterdir())) == 4
    assert "planted at" in capsys.readouterr().out
