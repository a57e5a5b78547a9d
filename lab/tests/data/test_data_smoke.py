"""Smoke plumes: their symmetry, simulation run by run, and verification at loading."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from equirelax_lab.data import FieldSet, smoke
from equirelax_lab.data.archive import write_archive
from equirelax_lab.data.fields import windows
from equirelax_lab.data.smoke import CONTRAST, SCALES, SmokeSettings
from equirelax_lab.data.smoke_simulation import DIRECTIONS, simulate

from equirelax.errors import DataError

TINY = SmokeSettings(size=8, positions=2, steps=50)
RUNS = 4 * 2 + 4 * 1
Call = dict[str, object]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """A stand-in for the simulator: it records its arguments, and its velocities encode side, offset and frame."""
    asked: list[Call] = []

    def pretend(side: int, offsets: np.ndarray, *, size: int, steps: int, **others: object) -> np.ndarray:
        asked.append({"side": side, "offsets": offsets, **others})
        frames = np.arange(steps, dtype=np.float32)[None, :, None, None, None]
        value = 100 * side + offsets.astype(np.float32)[:, None, None, None, None] + frames / 1000
        return np.broadcast_to(value, (len(offsets), steps, 2, size, size)).copy()

    monkeypatch.setattr(smoke, "simulate", pretend)
    monkeypatch.setattr(smoke, "phiflow", lambda: None)
    return asked


def make(root: Path, settings: SmokeSettings = TINY) -> Path:
    return smoke.make(settings, root, jobs=1)


def turned(velocity: np.ndarray) -> np.ndarray:
    """Fields (..., 2, H, W) turned by 90 degrees: the grid and the components."""
    x, y = np.moveaxis(np.rot90(velocity, 1, (-2, -1)), -3, 0)
    return np.stack([-y, x], axis=-3)


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


# --- the simulation


@pytest.mark.parametrize(
    ("size", "steps", "sides"),
    [(12, 3, (0, 1)), pytest.param(24, 30, (0, 1, 2, 3), marks=[pytest.mark.slow, pytest.mark.timeout(900)])],
)
def test_the_next_side_is_the_same_run_turned(size: int, steps: int, sides: tuple[int, ...]) -> None:
    pytest.importorskip("phi")
    found = [simulate(side, np.array([-11.0, 6.0]), buoyancy=0.1, size=size, steps=steps) for side in sides]
    assert found[0].shape == (2, steps, 2, size, size)
    assert found[0].dtype == np.float32
    assert np.abs(found[0][:, -1]).max() > 1e-3
    for one, following in itertools.pairwise(found):
        assert difference(turned(one), following) < 1e-6
    # the plume moves away from its side, here from the bottom, fastest in its middle; two offsets are two runs
    upwards = found[0][:, -1, 1]
    assert (upwards.max(axis=(1, 2)) > -1.5 * upwards.min(axis=(1, 2))).all()
    assert difference(found[0][0], found[0][1]) > 0.1


def test_runs_together_are_the_runs_one_by_one() -> None:
    pytest.importorskip("phi")
    both = simulate(0, np.array([-9.0, 9.0]), buoyancy=0.1, size=12, steps=3)
    alone = simulate(0, np.array([9.0]), buoyancy=0.1, size=12, steps=3)
    assert difference(alone[0], both[1]) < 1e-6
    # mirrored inflows give mirrored runs, which shows that x points to the right
    mirrored = both[0, ..., ::-1] * np.array([-1, 1], dtype=np.float32)[:, None, None]
    assert difference(mirrored, both[1]) < 1e-6


def test_the_directions_turn_with_the_sides() -> None:
    for (x, y), following in zip(DIRECTIONS, DIRECTIONS[1:] + DIRECTIONS[:1], strict=True):
        assert (-y, x) == following


# --- making


def test_every_side_has_its_buoyancy_and_the_exact_set_one(tmp_path: Path, calls: list[Call]) -> None:
    make(tmp_path)
    assert {c["side"]: c["buoyancy"] for c in calls} == pytest.approx(
        {side: 0.1 * (1 + 0.5 * contrast) for side, contrast in enumerate(CONTRAST)}
    )
    calls.clear()
    make(tmp_path, SmokeSettings(size=8, positions=2, steps=50, asymmetry=0.0))
    assert {c["buoyancy"] for c in calls} == {0.1}
    offsets = {side: np.concatenate([c["offsets"] for c in calls if c["side"] == side]) for side in range(4)}  # type: ignore[misc]
    assert all(np.array_equal(offsets[0], other) for other in offsets.values())
    calls.clear()
    make(tmp_path, SmokeSettings(symmetry="scale", size=8, positions=2, steps=50))
    assert {c["side"] for c in calls} == {0}
    assert {c["scale"] for c in calls} == set(SCALES)


def test_domain_has_positions_of_its_own() -> None:
    for positions in (1, 2, 4, 10, 40):
        offsets = SmokeSettings(positions=positions).offsets
        assert len(offsets[False]) == positions
        assert len(offsets[True]) == max(1, positions // 4)
        assert not set(np.round(offsets[False], 9)) & set(np.round(offsets[True], 9))
        assert max(abs(offsets[True])) <= 24


def test_every_setting_changes_the_folder_and_the_command_makes_it() -> None:
    others = [
        SmokeSettings(symmetry="scale"), SmokeSettings(size=32), SmokeSettings(positions=3), SmokeSettings(steps=9),
        SmokeSettings(asymmetry=0.1), SmokeSettings(buoyancy=0.2), SmokeSettings(dt=0.5),
    ]  # fmt: skip
    assert len({one.folder for one in [SmokeSettings(), *others]}) == 8
    assert SmokeSettings(size=32, asymmetry=0.0).command == (
        "equirelax data make smoke --size 32 --asymmetry 0.0"
    )


def test_an_interrupted_make_goes_on_and_a_finished_one_stays(tmp_path: Path, calls: list[Call]) -> None:
    told: list[tuple[int, int]] = []

    def interrupt(done: int, total: int) -> None:
        told.append((done, total))
        if len(told) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        smoke.make(TINY, tmp_path, jobs=1, progress=interrupt)
    assert told == [(3, RUNS), (6, RUNS)]
    folder = tmp_path / TINY.folder
    assert len(list(folder.glob("*.npz"))) == len(list(folder.iterdir())) // 2 == 6
    with pytest.raises(DataError, match="not finished"):
        smoke.load("train", TINY, root=tmp_path)
    (folder / "run-0-01.json").unlink()  # as if writing this one had been interrupted
    calls.clear()
    assert make(tmp_path) == folder
    assert [(c["side"], len(c["offsets"])) for c in calls] == [(0, 1), (2, 3), (3, 3)]  # type: ignore[arg-type]
    calls.clear()
    make(tmp_path)
    assert calls == []
    smoke.make(TINY, tmp_path, jobs=1, force=True)
    assert len(calls) == 4


def test_a_simulation_that_breaks_off_leaves_nothing_behind(
    tmp_path: Path, calls: list[Call], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretended = smoke.simulate

    def broken(side: int, *args: object, **others: object) -> np.ndarray:
        if side == 2:
            raise DataError("The simulation of side 2 left the finite numbers")
        return pretended(side, *args, **others)  # type: ignore[arg-type]

    monkeypatch.setattr(smoke, "simulate", broken)
    with pytest.raises(DataError, match="side 2"):
        make(tmp_path)
    names = sorted(path.name for path in (tmp_path / TINY.folder).iterdir())
    assert len(names) == 2 * 6
    assert {name.split("-")[1] for name in names} == {"0", "1"}
    monkeypatch.setattr(smoke, "simulate", pretended)
    calls.clear()
    make(tmp_path)
    assert [c["side"] for c in calls] == [2, 3]


def test_a_pressure_that_cannot_be_found_is_an_error_of_ours() -> None:
    pytest.importorskip("phi")
    with pytest.warns(RuntimeWarning), pytest.raises(DataError, match=r"side 0 .* found no pressure"):
        simulate(0, np.array([10.0]), buoyancy=1e30, size=8, steps=3)


def test_a_part_of_a_set_that_may_not_be_written_is_made_whole_elsewhere(
    tmp_path: Path, calls: list[Call]
) -> None:
    folder = make(tmp_path)
    (folder / "run-0-01.npz").unlink()
    tmp_path.chmod(0o555)
    folder.chmod(0o555)
    try:
        calls.clear()
        elsewhere = make(tmp_path)
        assert elsewhere != folder
        assert sum(len(c["offsets"]) for c in calls) == RUNS  # type: ignore[arg-type]
        assert len(smoke.load("train", TINY, inputs=4, outputs=2, root=tmp_path).frames) == 8
        calls.clear()
        assert make(tmp_path) == elsewhere
        assert calls == []
    finally:
        tmp_path.chmod(0o755)
        folder.chmod(0o755)


@pytest.mark.slow
def test_processes_write_what_one_process_writes(tmp_path: Path) -> None:
    pytest.importorskip("phi")
    settings = SmokeSettings(size=8, positions=1, steps=2)
    one = smoke.make(settings, tmp_path / "a", jobs=1)
    two = smoke.make(settings, tmp_path / "b", jobs=2)
    names = sorted(p.name for p in one.iterdir())
    assert len(names) == 16
    assert names == sorted(p.name for p in two.iterdir())
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in names)


def test_without_phiflow_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "phi", None)
    with pytest.raises(DataError, match=r"pip install \"phiflow"):
        smoke.make(TINY, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"symmetry": "shift"}, "rotation, scale"),
        ({"size": 7}, "size is 7; expected at least 8 and at most 4,096"),
        ({"positions": 0}, "positions is 0"),
        ({"steps": 0}, "steps is 0"),
        ({"asymmetry": 1.0}, "below 1"),
        ({"asymmetry": -0.1}, "asymmetry is -0.1; expected at least 0 and below 1"),
        ({"asymmetry": float("nan")}, "asymmetry is nan; expected at least 0"),
        ({"buoyancy": float("inf")}, "buoyancy is inf; expected above 0"),
        ({"buoyancy": 0.0}, "above 0"),
        ({"dt": -1.0}, "above 0"),
    ],
)
def test_bad_settings(changes: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        SmokeSettings(**changes)  # type: ignore[arg-type]


# --- loading


def test_splits_are_cut_by_time_and_by_position(tmp_path: Path, calls: list[Call]) -> None:
    make(tmp_path)
    times = {}
    for split in smoke.SPLITS:
        data = smoke.load(split, TINY, inputs=4, outputs=2, root=tmp_path)
        batch = data.batch(range(len(data)))
        frames = torch.cat([batch["input"], batch["target"]], 1)[:, :, 0, 0, 0] % 1 * 1000
        times[split] = (round(frames.min().item()), round(frames.max().item()))
        assert torch.equal(batch["domain"], torch.full((len(data),), split == "domain"))
        assert len(data.frames) == (4 if split == "domain" else 8)
    assert times == {"train": (0, 31), "val": (32, 39), "future": (40, 49), "domain": (0, 19)}
    paper = SmokeSettings()
    assert [[round(s * paper.steps) for s in smoke.SHARES[split]] for split in smoke.SPLITS] == [
        [0, 160], [160, 200], [200, 250], [0, 100]
    ]  # fmt: skip


def test_windows_hold_what_was_simulated(tmp_path: Path, calls: list[Call]) -> None:
    make(tmp_path)
    data = smoke.load("train", TINY, inputs=3, outputs=2, every=5, root=tmp_path)
    assert len(data) == 8 * 6
    batch = data.batch(torch.tensor([0, 1, 13]))
    assert {k: tuple(v.shape) for k, v in batch.items()} == {
        "input": (3, 3, 2, 8, 8), "target": (3, 2, 2, 8, 8), "domain": (3,), "side": (3,), "run": (3,)
    }  # fmt: skip
    assert batch["run"].tolist() == [0, 0, 2]
    assert batch["side"].tolist() == [0, 0, 1]
    value = -24 + torch.arange(5, 10) / 1000
    torch.testing.assert_close(torch.cat([batch["input"][1], batch["target"][1]])[:, 1, 2, 3], value)
    assert torch.equal(data.subset([13]).batch([0])["input"], batch["input"][2:])
    assert len(data.subset(slice(2, 7))) == 5


def test_coarser_grids_are_means_of_squares(tmp_path: Path, calls: list[Call]) -> None:
    folder = make(tmp_path)
    for path in folder.glob("*.npz"):
        manifest = json.loads(path.with_suffix(".json").read_text())
        noise = np.random.default_rng(0).normal(size=(50, 2, 8, 8)).astype(np.float32)
        write_archive(path, {"velocity": noise}, {key: manifest[key] for key in ("settings", "run")})
    coarse = smoke.load("val", TINY, inputs=2, outputs=1, coarsen=4, root=tmp_path).frames
    assert coarse.shape == (8, 50, 2, 2, 2)
    np.testing.assert_allclose(coarse[0, 7, 1, 0, 1], noise[7, 1, :4, 4:].mean(), rtol=1e-5)
    with pytest.raises(DataError, match="expected a divisor of the grid's size 8"):
        smoke.load("val", TINY, inputs=2, outputs=1, coarsen=3, root=tmp_path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("cut", r"run-2-01.npz is damaged"),
        ("empty", "damaged"),
        ("gone", "run-2-01.npz is missing: making the set was not finished"),
        ("no manifest", "not finished"),
        ("steps", r"of shape \(50, 2, 8, 8\) and holds \(49, 2, 8, 8\)"),
        ("other array", "holds None"),
        ("nan", "NaN or infinity in frame 17"),
        ("settings", "run-2-01.npz has other settings"),
        ("run", "run-2-01.npz .*belongs to another run"),
    ],
)
def test_bad_files_are_noticed_and_the_command_mends_them(
    tmp_path: Path, calls: list[Call], damage: str, message: str
) -> None:
    path = make(tmp_path) / "run-2-01.npz"
    manifest = json.loads(path.with_suffix(".json").read_text())
    kept = {key: manifest[key] for key in ("settings", "run")}
    velocity = np.load(path)["velocity"]
    if damage in ("cut", "empty"):
        path.write_bytes(path.read_bytes()[:-50] if damage == "cut" else b"")
    elif damage in ("gone", "no manifest"):
        (path if damage == "gone" else path.with_suffix(".json")).unlink()
    elif damage == "steps":
        write_archive(path, {"velocity": velocity[:-1]}, kept)
    elif damage == "other array":
        write_archive(path, {"speed": velocity}, kept)
    elif damage == "nan":
        velocity[17, 1, 3, 3] = np.nan
        write_archive(path, {"velocity": velocity}, kept)
    else:
        kept[damage].update({"dt": 2.0} if damage == "settings" else {"offset": 1.5})
        write_archive(path, {"velocity": velocity}, kept)
    with pytest.raises(DataError, match=message) as caught:
        smoke.load("train", TINY, inputs=4, outputs=2, root=tmp_path)
    assert TINY.command in str(caught.value)
    smoke.make(TINY, tmp_path, jobs=1, force="--force" in str(caught.value) or damage in ("cut", "empty"))
    smoke.load("train", TINY, inputs=4, outputs=2, root=tmp_path)


@pytest.mark.parametrize(
    "lengths", [{"train": 16, "val": 16, "future": 30, "domain": 30}, {"val": 3}, {"domain": 7}]
)
def test_the_fewest_steps_that_windows_need(lengths: dict[smoke.Split, int]) -> None:
    def fit(steps: int) -> bool:
        shares = ((smoke.SHARES[split], length) for split, length in lengths.items())
        return all(round(high * steps) - round(low * steps) >= length for (low, high), length in shares)

    least = smoke.least_steps(lengths)
    assert fit(least)
    assert not any(fit(steps) for steps in range(1, least))


def test_messages_say_what_to_do(tmp_path: Path, calls: list[Call]) -> None:
    with pytest.raises(
        DataError, match="Make it: equirelax data make smoke --size 8 --positions 2 --steps 50"
    ):
        smoke.load("train", TINY, inputs=4, outputs=2, root=tmp_path)
    assert smoke.made(tmp_path) == {}
    folder = make(tmp_path)
    assert smoke.made(tmp_path) == {folder: TINY}
    with pytest.raises(DataError, match=rf"There are other sets, which train with `{TINY.flags}`"):
        smoke.load("train", SmokeSettings(size=8, positions=2, steps=80), inputs=4, outputs=2, root=tmp_path)
    (folder / "run-3-01.json").unlink()
    assert smoke.made(tmp_path) == {}
    with pytest.raises(DataError, match="Unknown split 'test'"):
        smoke.load("test", TINY, root=tmp_path)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="window of 16 frames does not fit into the frames 40 to 49"):
        smoke.load("future", TINY, root=tmp_path)
    with pytest.raises(DataError, match="jobs is 0"):
        smoke.make(TINY, tmp_path, jobs=0)


# --- sets of fields


def a_set(runs: int = 2, domain: bool = False) -> FieldSet:
    chosen = windows(runs, 0, 6, 3, 1)
    return FieldSet(
        torch.randn(runs, 6, 2, 4, 4), chosen, torch.full((len(chosen),), domain), torch.arange(runs), 2, 1
    )


def test_windows_are_all_that_fit() -> None:
    assert windows(2, 3, 7, 3, 1).tolist() == [[0, 3], [0, 4], [1, 3], [1, 4]]
    assert windows(1, 0, 7, 3, 2).tolist() == [[0, 0], [0, 2], [0, 4]]
    assert windows(1, 5, 8, 3, 9).tolist() == [[0, 5]]
    for bad in ((1, 0, 2, 3, 1), (1, 0, 9, 3, 0)):
        with pytest.raises(DataError):
            windows(*bad)


def test_joined_sets_keep_their_runs_apart() -> None:
    first, second = a_set(), a_set(3, domain=True)
    both = FieldSet.joined([first, second])
    assert len(both) == len(first) + len(second) == 8 + 12
    a, b = both.batch(range(8, 20)), second.batch(range(12))
    assert all(torch.equal(a[key], b[key]) for key in ("input", "target", "domain", "side"))
    assert a["run"].tolist() == (b["run"] + 2).tolist()
    with pytest.raises(DataError, match="one shape"):
        FieldSet.joined([first, FieldSet(first.frames[..., :3], *list(vars(first).values())[1:])])
    with pytest.raises(DataError, match="one shape"):
        FieldSet.joined([])
