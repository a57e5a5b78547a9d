"""Results and folders of runs as runs write them, made up: what the tests of reports are given."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from equirelax_lab.tasks.registry import defaults

Make = Callable[..., Path]


def result(method: str, seed: int, value: float, relaxed: float | None = None) -> dict[str, Any]:
    """A result.json as a run writes it."""
    numbers = {"relaxed": value if relaxed is None else relaxed, "projected": value, "folded": None}
    return {
        "benchmark": "nbody",
        "model": "segnn",
        "method": method,
        "seed": seed,
        "metric": {"name": "MSE of the positions", "unit": "1e-3"},
        "val": dict(numbers),
        "test": dict(numbers),
        "equivariance_error": {"before": 0.1, "after": 1e-16, "group": "O(3)", "dtype": "float64"},
        "parameters": {"strict": 100, "relaxed": 200},
        "epochs": 10,
        "selected_epoch": 8,
        "gammas": {"layer": 0.5},
        "scaled_down": "10 of 1000 epochs",
        "seconds": 5.0,
        "commit": "abc",
        "hardware": {"cpu": "a CPU", "cores": 2, "threads": 1, "gpu": None},
        "versions": {"torch": "2"},
        "config": defaults("nbody", "segnn", method).to_dict(),
    }


def changed(base: dict[str, Any], **settings: Any) -> dict[str, Any]:
    """A result whose configuration has other values: section__key=value, or key=value."""
    copied = copy.deepcopy(base)
    for name, value in settings.items():
        section, _, key = name.rpartition("__")
        (copied["config"][section] if section else copied["config"])[key] = value
    return copied


ALIKE: dict[str, Any] = {
    "learning_rate": 1e-3, "epochs": 1000, "weight_decay": 0.0, "augment": True, "drop_last": False,
}  # fmt: skip


def alike(method: str, seed: int, value: float, **settings: Any) -> dict[str, Any]:
    """A result with the training settings of all others; those that the methods were published with differ."""
    return changed(result(method, seed, value), **{**ALIKE, **settings})


def of_model(base: dict[str, Any], model: str) -> dict[str, Any]:
    """The same result of another model."""
    config = defaults(base["benchmark"], model, base["method"]).to_dict()
    return {**copy.deepcopy(base), "model": model, "config": config}


def accuracy(method: str, seed: int, value: float) -> dict[str, Any]:
    """A result whose metric is better when it is higher, with further metrics, conditions and cost."""
    found = result(method, seed, value)
    found["metric"] = {"name": "accuracy", "unit": "1e-2", "symbol": "%", "higher_is_better": True}
    below = {"relaxed": 1, "projected": 2, "folded": 2}
    kinds = {kind: {"accuracy": value, "class accuracy": value - less} for kind, less in below.items()}
    found["metrics"] = {"val": kinds, "test": kinds}
    found["conditions"] = {
        f"dropout {level}": {kind: {"accuracy": value - 10 * level} for kind in kinds}
        for level in (0.25, 0.5)
    }
    cost = {"multiply_adds": 2e6, "milliseconds": 3.0}
    found["inference"] = {"relaxed": cost, "projected": cost}
    return found


def averaged(base: dict[str, Any], value: float) -> dict[str, Any]:
    numbers = {"relaxed": value - 1, "projected": value, "folded": None}
    return {**base, "averaged": {"decay": 0.999, "val": numbers, "test": numbers, "selected_epoch": 5}}


def metrics(epochs: int, layers: tuple[str, ...], kinds: tuple[str, ...]) -> str:
    """A metrics.csv: validation in every second epoch, each kind for each layer."""
    columns = ["epoch", "seconds", "train/loss", "train/penalty", "val/projected", "val/relaxed"]
    lines = [",".join([*columns, *(f"{kind}/{layer}" for kind in kinds for layer in layers)])]
    for e in range(epochs):
        val = [f"{9 - e}", f"{8.5 - e}"] if e % 2 else ["", ""]
        row = [str(e), str(2.0 * (e + 1)), str(1 / (e + 1)), "0.1" if kinds else "0", *val]
        lines.append(",".join([*row, *(str((i + 1) * 0.5**e) for i in range(len(kinds) * len(layers)))]))
    return "\n".join(lines) + "\n"


def maker(root: Path) -> Make:
    """A function (method, seed, value, finished=True, parent="comparison", layers=...) -> folder of a run."""

    def run(
        method: str,
        seed: int,
        value: float,
        finished: bool = True,
        parent: str = "comparison",
        layers: tuple[str, ...] = ("first", "second"),
        **settings: Any,
    ) -> Path:
        kinds = {"strict": (), "scheduled": ("gamma", "lie", "norm", "weight")}
        one = changed(result(method, seed, value, value - 0.5), seed=seed, **settings)
        name = "-".join([method, *map(str, settings.values()), f"seed{seed}"])
        folder = root / parent / name
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(yaml.safe_dump(one["config"]))
        own = kinds.get(method, ("gamma", "multiplier", "slack", "weight"))
        (folder / "metrics.csv").write_text(metrics(10 if finished else 5, layers, own))
        if finished:
            (folder / "result.json").write_text(json.dumps(one))
        return folder

    return run


def comparison(make: Make, **more: Any) -> Path:
    """Three methods with three seeds each."""
    for seed in range(3):
        make("strict", seed, 5.0 + seed / 10, **more)
        make("scheduled", seed, 4.5 + seed / 5, **more)
        make("resilient", seed, 4.0 + seed / 10, **more)
    return make("strict", 3, 5.0, **more).parent


def journal(folder: Path, **states: tuple[str, str]) -> None:
    """A study.json in `folder`: path of a run with __ for / and _ for - -> status and reason."""
    runs: dict[str, Any] = {
        name.replace("__", "/").replace("_", "-"): {"status": status, "attempts": 1, "reason": reason}
        for name, (status, reason) in states.items()
    }
    content = {"name": "study", "title": "A <question> & its answer", "small": True, "runs": runs}
    (folder / "study.json").write_text(json.dumps(content))


def study(make: Make, root: Path) -> Path:
    """Two grids: one with a finished, a running, a diverged run and one that never began; one that is finished."""
    make("strict", 0, 5.0, parent="first")
    make("strict", 1, 12.0, parent="first")
    make("ace", 0, 4.0, parent="first")
    make("ace", 1, 4.0, finished=False, parent="first")
    make("resilient", 0, 4.0, finished=False, parent="first")
    make("strict", 0, 5.0, parent="second")
    journal(
        root,
        first__strict_seed0=("finished", ""),
        first__strict_seed1=("finished", ""),
        first__ace_seed0=("finished", ""),
        first__ace_seed1=("running", ""),
        first__resilient_seed0=("failed", "The loss is nan."),
        first__resilient_seed1=("failed", "cutoff is <script>"),
        second__strict_seed0=("finished", ""),
        second__ace_seed0=("waiting", ""),
    )
    return root
