"""Motion capture cases from CMU's own files: new ones, and the published ones, recognised by their frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from acclaim_files import amc_text, asf_text, inverse
from equirelax_lab.data import mocap, mocap_cases
from equirelax_lab.data.archive import load_npz
from equirelax_lab.data.mocap_published import PUBLISHED, published_split
from real_data import SAMPLES

from equirelax.errors import DataError


def raw_files(folder: Path, trials: int = 4) -> tuple[Path, list[Path]]:
    """A skeleton of 31 joints in a row, and trials of 40 + n frames in which the first bone turns."""
    blocks = [
        f"begin\nname b{n}\ndirection 0 1 0\nlength {n}\naxis 0 0 0 XYZ\n{'dof rx' if n == 1 else ''}\nend"
        for n in range(1, 31)
    ]
    chain = "\n".join(f"{'root' if n == 1 else f'b{n - 1}'} b{n}" for n in range(1, 31))
    asf = folder / "x.asf"
    head = ":units\nangle deg\n:root\norder TX TY TZ RX RY RZ\n:bonedata\n"
    asf.write_text(head + "\n".join(blocks) + f"\n:hierarchy\nbegin\n{chain}\nend\n")
    paths = []
    for trial in range(trials):
        paths.append(folder / f"x_{trial + 1:02}.amc")
        frames = [f"{t + 1}\nroot {t} 1 {trial} 0 0 0\nb1 {t}" for t in range(40 + trial)]
        paths[-1].write_text(":DEGREES\n" + "\n".join(frames) + "\n")
    return asf, paths


def test_raw_files_in_the_layout_of_the_others(tmp_path: Path) -> None:
    asf, amc = raw_files(tmp_path)
    arrays = mocap_cases.from_amc(asf, amc)
    assert set(arrays) == {"pos", "lengths", "trials", "joints", "edges", "fps"}
    assert arrays["pos"].shape == (40 + 41 + 42 + 43, 31, 3)
    assert arrays["pos"].dtype == np.float32
    assert arrays["lengths"].tolist() == [40, 41, 42, 43]
    assert arrays["trials"].tolist() == ["x_01", "x_02", "x_03", "x_04"]
    assert arrays["edges"].tolist() == [[n, n - 1] for n in range(1, 31)]
    third = arrays["pos"][
        40 + 41 + 10
    ]  # frame 10: the root at (10, 1, 2), everything turned by 10 degrees about x
    far = np.arange(31) * (np.arange(31) + 1) / 2
    np.testing.assert_allclose(third[:, 0], 10, atol=1e-5)
    np.testing.assert_allclose(third[:, 1], 1 + far * np.cos(np.radians(10)), rtol=1e-5)
    np.testing.assert_allclose(third[:, 2], 2 + far * np.sin(np.radians(10)), rtol=1e-5)
    with pytest.raises(DataError, match="No trial was named"):
        mocap_cases.from_amc(asf, [])


def test_a_case_of_ones_own(tmp_path: Path) -> None:
    asf, amc = raw_files(tmp_path)
    motion, split = mocap_cases.make("my-walk", asf, amc, seed=3, root=tmp_path)
    assert (motion.name, split.name) == ("my-walk.npz", "my-walk_split.npz")
    seen: dict[str, set[int]] = {}
    for name, trials in zip(mocap.SPLITS, (2, 1, 1), strict=True):
        data = mocap.load(name, case="my-walk", root=tmp_path)
        assert len(data) == trials * 10  # the shortest trial has 40 frames
        assert data.joints[:2] == ("root", "b1")
        seen[name] = set(data.trials.tolist())
        for n in range(len(data)):
            t = float(data.starts[n])
            assert data.positions[n, 0].tolist() == [t, 1, float(data.trials[n])]
            assert data.targets[n, 0].tolist() == [t + 30, 1, float(data.trials[n])]
        assert len({(int(a), int(b)) for a, b in zip(data.trials, data.starts, strict=True)}) == len(data)
    assert sorted(trial for trials in seen.values() for trial in trials) == [0, 1, 2, 3]
    before = motion.read_bytes(), split.read_bytes()
    with pytest.raises(DataError, match="'my-walk' exists already"):
        mocap_cases.make("my-walk", asf, amc, root=tmp_path)
    mocap_cases.make("my-walk", asf, amc, seed=3, root=tmp_path, force=True)
    assert (motion.read_bytes(), split.read_bytes()) == before
    mocap_cases.make("my-walk", asf, amc, seed=3, starts=4, root=tmp_path, force=True)
    assert len(mocap.load("test", case="my-walk", root=tmp_path)) == 4


def test_the_partition_of_the_protocol() -> None:
    for count, sizes in ((11, [5, 3, 3]), (23, [11, 6, 6]), (3, [1, 1, 1])):
        parts = mocap_cases.make_split([200] * count, starts=80, seed=1)
        assert [len(parts[f"{split}_trial"]) for split in mocap.SPLITS] == sizes
        trials = np.concatenate([parts[f"{split}_trial"] for split in mocap.SPLITS])
        assert sorted(trials.tolist()) == list(range(count))
        for split in mocap.SPLITS:
            starts = parts[f"{split}_start"]
            assert starts.shape[1] == 80
            assert 0 <= starts.min() <= starts.max() < 200 - 30
            assert all(len(set(row.tolist())) == 80 for row in starts)
    one, two = (mocap_cases.make_split([200] * 11, starts=80, seed=seed) for seed in (1, 2))
    assert any(not np.array_equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "../x"}, "use letters, digits"),
        ({"name": "run", "starts": 3}, "windows of run are the published ones"),
        ({"name": "run"}, r"Trial 0 of the case run \(141 frames\) is in none of the 4 files.*09_\*\.amc"),
        ({"amc": 2}, "Three trials or more are needed for train, val and test; got 2"),
        ({"starts": 11}, "Trial 0 has 40 frames, which leave room for 10 starts; 11 were requested"),
        ({"starts": 0}, "0 were requested"),
    ],
)
def test_cases_that_cannot_be_made(options: dict[str, object], message: str, tmp_path: Path) -> None:
    asf, amc = raw_files(tmp_path)
    name, count, starts = options.get("name", "new"), options.get("amc", 4), options.get("starts")
    with pytest.raises(DataError, match=message):
        mocap_cases.make(name, asf, amc[:count], starts=starts, root=tmp_path)  # type: ignore[arg-type, misc]
    assert not (tmp_path / "cmu_mocap").exists()


def test_another_skeleton_is_refused_for_the_benchmark(tmp_path: Path) -> None:
    """Its networks are for 31 joints; `from_amc` takes any skeleton."""
    asf, amc = raw_files(tmp_path)
    asf.write_text(asf.read_text().replace("b29 b30", "").replace("name b30", "name b30x"))
    with pytest.raises(DataError, match="does not connect"):
        mocap_cases.make("new", asf, amc, root=tmp_path)
    text = asf.read_text()
    begin = text.rindex("begin\nname b30x")
    asf.write_text(text[:begin] + text[text.index("end", begin) + 3 :])
    assert mocap_cases.from_amc(asf, amc)["pos"].shape[1] == 30
    with pytest.raises(DataError, match=r"x\.asf: pos must be floating point of shape \(frames, 31, 3\)"):
        mocap_cases.make("new", asf, amc, root=tmp_path)


def test_the_command_line_makes_a_case(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from equirelax_lab.cli import main

    asf, amc = raw_files(tmp_path)
    words = ["data", "make", "mocap", "--case", "dance", "--asf", str(asf), "--data", str(tmp_path)]
    assert main([*words, "--amc", *map(str, amc), "--seed", "1"]) == 0
    assert "dance_split.npz" in capsys.readouterr().out
    assert len(mocap.load("train", case="dance", root=tmp_path)) == 20
    assert main([*words, "--amc", *map(str, amc)]) != 0
    assert "exists already" in capsys.readouterr().err


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, list[Path]]:
    """Acclaim files of the published runs, under other names in another order, one with six frames before the published ones.

    They are written from the published positions, every bone turned the shortest way from where it is in the first frame.
    """
    recorded = load_npz(SAMPLES / mocap.FOLDER / "cmu09_run.npz", SAMPLES)
    names, parents = recorded["joints"].tolist(), [-1, *recorded["edges"][:, 1].tolist()]
    axes = np.zeros((len(names), 3))
    positions = recorded["pos"].astype(np.float64)
    offsets, angles = inverse(positions, parents, axes)
    asf = tmp_path / "09.asf"
    asf.write_text(asf_text(names, parents, offsets, axes))
    ends = np.cumsum(recorded["lengths"])
    order = np.random.default_rng(0).permutation(len(ends))
    paths = []
    for file, number in enumerate(order):
        frames = np.arange(ends[number] - recorded["lengths"][number], ends[number])
        if number == 9:
            frames = np.concatenate([np.arange(6), frames])
        paths.append(tmp_path / f"09_{file + 1:02}.amc")
        paths[-1].write_text(amc_text(names, positions[frames, 0], angles[frames]))
    paths.append(tmp_path / "09_12.amc")  # of this subject, but not a run
    paths[-1].write_text(amc_text(names, positions[:50, 0] + 1, angles[:50]))
    return asf, paths


def test_the_published_runs_are_made_from_the_files_of_the_subject(
    runs: tuple[Path, list[Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from equirelax_lab.cli import main

    asf, amc = runs
    words = ["data", "make", "mocap", "--case", "run", "--asf", str(asf), "--amc", *map(str, amc)]
    assert main([*words, "--data", str(tmp_path)]) == 0
    assert "The windows are the published ones." in capsys.readouterr().out
    for split in mocap.SPLITS:
        made = mocap.load(split, case="run", root=tmp_path)
        published = mocap.load(split, case="run", root=SAMPLES)
        assert made.trials is not None
        assert made.trials.tolist() == published.trials.tolist()  # type: ignore[union-attr]
        np.testing.assert_allclose(made.positions, published.positions, atol=1e-4)
        np.testing.assert_allclose(made.trajectory, published.trajectory, atol=1e-4)
        assert made.joints == published.joints
    with pytest.raises(DataError, match="exists already"):
        mocap_cases.make("run", asf, amc, root=tmp_path)


@pytest.mark.parametrize("case", PUBLISHED)
def test_the_published_windows_fit_the_published_trials(case: str) -> None:
    known, parts = PUBLISHED[case], published_split(case)
    mocap.check_split(parts, Path(case), np.array([trial[0] for trial in known.trials]))
    assert parts["train_start"].shape == (len(known.train), known.starts)
    assert sorted(known.train + known.val + known.test) == list(range(len(known.trials)))
