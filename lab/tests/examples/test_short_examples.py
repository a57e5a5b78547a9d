"""The three short examples: their code is under 60 lines, they run in seconds, and print small tables."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from other_networks import EXAMPLES, example

from equirelax.methods import ACE

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


def trainer(folder: Path, **options: object) -> object:
    lightning = pytest.importorskip("lightning")
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
    }
    return lightning.Trainer(default_root_dir=folder, **quiet, **options)


@pytest.mark.filterwarnings("ignore")
def test_a_lightning_module(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Eight steps of the optimizer an epoch are eight of the method, half as many where gradients are accumulated."""
    module = example("lightning_loop", "lightning")
    for accumulated in (1, 2):
        run = trainer(tmp_path, max_epochs=3, accumulate_grad_batches=accumulated, enable_checkpointing=False)
        module.main(run)
        own = run.lightning_module  # type: ignore[attr-defined]
        assert isinstance(own.method, ACE)
        assert run.global_step == 24 // accumulated  # type: ignore[attr-defined]
        assert not any("equirelax" in key for key in own.model.state_dict())
        lines = capsys.readouterr().out.strip().splitlines()
        values = {line[:18].strip(): float(line.split()[-1]) for line in lines[-3:]}
        assert set(values) == {"relaxed", "projected", "equivariance error"}
        assert values["equivariance error"] < 1e-9
        assert 0 < values["projected"] < 1


@pytest.mark.filterwarnings("ignore")
def test_its_checkpoints_carry_the_multipliers(tmp_path: Path) -> None:
    module = example("lightning_loop", "lightning")
    torch.manual_seed(0)
    found = []
    for resumed in (False, True):
        own = module.AngularMomentum()
        samples = module.TensorDataset(*module.data(128, 0))
        loader = module.DataLoader(samples, batch_size=64)
        if not resumed:
            whole = trainer(tmp_path, max_epochs=2, enable_checkpointing=False)
            whole.fit(own, loader, loader)  # type: ignore[attr-defined]
            whole.save_checkpoint(tmp_path / "half.ckpt")  # type: ignore[attr-defined]
        run = trainer(tmp_path, max_epochs=4, enable_checkpointing=False)
        run.fit(own, loader, loader, ckpt_path=tmp_path / "half.ckpt", weights_only=True)  # type: ignore[attr-defined]
        found.append(own.method.multipliers.clone())
    assert torch.equal(*found)
    assert found[0].abs().min() > 0
