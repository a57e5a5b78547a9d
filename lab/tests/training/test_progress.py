"""How far a run is: two lines that fit a terminal, lines elsewhere, and the time left."""

from __future__ import annotations

import io

import pytest
from equirelax_lab.training.progress import SECONDS_BETWEEN_LINES, EpochProgress
from rich.console import Console

WIDTH = 80
ROW = {
    **{"train/loss": 0.0123456, "val/projected": 12.34567, "val/relaxed": 12.22222, "val/best": 12.3},
    **{"gamma/first": -0.12345, "gamma/second": 1.0},
}


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def progress(
    clock: Clock, width: int = WIDTH, start: int = 0, epochs: int = 400
) -> tuple[EpochProgress, io.StringIO]:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=width, legacy_windows=False)
    label = "modelnet40 vn-pointnet equivariant-control seed 1000"
    return EpochProgress(start, epochs, 10, label, "MSE of the positions x1e-3", console, clock), out


def run_epoch(shown: EpochProgress, clock: Clock, epoch: int, seconds: float, steps: int = 10) -> None:
    for step in range(1, steps + 1):
        clock.now += seconds / steps
        shown.step(step)
    shown.log(epoch, ROW)


@pytest.mark.parametrize("width", [WIDTH, 50])
def test_two_lines_fit_the_terminal(width: int) -> None:
    clock = Clock()
    shown, out = progress(clock, width)
    for epoch in range(3):
        run_epoch(shown, clock, epoch, 30.0)
    shown.close()
    console = Console(file=io.StringIO(), width=width)
    with console.capture() as caught:
        console.print(shown._drawn(clock.now))
    lines = caught.get().splitlines()
    assert len(lines) == 2
    assert max(map(len, lines)) <= width
    assert lines[0].endswith("epoch 3/400, 3 h 18 min left")
    assert lines[1].startswith("loss 0.01235, val 12.35 projected, 12.22 relaxed"[: width - 2])
    assert "About 3 h 2" in out.getvalue()


def test_the_time_left_is_known_within_the_first_epoch_and_does_not_count_the_first_step() -> None:
    clock = Clock()
    shown, _ = progress(clock, epochs=10)
    assert shown.place(clock.now) == "epoch 0/10"
    clock.now += 60.0  # the first step compiles
    shown.step(1)
    for step in (2, 3, 4, 5):
        clock.now += 3.0
        shown.step(step)
    assert shown.place(clock.now) == "epoch 0/10 (step 5 of 10), 5 min left"  # 95 steps of 3 s
    assert shown.seconds_left(clock.now) == pytest.approx(95 * 3.0)
    shown.close()


def test_a_resumed_run_counts_its_own_epochs_alone() -> None:
    clock = Clock()
    shown, out = progress(clock, start=390)
    run_epoch(shown, clock, 390, 20.0)
    run_epoch(shown, clock, 391, 20.0)
    assert shown.seconds_left(clock.now) == pytest.approx(8 * 20.0, rel=0.1)
    assert "10 epochs of 10 steps" in out.getvalue()
    shown.close()


def test_without_a_terminal_there_is_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    clock = Clock()
    shown = EpochProgress(0, 40, 10, "nbody segnn ace seed 0", "MSE x1e-3", clock=clock)
    for epoch in range(3):
        run_epoch(shown, clock, epoch, SECONDS_BETWEEN_LINES + 1)
    shown.close()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "nbody segnn ace seed 0: 40 epochs of 10 steps; val is MSE x1e-3"
    assert lines[1] == "About 21 min: 40 epochs of 31 s, and validations."
    assert lines[-1] == "epoch 2/40, 19 min left: loss 0.01235, val 12.35 projected, 12.22 relaxed"
    assert len(lines) == 5
    assert max(map(len, lines)) <= WIDTH


def test_a_short_run_is_not_told_how_long_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    shown = EpochProgress(0, 3, 10, "run", "MSE", clock=clock)
    for epoch in range(3):
        run_epoch(shown, clock, epoch, 4.0)
    shown.close()
    assert capsys.readouterr().out.splitlines() == ["run: 3 epochs of 10 steps; val is MSE"]
