"""A whole run: its files, and that an interrupted run resumes as if it had not been interrupted."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from equirelax_lab.training.folder import BEST, CONFIG, LAST, read_table
from equirelax_lab.training.machine import Machine
from equirelax_lab.training.run import train

from equirelax.errors import CheckpointError, ConfigError, DataError, NonFiniteError
from equirelax.relaxation import read

QUIET = Machine(progress=False, tensorboard=False)
Config = Callable[..., Any]


def rows(folder: Path) -> list[dict[str, str]]:
    """metrics.csv without the clock."""
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read_table(folder / "metrics.csv")]


def same(a: Any, b: Any, where: str = "") -> None:
    """Exactly equal: tensors bit for bit, containers entry by entry."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            same(x, y, f"{where}[{index}]")
    else:
        assert a == b, where


def test_without_tensorboard_a_run_says_so_and_goes_on(
    tiny_root: Path,
    tiny_config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    assert train(tiny_config("strict"), tmp_path, tiny_root, machine=Machine(progress=False)) is not None
    assert 'pip install "tensorboard' in capsys.readouterr().err
    assert not (tmp_path / "tensorboard").exists()


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("strict", {}),
        pytest.param("scheduled", {"strength": {"rows": 16}}, marks=pytest.mark.slow),
        ("ace", {"strength": {"dual_optimizer": "adam"}}),
        pytest.param("resilient", {}, marks=pytest.mark.slow),
        pytest.param("strict-muon", {}, marks=pytest.mark.slow),
        pytest.param("ace", {"optimizer": "muon"}, marks=pytest.mark.slow),
        ("ace", {"ema": 0.9}),
    ],
)
def test_resuming_goes_on_bit_for_bit(
    method: str,
    changes: dict[str, Any],
    tiny_root: Path,
    tiny_config: Config,
    tmp_path: Path,
    stop_after: Any,
) -> None:
    config = tiny_config(method, **changes)
    straight = train(config, tmp_path / "straight", tiny_root, machine=QUIET)
    with stop_after(3):
        assert train(config, tmp_path / "resumed", tiny_root, machine=QUIET) is None
    assert len(rows(tmp_path / "resumed")) == 3
    assert not (tmp_path / "resumed" / "result.json").exists()
    torch.rand(7)  # whatever the process drew in between must not matter
    resumed = train(config, tmp_path / "resumed", tiny_root, resume=True, machine=QUIET)

    assert straight is not None
    assert resumed is not None
    assert rows(tmp_path / "straight") == rows(tmp_path / "resumed")
    for key in ("val", "test", "gammas", "selected_epoch"):
        assert straight[key] == resumed[key]
    a, b = (read(tmp_path / name / LAST) for name in ("straight", "resumed"))
    for state in (a, b):
        del state["seconds"]
    same(a, b)
    same(*(read(tmp_path / name / BEST)["weights"] for name in ("straight", "resumed")), "best")


def test_result_holds_what_it_should(tiny_root: Path, tiny_config: Config, tmp_path: Path) -> None:
    config = tiny_config("scheduled")
    train(config, tmp_path, tiny_root, machine=QUIET)
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["benchmark"], result["model"], result["method"], result["seed"]) == (
        "nbody",
        "segnn",
        "scheduled",
        0,
    )
    assert result["metric"] == {
        "name": "MSE of the positions",
        "unit": "1e-3",
        "symbol": None,
        "higher_is_better": False,
    }
    for split in ("val", "test"):
        assert set(result[split]) == {"relaxed", "projected", "folded"}
        assert all(math.isfinite(result[split][kind]) for kind in ("relaxed", "projected"))
        assert result[split]["folded"] is None  # a residual behind the gate folds into nothing
        for kind, values in result["metrics"][split].items():
            if kind != "folded":
                assert values["MSE of the positions"] == result[split][kind]
    assert result["conditions"] == {}
    cost = result["inference"]
    assert cost["relaxed"]["multiply_adds"] > cost["projected"]["multiply_adds"] > 0
    assert cost["projected"]["milliseconds"] > 0
    error = result["equivariance_error"]
    assert set(error) == {"before", "after", "group", "dtype"}
    assert error["after"] < 1e-6
    assert result["parameters"]["strict"] < result["parameters"]["relaxed"]
    assert result["epochs"] == 4
    assert "4 of 1000 epochs" in result["scaled_down"]
    assert "48 of 3000" in result["scaled_down"]
    assert result["seconds"] > 0
    assert {"cpu", "cores", "gpu"} <= set(result["hardware"])
    assert result["versions"]["torch"] == torch.__version__
    assert "commit" in result
    assert result["config"] == config.to_dict()


def test_relaxed_and_projected_differ_and_selection_follows_the_method(
    tiny_root: Path, tiny_config: Config, tmp_path: Path
) -> None:
    for method, kind in (("ace", "projected"), ("resilient", "relaxed")):
        result = train(tiny_config(method, validate_every=1), tmp_path / method, tiny_root, machine=QUIET)
        assert result is not None
        assert result["test"]["relaxed"] != result["test"]["projected"]
        assert result["test"]["folded"] is None
        assert result["equivariance_error"]["before"] > 1e-4
        assert result["equivariance_error"]["after"] < 1e-6
        curve = [float(row[f"val/{kind}"]) for row in read_table(tmp_path / method / "metrics.csv")]
        assert result["selected_epoch"] == curve.index(min(curve)) + 1
        assert result["val"][kind] == pytest.approx(min(curve), rel=1e-5)


def test_schedule_ends_at_zero_and_metrics_show_every_residual(
    tiny_root: Path, tiny_config: Config, tmp_path: Path
) -> None:
    train(tiny_config("scheduled"), tmp_path, tiny_root, machine=QUIET)
    table = read_table(tmp_path / "metrics.csv")
    gammas = [key for key in table[0] if key.startswith("gamma/")]
    assert gammas == ["gamma/layers.0.update_1", "gamma/layers.0.update_2"]
    assert all(float(table[-1][key]) == 0.0 for key in gammas)
    assert max(float(row[gammas[0]]) for row in table) > 0.5
    assert {"lie/layers.0.update_1", "norm/layers.0.update_1"} <= set(table[0])
    assert [row["epoch"] for row in table] == ["0", "1", "2", "3"]
    assert [bool(row["val/projected"]) for row in table] == [False, True, False, True]


def test_the_test_set_is_read_once_and_last(
    tiny_root: Path, tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from equirelax_lab.tasks.nbody import NBodyTask

    asked: list[str] = []
    original = NBodyTask.load

    def load(self: NBodyTask, split: Any) -> Any:
        asked.append(split)
        return original(self, split)

    monkeypatch.setattr(NBodyTask, "load", load)
    train(tiny_config("strict"), tmp_path, tiny_root, machine=QUIET)
    assert asked.count("test") == 1
    assert "test" not in asked[:2]


def test_folder_with_a_run_is_not_overwritten(tiny_root: Path, tiny_config: Config, tmp_path: Path) -> None:
    config = tiny_config("strict", epochs=1)
    first = train(config, tmp_path, tiny_root, machine=QUIET)
    with pytest.raises(ConfigError, match="--resume"):
        train(config, tmp_path, tiny_root, machine=QUIET)
    with pytest.raises(ConfigError, match="epochs was 1 and is now 2"):
        train(tiny_config("strict", epochs=2), tmp_path, tiny_root, resume=True, machine=QUIET)
    assert train(config, tmp_path, tiny_root, resume=True, machine=QUIET) == first


def test_settings_that_a_run_did_not_have_yet_count_as_their_defaults(
    tiny_root: Path, tiny_config: Config, tmp_path: Path
) -> None:
    """A run of a version without `residual.rank` resumes, unless the rank is not the default."""
    config = tiny_config("scheduled", epochs=1, residual={"kind": "low-rank"})
    first = train(config, tmp_path, tiny_root, machine=QUIET)
    stored = config.to_dict()
    del stored["residual"]["rank"]
    (tmp_path / CONFIG).write_text(yaml.safe_dump(stored))
    assert train(config, tmp_path, tiny_root, resume=True, machine=QUIET) == first
    other = config.updated({"residual": {"rank": 3}})
    with pytest.raises(ConfigError, match=r"residual\.rank was 8 and is now 3"):
        train(other, tmp_path, tiny_root, resume=True, machine=QUIET)


def test_damaged_checkpoint_is_an_error_that_names_it(
    tiny_root: Path, tiny_config: Config, tmp_path: Path, stop_after: Any
) -> None:
    config = tiny_config("strict")
    with stop_after(2):
        train(config, tmp_path, tiny_root, machine=QUIET)
    path = tmp_path / LAST
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"last\.ckpt"):
        train(config, tmp_path, tiny_root, resume=True, machine=QUIET)


def test_missing_data_says_how_to_make_it(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(DataError, match="equirelax data make nbody --data"):
        train(tiny_config("strict"), tmp_path / "run", tmp_path, machine=QUIET)
    with pytest.raises(DataError, match="nothing does not exist"):
        train(tiny_config("strict"), tmp_path / "run", tmp_path / "nothing", machine=QUIET)


def test_devices_that_are_not_there_are_named(tiny_root: Path, tiny_config: Config, tmp_path: Path) -> None:
    for index, wrong in enumerate(
        ({"strategy": "dpp"}, {"accelerator": "gpu"} if not torch.cuda.is_available() else {"devices": 0})
    ):
        machine = Machine(progress=False, tensorboard=False, **wrong)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="does not work here"):
            train(tiny_config("strict"), tmp_path / str(index), tiny_root, machine=machine)


def test_a_run_that_diverges_stops_and_says_so(tiny_root: Path, tiny_config: Config, tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match="Lower learning_rate"):
        train(tiny_config("strict", learning_rate=1e30), tmp_path, tiny_root, machine=QUIET)
    assert not (tmp_path / "result.json").exists()
