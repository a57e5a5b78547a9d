"""Averages of weights beside the callback: each is the average of what it names, whenever it was made."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import equirelax as er
from equirelax.errors import RelaxationStateError
from equirelax.relaxation.residual import Residual

lightning = pytest.importorskip("lightning.pytorch")

from lightning_toys import Module, Network, data, relaxing, trainer  # noqa: E402  (needs Lightning)

pytestmark = pytest.mark.filterwarnings("ignore")
AUTHORS = list(Module().state_dict())


class Records(lightning.Callback):
    """Keeps the network's parameters, strengths included, after every step."""

    def __init__(self) -> None:
        self.initial: dict[str, Tensor] = {}
        self.seen: list[dict[str, Tensor]] = []

    def on_train_start(self, trainer: Any, pl_module: Module) -> None:
        self.initial = {key: p.detach().clone() for key, p in pl_module.model.named_parameters()}

    def on_train_batch_end(self, trainer: Any, pl_module: Module, *_: Any) -> None:
        self.seen.append({key: p.detach().clone() for key, p in pl_module.model.named_parameters()})


def close(found: dict[str, Tensor], averaged: list[dict[str, Tensor]]) -> None:
    for key, value in found.items():
        mean = torch.stack([one[key.removeprefix("model.")] for one in averaged]).mean(0)
        torch.testing.assert_close(value, mean, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("method", ["ace", "resilient"])
def test_weight_averaging(first: bool, method: str, tmp_path: Path) -> None:
    """Lightning's callback copies the whole module in setup: before or after the network is relaxed."""
    module, callback, records = Module(), relaxing(method), Records()
    average = lightning.callbacks.WeightAveraging()
    keep = lightning.callbacks.ModelCheckpoint(
        tmp_path, save_on_train_epoch_end=True, filename="{epoch}", save_top_k=-1
    )
    callbacks = [average, callback] if first else [callback, average]
    fit = trainer(tmp_path, *callbacks, records, keep, enable_checkpointing=True)
    fit.fit(module, data(), data())
    close(dict(module.model.named_parameters()), records.seen)
    assert (len(list(module.model.parameters())) == 2) == (method == "ace")
    content = torch.load(tmp_path / "epoch=1.ckpt", weights_only=True)
    assert list(content["state_dict"]) == list(content["current_model_state"]) == AUTHORS
    close(content["state_dict"], records.seen)
    Module().load_state_dict(content["state_dict"])


def test_another_process_tests_an_average_with_its_residuals(tmp_path: Path) -> None:
    keep = lightning.callbacks.ModelCheckpoint(tmp_path, monitor="loss", save_last=True)
    average = lightning.callbacks.EMAWeightAveraging(decay=0.5)
    fit = trainer(tmp_path, relaxing("resilient"), average, keep, enable_checkpointing=True)
    fit.fit(Module(), data(), data())
    (found,) = trainer(tmp_path, relaxing("resilient")).validate(
        Module(), data(), ckpt_path=tmp_path / "last.ckpt", weights_only=True, verbose=False
    )
    assert found["loss"] == pytest.approx(float(fit.callback_metrics["loss"]), rel=1e-6)


@pytest.mark.parametrize("first", [True, False])
def test_training_goes_on_with_weight_averaging(first: bool, tmp_path: Path) -> None:
    ends = []
    for resumed in (False, True):
        torch.manual_seed(0)
        module, callback = Module(), relaxing("resilient")
        keep = lightning.callbacks.ModelCheckpoint(
            tmp_path / str(resumed), save_on_train_epoch_end=True, filename="{epoch}", save_top_k=-1
        )
        average = lightning.callbacks.WeightAveraging()
        callbacks = [average, callback] if first else [callback, average]
        path = tmp_path / "False" / "epoch=0.ckpt" if resumed else None
        fit = trainer(tmp_path, *callbacks, keep, enable_checkpointing=True)
        fit.fit(module, data(), ckpt_path=path, weights_only=True)
        ends.append(list(module.parameters()))
    assert len(ends[0]) == 6
    assert all(map(torch.equal, *ends))


class Late(Module):
    """Its data are there after `setup`; `WeightAveraging` calls `configure_model` before."""

    def __init__(self) -> None:
        super().__init__()
        del self.model

    def setup(self, stage: str) -> None:
        self.loader = data()

    def configure_model(self) -> None:
        if not hasattr(self, "model"):
            self.model = Network()

    def train_dataloader(self) -> Any:
        return self.loader


def test_weight_averaging_of_a_network_that_is_built_late(tmp_path: Path) -> None:
    module, callback, records = Late(), relaxing("scheduled"), Records()
    trainer(tmp_path, lightning.callbacks.WeightAveraging(), callback, records).fit(module)
    assert callback.method.total_steps == callback.method.steps == 8
    close(dict(module.model.named_parameters()), records.seen)


@pytest.mark.parametrize("first", [True, False])
def test_stochastic_weight_averaging(first: bool, tmp_path: Path) -> None:
    module, callback, records = Module(), relaxing(), Records()
    average = lightning.callbacks.StochasticWeightAveraging(swa_lrs=1e-2, swa_epoch_start=1)
    callbacks = [average, callback] if first else [callback, average]
    trainer(tmp_path, *callbacks, records, max_epochs=3).fit(module, data())
    # it averages the weights at the beginning of every epoch
    close(dict(module.model.named_parameters()), [records.initial, records.seen[3], records.seen[7]])


class Averaging(Module):
    """Averages its network by a copy of torch's, which validates."""

    def __init__(self) -> None:
        super().__init__()
        self.average = AveragedModel(self.model)
        self.average.requires_grad_(False)

    def on_train_batch_end(self, *_: Any) -> None:
        self.average.update_parameters(self.model)

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        self.outputs.append(self.average(batch[0]))


@pytest.mark.parametrize("method", ["ace", "resilient"])
def test_an_averaged_model_in_the_module(method: str, tmp_path: Path) -> None:
    module, callback, records = Averaging(), relaxing(method), Records()
    expected = list(module.state_dict())
    fit = trainer(tmp_path, callback, records)
    fit.fit(module, data(), data())
    fit.save_checkpoint(tmp_path / "end.ckpt")
    average = module.average.module
    close(dict(average.named_parameters()), records.seen)
    assert list(module.state_dict()) == expected
    assert any(isinstance(inside, Residual) for inside in average.modules()) == (method == "resilient")
    with torch.no_grad():
        found = torch.cat([average(x) for x, _ in data()])
    torch.testing.assert_close(torch.cat(module.outputs[-4:]), found, rtol=1e-5, atol=1e-6)
    if method == "resilient":  # another process has the average's residuals from the file
        fresh = Averaging()
        trainer(tmp_path, relaxing(method)).validate(
            fresh, data(), ckpt_path=tmp_path / "end.ckpt", weights_only=True, verbose=False
        )
        assert torch.equal(torch.cat(fresh.outputs), found)


class Taught(Module):
    """With a second network of the same class: a copy of the first, or one of its own."""

    def __init__(self, copied: bool) -> None:
        super().__init__()
        self.teacher = copy.deepcopy(self.model) if copied else Network()
        self.teacher.requires_grad_(False)


def test_a_copy_is_relaxed_alike_and_a_network_of_its_own_is_left_alone(tmp_path: Path) -> None:
    module = Taught(copied=True)
    trainer(tmp_path, relaxing("resilient")).fit(module, data())
    assert list(er.relaxation_of(module.teacher).residuals) == list(er.relaxation_of(module.model).residuals)
    assert er.relaxation_of(module.teacher).gammas().tolist() == [1.0, 1.0]  # as the network's at the start
    assert float(er.relaxation_of(module.teacher)["layers.0"].map.weight.abs().sum()) > 0.0
    assert not any(p.requires_grad for p in module.teacher.parameters())
    with pytest.raises(RelaxationStateError, match=r"^Taught\.teacher .*others=\('teacher',\)"):
        trainer(tmp_path, relaxing()).fit(Taught(copied=False), data())
    module = Taught(copied=False)
    trainer(tmp_path, relaxing("resilient", others=("teacher",))).fit(module, data())
    assert not any(isinstance(inside, Residual) for inside in module.teacher.modules())


class Targeted(Module):
    """Makes a copy, and a network of its own that is in the way, with the optimizer."""

    def configure_optimizers(self) -> Any:
        self.copy, self.target = copy.deepcopy(self.model), Network()
        er.project(self.copy)
        return super().configure_optimizers()


@pytest.mark.parametrize("by_hand", [False, True])
def test_a_fit_that_is_refused_late_leaves_the_module_as_it_was(by_hand: bool, tmp_path: Path) -> None:
    module = Targeted()
    if by_hand:
        er.relax(module.model, relaxing()._placement)
    keys = list(module.state_dict())
    for _ in range(2):
        with pytest.raises(RelaxationStateError, match=r"Targeted\.target"):
            trainer(tmp_path, relaxing("resilient")).fit(module, data())
        others = [key for key in module.state_dict() if key.startswith(("copy", "target"))]
        assert list(module.state_dict()) == keys + others
        assert not any("equirelax" in key for key in others)
        assert not module._state_dict_hooks
        assert not module._load_state_dict_post_hooks
        del module.copy, module.target


class NequIPs(Module):
    """Averages as NequIP's EMALightningModule does, with its class."""

    def __init__(self) -> None:
        super().__init__()
        self.ema = pytest.importorskip("nequip.train.ema").EMAWeights(self.model, decay=0.9)
        for _ in range(3):  # its decay grows with the number of updates
            self.ema.update_parameters(self.model)

    def on_train_batch_end(self, *_: Any) -> None:
        self.ema.update_parameters(self.model)

    def on_validation_start(self) -> None:
        self.ema.swap_parameters(self.model)

    def on_validation_end(self) -> None:
        self.ema.swap_parameters(self.model)


def nequips_average(records: Records) -> dict[str, Tensor]:
    found = dict(records.initial)
    for number, seen in enumerate(records.seen, start=3):
        decay = min(0.9, (1 + number) / (10 + number))
        found = {key: decay * value + (1 - decay) * seen[key] for key, value in found.items()}
    return found


@pytest.mark.parametrize("method", ["ace", "resilient"])
def test_nequips_average(method: str, tmp_path: Path) -> None:
    module, callback, records = NequIPs(), relaxing(method), Records()
    expected = list(module.state_dict())
    fit = trainer(tmp_path, callback, records)
    fit.fit(module, data(), data())
    fit.save_checkpoint(tmp_path / "end.ckpt")
    assert list(module.state_dict()) == expected
    average = nequips_average(records)
    for found, key in zip(module.ema.ema_weights, ("layers.0.weight", "layers.1.weight"), strict=True):
        torch.testing.assert_close(found, average[key], rtol=1e-5, atol=1e-6)
    deployed = copy.deepcopy(module.model)
    with torch.no_grad():
        for key, parameter in deployed.named_parameters():
            parameter.copy_(average[key])
        found = torch.cat([deployed(x) for x, _ in data()])
    torch.testing.assert_close(torch.cat(module.outputs[-4:]), found, rtol=1e-5, atol=1e-6)
    fresh = NequIPs()
    trainer(tmp_path, relaxing(method)).validate(
        fresh, data(), ckpt_path=tmp_path / "end.ckpt", weights_only=True, verbose=False
    )
    torch.testing.assert_close(torch.cat(fresh.outputs), found, rtol=1e-5, atol=1e-6)


def test_nequips_average_goes_on(tmp_path: Path) -> None:
    ends = []
    for resumed in (False, True):
        torch.manual_seed(0)
        module, callback = NequIPs(), relaxing("resilient")
        keep = lightning.callbacks.ModelCheckpoint(
            tmp_path / str(resumed), save_on_train_epoch_end=True, filename="{epoch}", save_top_k=-1
        )
        path = tmp_path / "False" / "epoch=0.ckpt" if resumed else None
        fit = trainer(tmp_path, callback, keep, enable_checkpointing=True)
        fit.fit(module, data(), ckpt_path=path, weights_only=True)
        module.ema.swap_parameters(module.model)
        ends.append([*module.parameters(), *module.ema.ema_weights])
    assert all(map(torch.equal, *ends))


class Buffers(nn.Module):
    """An average of somebody's own."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        for number, parameter in enumerate(network.parameters()):
            self.register_buffer(f"mean_{number}", parameter.detach().clone())


class OwnBuffers(Module):
    def __init__(self) -> None:
        super().__init__()
        self.mean = Buffers(self.model)


class Shadow:
    """Keeps a list, as many averages that are no modules do."""

    def __init__(self, parameters: Any) -> None:
        self.kept = [p.detach().clone() for p in parameters]


class OwnObject(Module):
    def __init__(self) -> None:
        super().__init__()
        self.shadow = Shadow(self.model.parameters())


class OwnList(Module):
    def __init__(self) -> None:
        super().__init__()
        self.shadow = [p.detach().clone() for p in self.model.parameters()]


@pytest.mark.parametrize(
    ("kind", "name"),
    [(OwnBuffers, "OwnBuffers.mean"), (OwnList, "OwnList.shadow"), (OwnObject, "OwnObject.shadow.kept")],
)
def test_what_nobody_knows_is_refused_by_name(kind: type[Module], name: str, tmp_path: Path) -> None:
    module = kind()
    with pytest.raises(RelaxationStateError, match=rf"^{name}"):
        trainer(tmp_path, relaxing()).fit(module, data())
    assert list(module.model.state_dict()) == list(Network().state_dict())


def test_a_list_of_the_parameters_themselves_is_no_average(tmp_path: Path) -> None:
    module = Module()
    module.known = list(module.model.parameters())
    trainer(tmp_path, relaxing()).fit(module, data())


def test_a_copy_that_is_relaxed_otherwise_is_refused(tmp_path: Path) -> None:
    module = Averaging()
    er.relax(module.average.module, er.Layers(exclude=("layers.1",), declare=relaxing()._placement.declare))
    with pytest.raises(RelaxationStateError, match=r"Averaging\.average"):
        trainer(tmp_path, relaxing()).fit(module, data())


def test_a_network_of_another_size_is_no_copy(tmp_path: Path) -> None:
    module = Module()
    module.other = nn.Sequential(Network())
    module.other[0].layers[0] = nn.Linear(2, 5, bias=False)
    trainer(tmp_path, relaxing("resilient")).fit(module, data())
    assert not any(isinstance(inside, Residual) for inside in module.other.modules())
