"""The callback's measurement of the projected network's training loss: logged, without a trace in the training."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lightning.pytorch")
from lightning_toys import Module, data, relaxing, trainer

from equirelax.errors import EquirelaxWarning, MethodError

LOSSES = ("relaxation/projected_loss", "relaxation/relaxed_loss")


class Logging(Module):
    """Logs its training loss, and notes how often it was computed."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.logged: list[tuple[str, float]] = []

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], index: int) -> Any:
        self.calls += 1
        loss = super().training_step(batch, index)
        self.log("own", loss)
        self.log_dict({"twice": 2 * loss})
        return {"loss": loss, "more": 1}

    def log(self, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        self.logged.append((name, float(torch.as_tensor(value).detach())))
        super().log(name, value, *args, **kwargs)


def fitted(folder: Path, watch: int | None, method: str = "ace", **options: Any) -> tuple[Logging, Any]:
    torch.manual_seed(0)
    module = Logging()
    callback = relaxing(method, watch=watch)
    trainer(folder, callback, **options).fit(module, data(batch=4))
    return module, callback


@pytest.mark.parametrize(
    "method", ["ace", "scheduled"]
)  # the second one has a penalty on the inputs of the residuals
def test_it_measures_every_so_many_steps_and_training_is_the_same(method: str, tmp_path: Path) -> None:
    plain, _ = fitted(tmp_path, None, method)
    watched, callback = fitted(tmp_path, 3, method)  # 2 epochs of 8 steps
    assert (plain.calls, watched.calls) == (16, 16 + 6)
    state = plain.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in watched.state_dict().items())
    own = [pair for pair in watched.logged if pair[0] not in LOSSES]
    assert own == plain.logged
    for name in LOSSES:
        assert [found for found, _ in watched.logged].count(name) == 6
    projected, relaxed = ([v for found, v in watched.logged if found == name] for name in LOSSES)
    assert relaxed == pytest.approx([v for found, v in plain.logged if found == "own"][::3])
    assert any(with_ != without for with_, without in zip(relaxed, projected, strict=True))
    assert callback.watch.scalars() == pytest.approx({"projected": projected[-1], "relaxed": relaxed[-1]})


def test_accumulated_batches_are_one_step(tmp_path: Path) -> None:
    module, _ = fitted(tmp_path, 2, accumulate_grad_batches=2, max_epochs=1)
    assert module.calls == 8 + 2


def test_it_warns_where_the_projected_network_lags(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Module()
    with torch.no_grad():
        module.model.layers[1].weight.zero_()
    module.model.layers[0].requires_grad_(False)
    module.model.layers[1].requires_grad_(False)  # only the residuals learn
    callback = relaxing("scheduled", schedule="constant", lie_weight=0.0, norm_weight=0.0, rows=None, watch=4)
    with pytest.warns(EquirelaxWarning, match="projected network lags"):
        trainer(tmp_path, callback, max_epochs=26).fit(module, data(rows=8, batch=4))


def test_it_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    _, whole = fitted(tmp_path, 3)
    _, half = fitted(tmp_path, 3, max_epochs=1, enable_checkpointing=True)
    torch.manual_seed(0)
    callback, module = relaxing(watch=3), Logging()
    run = trainer(tmp_path, callback, max_epochs=2)
    path = next(iter(sorted(tmp_path.rglob("*.ckpt"))))
    run.fit(module, data(batch=4), ckpt_path=str(path), weights_only=True)
    assert callback.watch.state_dict() == whole.watch.state_dict()
    assert half.watch.state_dict() != whole.watch.state_dict()


def test_what_it_cannot_tell_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MethodError, match="watch"):
        relaxing(watch=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(MethodError, match="leave watch out"):
            trainer(tmp_path, relaxing("resilient", watch=3)).fit(Module(), data())
