"""Loggers to services: with stand-ins that have the signatures of the real packages, and with these where they are installed."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from equirelax_lab.training.machine import Machine
from equirelax_lab.training.run import train
from equirelax_lab.training.trackers import IDENTITIES, TRACKERS, check_trackers, trackers

from equirelax.errors import ConfigError

Config = Callable[..., Any]
ROWS = ({"train/loss": 1.0, "gamma/layers.0": 0.5}, {"train/loss": 0.5, "val/projected": 2.0})


class Calls(list[tuple[str, tuple[Any, ...], dict[str, Any]]]):
    def of(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            self.append((name, arguments, keywords))

        return call

    def named(self, name: str) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        return [(arguments, keywords) for called, arguments, keywords in self if called == name]


@pytest.fixture
def services(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Stand-ins for both packages; what is called is noted."""
    calls = Calls()
    wandb: Any = ModuleType("wandb")
    run = SimpleNamespace(**{name: calls.of(name) for name in ("define_metric", "log", "finish")})

    def init(**keywords: Any) -> Any:
        calls.append(("init", (), keywords))
        return run

    wandb.init = init
    mlflow: Any = ModuleType("mlflow")
    names = ("log_batch", "update_run", "set_terminated")
    client = SimpleNamespace(**{name: calls.of(name) for name in names})
    client.get_experiment_by_name = lambda name: None

    def create(experiment: str, run_name: str) -> Any:
        calls.append(("create_run", (experiment,), {"run_name": run_name}))
        return SimpleNamespace(info=SimpleNamespace(run_id="abc"))

    client.create_experiment = lambda name: f"number of {name}"
    client.create_run = create
    mlflow.MlflowClient = lambda: client
    entities: Any = ModuleType("mlflow.entities")
    entities.Param = entities.Metric = lambda *values: values
    for module in (wandb, mlflow, entities):
        module.__spec__ = importlib.util.spec_from_loader(module.__name__, None)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    for variable in ("WANDB_PROJECT", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(variable, raising=False)
    return calls


def begun(name: str, folder: Path, config: Any) -> Any:
    (tracker,) = trackers(Machine(**{name: True}), folder, config)
    return tracker


def test_nothing_is_imported_that_is_not_asked_for(tiny_config: Config, tmp_path: Path) -> None:
    check_trackers(Machine())
    assert list(trackers(Machine(), tmp_path, tiny_config("strict"))) == []


@pytest.mark.parametrize("name", TRACKERS)
def test_a_missing_package_is_named_before_anything_is_written(
    name: str, tiny_config: Config, tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    machine = Machine(progress=False, tensorboard=False, **{name: True})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=rf"--{name} needs the package '{name}'.*install"):
        train(tiny_config("strict"), tmp_path / "run", tiny_root, machine=machine)
    assert not (tmp_path / "run").exists()


def test_weights_and_biases_gets_settings_and_rows(
    services: Calls, tiny_config: Config, tmp_path: Path
) -> None:
    folder = tmp_path / "group" / "run"
    folder.mkdir(parents=True)
    config = tiny_config("ace")
    for _ in range(2):  # the second is the run resumed
        tracker = begun("wandb", folder, config)
        for epoch, row in enumerate(ROWS):
            tracker.log(epoch, row)
        tracker.close()
    first, again = (keywords for _, keywords in services.named("init"))
    assert first == again
    assert first["config"] == config.to_dict()
    assert (first["project"], first["group"], first["dir"]) == ("equirelax", "group", str(folder))
    assert (first["id"], first["resume"]) == (json.loads((folder / IDENTITIES).read_text())["wandb"], "allow")
    assert services.named("log")[1] == (({"epoch": 1, **ROWS[1]},), {})
    assert len(services.named("finish")) == 2


def test_mlflow_gets_settings_and_rows(services: Calls, tiny_config: Config, tmp_path: Path) -> None:
    for _ in range(2):
        tracker = begun("mlflow", tmp_path, tiny_config("ace"))
        for epoch, row in enumerate(ROWS):
            tracker.log(epoch, row)
        tracker.close()
    ((experiment, label),) = (
        (arguments[0], keywords["run_name"]) for arguments, keywords in services.named("create_run")
    )
    assert (experiment, label) == ("number of equirelax", "segnn ace seed 0")
    (run,), settings = services.named("log_batch")[0]
    assert run == "abc"
    assert ("strength.dual_lr", str(tiny_config("ace").strength.dual_lr)) in settings["params"]
    metrics = services.named("log_batch")[2][1]["metrics"]
    assert [(key, value, epoch) for key, value, _, epoch in metrics] == [
        ("train/loss", 0.5, 1), ("val/projected", 2.0, 1),
    ]  # fmt: skip
    assert services.named("update_run") == [(("abc",), {"status": "RUNNING"})]


def test_a_service_that_fails_does_not_end_the_run(
    services: Calls, tiny_config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker = begun("wandb", tmp_path, tiny_config("strict"))

    def gone(*_: Any) -> None:
        raise ConnectionError("no answer\nfrom there")

    tracker.run.log = gone
    for epoch, row in enumerate(ROWS):
        tracker.log(epoch, row)
    tracker.close()
    error = capsys.readouterr().err
    assert error.count("wandb fails") == 1
    assert "no answer" in error
    assert services.named("finish") == []


def test_a_service_that_refuses_is_an_error_with_what_to_do(
    services: Calls, tiny_config: Config, tmp_path: Path
) -> None:
    def refuse(**_: Any) -> None:
        raise RuntimeError("api_key not configured")

    sys.modules["wandb"].init = refuse  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=r"--wandb: api_key not configured\. Log in .*WANDB_MODE=offline"):
        begun("wandb", tmp_path, tiny_config("strict"))


def test_the_stand_ins_take_what_the_real_packages_take() -> None:
    wandb, mlflow = pytest.importorskip("wandb"), pytest.importorskip("mlflow")
    keys = dict.fromkeys(("project", "group", "name", "id", "resume", "dir", "config"))
    inspect.signature(wandb.init).bind(**keys)
    inspect.signature(wandb.Run.define_metric).bind(None, "*", step_metric="epoch")
    inspect.signature(wandb.Run.log).bind(None, {})
    client = mlflow.MlflowClient
    inspect.signature(client.create_run).bind(None, "1", run_name="run")
    inspect.signature(client.log_batch).bind(None, "run", metrics=[], params=[])
    inspect.signature(client.update_run).bind(None, "run", status="RUNNING")
    inspect.signature(client.set_terminated).bind(None, "run")
    inspect.signature(importlib.import_module("mlflow.entities").Metric).bind("key", 1.0, 1, 0)


@pytest.mark.slow
def test_a_run_with_the_real_packages_and_no_network(
    tiny_config: Config, tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    machine = Machine(progress=False, tensorboard=False, wandb=True, mlflow=True)
    result = train(tiny_config("ace", epochs=2), tmp_path / "run", tiny_root, machine=machine)
    assert result
    known = json.loads((tmp_path / "run" / IDENTITIES).read_text())
    assert list((tmp_path / "run" / "wandb").glob(f"offline-run-*-{known['wandb']}"))
    run = mlflow.MlflowClient().get_run(known["mlflow"])
    assert run.data.params["method"] == "ace"
    assert run.info.status == "FINISHED"
    assert run.data.metrics["val/projected"] == pytest.approx(result["val"]["projected"])
