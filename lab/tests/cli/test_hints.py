"""Wrong options: what was meant is named, where it is another command's, another method's or another name's."""

from __future__ import annotations

from pathlib import Path

import pytest
from equirelax_lab.cli import main


@pytest.fixture(autouse=True)
def _nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EQUIRELAX_DATA", str(tmp_path))


TRAIN, COMPARE = ("train", "nbody"), ("compare", "nbody")


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ((*TRAIN, "--lr", "1e-3"), ["--lr", "'--learning_rate'"]),
        ((*TRAIN, "--bs", "8"), ["'--batch_size'"]),
        ((*TRAIN, "--gpus", "1"), ["--accelerator gpu"]),
        ((*TRAIN, "--accelerator", "cuda"), ["choose one of cpu, gpu, auto.", "'gpu'"]),
        ((*TRAIN, "--output", "x"), ["Use --out."]),
        ((*TRAIN, "--num-layers", "2"), ["--network.layers"]),
        ((*TRAIN, "--models", "segnn"), ["--model.", "compare"]),
        ((*TRAIN, "--model", "segnn,egnn"), ["equirelax compare nbody --models segnn,egnn"]),
        ((*TRAIN, "--method", "strict,ace"), ["equirelax compare nbody --methods strict,ace"]),
        ((*TRAIN, "--dual_lr", "1"), ["ace, resilient, ace-augmented and ace-pi", "strict (--method)"]),
        ((*TRAIN, "--strength.dual_lr", "1"), ["--strength.dual_lr", "ace, resilient"]),
        ((*TRAIN, "--method", "ace", "--rank", "4"), ["--residual.kind low-rank"]),
        ((*TRAIN, "--model", "egnn", "--l_max", "1"), ["model segnn", "egnn (--model)"]),
        ((*TRAIN, "--subject", "run"), ["benchmark mocap, not of nbody"]),
        (
            ("train", "modelnet40", "--method", "equi-adapt", "--neighbours", "4"),
            ["--network.neighbours or --strength.neighbours"],
        ),
        ((*TRAIN, "--milestones", "0.8,0.9"), ["--milestones", "[a,b]"]),
        ((*TRAIN, "--trained-as", "nobody"), ["'trained_as' is 'nobody'"]),
        ((*COMPARE, "--lr", "1e-3"), ["'--learning_rate'"]),
        ((*COMPARE, "--method", "ace"), ["--methods, separated by commas"]),
        ((*COMPARE, "--seed", "3"), ["--seeds"]),
        ((*COMPARE, "--model", "segnn,egnn"), ["--models"]),
        ((*COMPARE, "--dual_lr", "1"), ["write --ace.dual_lr"]),
        ((*COMPARE, "--methods", "strict,remul", "--dual_lr", "1"), ["none of which is compared"]),
        (
            (*COMPARE, "--methods", "ace,strict", "--dual_lr", "1"),
            ["setting of strict", "--ace.strength.dual_lr"],
        ),
        ((*COMPARE, "--models", "segnn,egnn", "--l_max", "1"), ["of egnn", "--segnn.network.l_max"]),
        ((*COMPARE, "--ace.strength.dual_lr", "foo"), ["--ace.strength.dual_lr is 'foo'"]),
        ((*COMPARE, "--ace.dual_lr"), ["--ace.strength.dual_lr needs a value"]),
        ((*COMPARE, "--ace.strength.dual_lr", "-1"), ["ace: 'strength.dual_lr' is -1"]),
        ((*COMPARE, "--ace.dual_rl", "1"), ["Unknown option --ace.dual_rl", "'--ace.strength.dual_lr'"]),
        ((*COMPARE, "--ace.lie_weight", "1"), ["Unknown option --ace.lie_weight", "scheduled"]),
        ((*COMPARE, "--sweep", "lr=1,2"), ["'learning_rate'"]),
    ],
    ids=" ".join,
)
def test_what_was_meant_is_named(
    words: tuple[str, ...], wanted: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    for part in wanted:
        assert part in error
