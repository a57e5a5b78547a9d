"""The three short examples: their code is under 60 lines, they run in seconds, and print small tables."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from other_networks import EXAMPLES, example

SHORT = (
    "plain_loop",
    "lightning_loop",
    "nequip_rmd17",
)  # the third is run by test_examples.py, for it needs data


@pytest.mark.parametrize("name", SHORT)
def test_they_are_short(name: str) -> None:
    assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) < 60


def test_a_plain_loop() -> None:
    plain = example("plain_loop", "torch")
    rows = {name: plain.train(name, epochs=6) for name in plain.METHODS}
    assert list(rows) == ["strict", "scheduled", "ace"]
    assert all(0 < projected < 1 and error < 1e-9 for _, projected, error in rows.values())
    assert rows["strict"][0] == pytest.approx(rows["strict"][1], rel=1e-6)
    assert rows["scheduled"][0] == pytest.approx(rows["scheduled"][1], rel=1e-6)  # its last strength is 0
    assert abs(rows["ace"][0] - rows["ace"][1]) > 1e-3  # gamma is still on its way


@pytest.mark.filterwarnings("ignore")
def test_a_lightning_module(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Eight steps of the optimizer an epoch; the module is its author's, and its checkpoint loads without the callback."""
    module = example("lightning_loop", "lightning")
    trainer = module.main(
        max_epochs=3,
        default_root_dir=tmp_path,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    assert trainer.global_step == 24
    gamma, result = capsys.readouterr().out.strip().splitlines()[-2:]
    assert float(re.findall(r"largest gamma (\S+),", gamma)[0]) > 0
    after, before, error = map(
        float, re.findall(r"error (\S+), (\S+) before training; equivariance error (\S+)$", result)[0]
    )
    assert error < 1e-9
    assert 0 < after < before
    own = trainer.lightning_module
    assert not any("equirelax" in key for key in own.model.state_dict())
    loaded = module.AngularMomentum.load_from_checkpoint(trainer.checkpoint_callback.best_model_path)
    assert all(map(torch.equal, loaded.parameters(), own.parameters()))
