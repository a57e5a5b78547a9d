"""The callback trains as a loop by hand does, in Lightning's trainer, and leaves the module as its author wrote it."""

from __future__ import annotations

import builtins
import copy
import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import equirelax as er
from equirelax.errors import (
    CheckpointError,
    EquirelaxWarning,
    MethodError,
    PlacementError,
    StaleOptimizerError,
)
from equirelax.relaxation.residual import Residual

lightning = pytest.importorskip("lightning.pytorch")

from lightning_toys import (  # noqa: E402  (needs Lightning)
    METHODS,
    PLACEMENT,
    VECTORS,
    Module,
    Network,
    data,
    relaxing,
    trainer,
)

from equirelax.integrations.lightning import RelaxationCallback  # noqa: E402

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:.*Checkpoint directory", "ignore:.*sanity check"
)
NOTHING = (torch.zeros(1, 3, 2), torch.zeros(1, 3, 1))  # a batch with a loss of 0
AUTHORS = list(Network().state_dict())


def by_hand(method: str, steps: list[list[tuple[Tensor, Tensor]]], **settings: Any) -> tuple[Network, Any]:
    """The same training in a loop: every step a list of micro-batches."""
    torch.manual_seed(0)
    model = Network()
    relaxation = er.relax(model, PLACEMENT)
    made = er.methods.get(method)(relaxation, **{**METHODS[method], **settings})
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    made.attach(optimizer)
    for batches in steps:
        optimizer.zero_grad()
        for x, y in batches:
            (nn.functional.mse_loss(model(x), y) / len(batches)).backward()
        made.penalty().backward()
        optimizer.step()
    return model, made


@pytest.mark.parametrize("method", METHODS)
def test_it_trains_as_a_loop_does(method: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, callback = Module(), relaxing(method)
    trainer(tmp_path, callback).fit(module, data())
    torch.manual_seed(0)
    extra = {"total_steps": 8} if method == "scheduled" else {}
    model, made = by_hand(method, [[batch] for _ in range(2) for batch in data()], **extra)
    state = er.relaxation_of(model).strict_state_dict()
    if method == "scheduled":  # its regulariser chooses rows at random
        assert callback.method.gamma == 0.0
        assert callback.method.total_steps == callback.method.steps == 8
    else:
        for key, value in module.model.state_dict().items():
            torch.testing.assert_close(
                value, state[key] if "residual" not in key else value, rtol=1e-5, atol=1e-6
            )
        torch.testing.assert_close(callback.method.multipliers, made.multipliers, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["ace", "scheduled"])
def test_micro_batches_are_one_batch(method: str, tmp_path: Path) -> None:
    """10 batches in threes: a step of three, three times, and one of a single batch, whose loss counts a third."""
    settings = {"rows": None} if method == "scheduled" else {}
    torch.manual_seed(0)
    module, callback = Module(), relaxing(method, **settings)
    fit = trainer(tmp_path, callback, max_epochs=1, accumulate_grad_batches=3)
    fit.fit(module, data(80))
    batches = list(data(80))
    steps = [batches[i : i + 3] for i in (0, 3, 6)]
    extra = {"total_steps": 4} if method == "scheduled" else {}
    torch.manual_seed(0)
    model, made = by_hand(method, [*steps, [batches[9], NOTHING, NOTHING]], **settings, **extra)
    state = er.relaxation_of(model).strict_state_dict()
    for key, value in module.model.state_dict().items():
        torch.testing.assert_close(value, state[key], rtol=1e-4, atol=1e-5)
    assert fit.global_step == 4
    assert made.state_dict().get("steps") == callback.method.state_dict().get("steps")


class Returns(Module):
    """Returns a mapping, or nothing for some batches."""

    def __init__(self, nothing: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.nothing = nothing

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Any:
        loss = super().training_step(batch, index)
        return None if index in self.nothing else {"loss": loss, "index": index}


class Outputs(lightning.Callback):
    """Keeps what the training steps returned."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, index: int) -> None:
        self.seen.append(outputs)


def test_a_mapping_keeps_its_other_entries(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, outputs = Returns(), Outputs()
    trainer(tmp_path, relaxing(), outputs).fit(module, data())
    assert [one["index"] for one in outputs.seen] == [0, 1, 2, 3] * 2
    torch.manual_seed(0)
    other = Module()
    trainer(tmp_path, relaxing()).fit(other, data())
    assert all(map(torch.equal, module.model.state_dict().values(), other.model.state_dict().values()))


def test_a_batch_without_a_loss_is_no_step(tmp_path: Path) -> None:
    module, callback = Returns(nothing=(1, 3)), relaxing("scheduled", total_steps=9)
    trainer(tmp_path, callback).fit(module, data())
    assert callback.method.steps == 4  # of 8 batches


def test_a_last_micro_batch_without_a_loss_brings_the_penalty_all_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, callback, outputs = Returns(nothing=(1, 3)), relaxing(augmented=5.0), Outputs()
    trainer(tmp_path, callback, outputs, max_epochs=1, accumulate_grad_batches=2).fit(module, data())
    batches = list(data())
    torch.manual_seed(0)
    model, made = by_hand("ace", [[batches[0], NOTHING], [batches[2], NOTHING]], augmented=5.0)
    state = er.relaxation_of(model).strict_state_dict()
    for key, value in module.model.state_dict().items():
        torch.testing.assert_close(value, state[key], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(callback.state_dict()["method"]["gammas"], made.relaxation.gammas())


def test_a_last_micro_batch_without_a_loss_and_a_penalty_without_gradient(tmp_path: Path) -> None:
    module = Returns(nothing=(1, 3))
    start = [p.detach().clone() for p in module.parameters()]
    trainer(tmp_path, relaxing("strict"), max_epochs=1, accumulate_grad_batches=2).fit(module, data())
    assert not any(map(torch.equal, module.parameters(), start))


def test_a_micro_batch_without_a_loss_does_not_count_in_the_penalty(tmp_path: Path) -> None:
    settings = {"total_steps": 4, "schedule": "constant", "rows": None}
    batches, loader = list(data()), data()
    loader.dataset.tensors[0][8:16] = float("inf")  # type: ignore[attr-defined]
    torch.manual_seed(0)
    module, callback = Returns(nothing=(1,)), relaxing("scheduled", **settings)
    trainer(tmp_path, callback, max_epochs=1, accumulate_grad_batches=2).fit(module, loader)
    model, _ = by_hand("scheduled", [[batches[0], NOTHING], [batches[2], batches[3]]], **settings)
    state = er.relaxation_of(model).strict_state_dict()
    for key, value in module.model.state_dict().items():
        torch.testing.assert_close(value, state[key], rtol=1e-4, atol=1e-5)
    found = [value for one in callback.state_dict()["residuals"].values() for value in one.values()]
    assert found
    assert all(bool(torch.isfinite(value).all()) for value in found)


@pytest.mark.parametrize(("method", "relaxed"), [("ace", False), ("scheduled", False), ("resilient", True)])
def test_evaluations_see_what_is_deployed(method: str, relaxed: bool, tmp_path: Path) -> None:
    class Compare(lightning.Callback):
        def __init__(self) -> None:
            self.found: list[tuple[Tensor, Tensor, Tensor]] = []

        def on_train_epoch_end(self, trainer: Any, pl_module: Module) -> None:
            x = next(iter(data()))[0]
            with torch.no_grad(), er.relaxation_of(pl_module.model).strict():
                projected = pl_module.model(x)
            with torch.no_grad():
                self.found.append((pl_module.outputs[-4], pl_module.model(x), projected))

    module, compare = Module(), Compare()
    settings = {"schedule": "constant"} if method == "scheduled" else {}
    trainer(tmp_path, relaxing(method, **settings), compare, num_sanity_val_steps=1).fit(
        module, data(), data()
    )
    for seen, as_trained, projected in compare.found:
        assert not torch.equal(as_trained, projected)
        torch.testing.assert_close(seen, as_trained if relaxed else projected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_it_ends_with_what_is_deployed(method: str, tmp_path: Path) -> None:
    callback = relaxing(method, audit={"in_rep": VECTORS, "out_rep": VECTORS})
    module = Module()
    trainer(tmp_path, callback).fit(module, data(), data())
    relaxed = method == "resilient"
    assert (callback.projection is None) == relaxed
    assert (callback.relaxation is None) != relaxed
    assert any(isinstance(m, Residual) for m in module.modules()) == relaxed
    assert callback.report is not None
    assert callback.report.equivariant != relaxed
    assert list(module.state_dict()) == [f"model.{key}" for key in AUTHORS]
    assert not {"setup", "training_step", "configure_model"} & set(vars(module))
    assert not module.model._forward_pre_hooks
    if relaxed:
        er.save(module.model, tmp_path / "model.pt")
        again = Network()
        er.load(again, tmp_path / "model.pt")
        x = torch.randn(3, 3, 2)
        assert torch.equal(again(x), module.model(x))


def test_an_audit_by_a_function(tmp_path: Path) -> None:
    x = torch.randn(4, 3, 2)
    callback = relaxing(audit=lambda network: er.audit(network, x, VECTORS, VECTORS, samples=2))
    logger = lightning.loggers.CSVLogger(tmp_path)
    trainer(tmp_path, callback, logger=logger).fit(Module(), data())
    assert callback.report.samples == 2
    text = (Path(logger.log_dir) / "metrics.csv").read_text()
    assert {"relaxation/equivariance_error", "relaxation/largest_gamma"} <= set(
        text.splitlines()[0].split(",")
    )


def test_an_audit_without_a_sample_says_so(tmp_path: Path) -> None:
    class Inner(Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = nn.ModuleDict({"only": Network()})  # which nobody calls

        def training_step(self, batch: Any, index: int) -> Any:
            return nn.functional.mse_loss(self.model["only"](batch[0]), batch[1])

    callback = relaxing(audit={"in_rep": VECTORS, "out_rep": VECTORS})
    with pytest.warns(EquirelaxWarning, match="model"):
        trainer(tmp_path, callback).fit(Inner(), data())
    callback = relaxing(audit={"in_rep": VECTORS, "out_rep": VECTORS}, module="model.only")
    trainer(tmp_path, callback).fit(Inner(), data())
    assert callback.report.equivariant


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("validates", [True, False])
def test_resuming_goes_on_bit_for_bit(method: str, validates: bool, tmp_path: Path) -> None:
    """From the file of an epoch's end, with data in random order."""
    ends = []
    for resumed in (False, True):
        torch.manual_seed(0)
        module, callback = Module(), relaxing(method)
        keep = lightning.callbacks.ModelCheckpoint(
            tmp_path / str(resumed), save_top_k=-1, filename="{epoch}", save_on_train_epoch_end=not validates
        )
        path = tmp_path / "False" / "epoch=1.ckpt" if resumed else None
        if resumed:
            torch.manual_seed(17)
        fit = trainer(tmp_path, callback, keep, max_epochs=4, enable_checkpointing=True)
        fit.fit(module, data(shuffle=True), data() if validates else None, ckpt_path=path, weights_only=True)
        ends.append((module.state_dict(), callback.state_dict()))
        assert fit.global_step == 16
    same(*ends)


def same(found: Any, expected: Any, path: str = "") -> None:
    if isinstance(expected, Tensor):
        assert torch.equal(found, expected), path
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys(), path
        for key, value in expected.items():
            same(found[key], value, f"{path}.{key}")
    elif isinstance(expected, tuple | list):
        for i, (a, b) in enumerate(zip(found, expected, strict=True)):
            same(a, b, f"{path}[{i}]")
    else:
        assert found == expected, path


def test_a_file_that_was_saved_after_fit_can_be_resumed_too(tmp_path: Path) -> None:
    ends = []
    for epochs in ((4,), (2, 4)):
        torch.manual_seed(0)
        for number, last in enumerate(epochs):
            module, callback = Module(), relaxing()
            fit = trainer(tmp_path, callback, max_epochs=last)
            fit.fit(module, data(), ckpt_path=tmp_path / "end.ckpt" if number else None, weights_only=True)
            fit.save_checkpoint(tmp_path / "end.ckpt")
        ends.append((module.state_dict(), callback.method.multipliers))
    same(*ends)


@pytest.mark.parametrize("method", ["ace", "resilient"])
def test_a_checkpoint_loads_without_the_callback(method: str, tmp_path: Path) -> None:
    module = Module()
    fit = trainer(tmp_path, relaxing(method))
    fit.fit(module, data())
    fit.save_checkpoint(tmp_path / "end.ckpt")
    fit.save_checkpoint(tmp_path / "weights.ckpt", weights_only=True)
    for name in ("end.ckpt", "weights.ckpt"):
        content = torch.load(tmp_path / name, weights_only=True)
        assert list(content["state_dict"]) == [f"model.{key}" for key in AUTHORS]
        found = Module.load_from_checkpoint(tmp_path / name)
        x = torch.randn(5, 3, 2)
        with er.relaxation_of(module.model).strict() if method == "resilient" else torch.no_grad():
            assert torch.equal(found.model(x), module.model(x))


@pytest.mark.parametrize("method", ["ace", "resilient"])
def test_another_process_tests_a_checkpoint(method: str, tmp_path: Path) -> None:
    """`trainer.test` alone: a network that is deployed relaxed gets its residuals from the file, another one none."""
    module = Module()
    fit = trainer(tmp_path, relaxing(method))
    fit.fit(module, data())
    fit.save_checkpoint(tmp_path / "end.ckpt")
    (expected,) = fit.test(module, data(), verbose=False)
    fresh, callback = Module(), relaxing(method)
    (found,) = trainer(tmp_path, callback).test(
        fresh, data(), ckpt_path=tmp_path / "end.ckpt", weights_only=True, verbose=False
    )
    assert found == expected
    assert any(isinstance(m, Residual) for m in fresh.modules()) == (method == "resilient")
    (again,) = fit.test(module, data(), ckpt_path=tmp_path / "end.ckpt", weights_only=True, verbose=False)
    assert again == expected


@pytest.mark.parametrize("method", ["ace", "resilient"])
def test_evaluations_before_fit_are_of_the_authors_network(method: str, tmp_path: Path) -> None:
    module, callback = Module(), relaxing(method)
    run = trainer(tmp_path, callback)
    x = next(iter(data()))[0]
    expected = module.model(x)
    run.validate(module, data(), verbose=False)
    run.test(module, data(), verbose=False)
    (first, *_) = run.predict(module, data())
    assert torch.equal(module.outputs[0], expected)
    assert torch.equal(module.outputs[4], expected)
    assert torch.equal(first, expected)
    assert callback.relaxation is None
    run.fit(module, data())
    assert isinstance(callback.method, er.methods.get(method))


def test_every_fit_is_a_training_of_its_own(tmp_path: Path) -> None:
    module, callback = Module(), relaxing("scheduled")
    run = trainer(tmp_path, callback)
    run.fit(module, data())
    first = callback.method
    run.fit_loop.max_epochs = 5
    run.fit(module, data())
    assert callback.method is not first
    assert callback.method.total_steps == callback.method.steps == 12
    other = Module()
    trainer(tmp_path, callback).fit(other, data())
    assert callback.method.total_steps == callback.method.steps == 8
    for one in (module, other):
        assert list(one.state_dict()) == [f"model.{key}" for key in AUTHORS]
        one.load_state_dict(Module().state_dict())


class Stops(lightning.Callback):
    """Raises once, at a step or in validation."""

    def __init__(self, where: str) -> None:
        self.where = where

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if self.where == "training" and trainer.global_step == 3:
            raise RuntimeError("stopped")

    def on_validation_batch_end(self, trainer: Any, *_: Any) -> None:
        if self.where == "validation" and not trainer.sanity_checking:
            raise RuntimeError("stopped")


@pytest.mark.parametrize("where", ["training", "validation"])
def test_after_an_exception_the_module_is_the_authors_and_its_network_relaxed(
    where: str, tmp_path: Path
) -> None:
    module, callback = Module(), relaxing()
    with pytest.raises(RuntimeError, match="stopped"):
        trainer(tmp_path, callback, Stops(where)).fit(module, data(), data())
    assert not {"setup", "training_step", "configure_model"} & set(vars(module))
    relaxation, x = er.relaxation_of(module.model), next(iter(data()))[0]
    with relaxation.strict():
        strict = module.model(x)
    assert not torch.equal(module.model(x), strict)
    module.outputs.clear()
    trainer(tmp_path, callback).validate(module, data(), verbose=False)
    assert torch.equal(module.outputs[0], strict)
    kept = relaxation["layers.0"].map.weight
    for number, again in enumerate(
        (relaxing(), RelaxationCallback("ace", dual_lr=1e-2))
    ):  # as a notebook's cell that runs anew
        with pytest.raises(RuntimeError, match="stopped"):
            trainer(tmp_path, again, Stops("training"), max_epochs=1 + number).fit(module, data())
        assert again.method.relaxation["layers.0"].map.weight is kept
    trainer(tmp_path, relaxing(), max_epochs=1).fit(module, data())
    assert list(module.model.state_dict()) == AUTHORS


def test_after_an_exception_residuals_of_a_relaxation_by_hand_are_in_the_state(tmp_path: Path) -> None:
    module = Module()
    with pytest.raises(RuntimeError, match="stopped"):
        trainer(tmp_path, relaxing(), Stops("training")).fit(module, data())
    assert list(module.state_dict()) == [f"model.{key}" for key in AUTHORS]
    er.project(module.model)
    er.relax(module.model, PLACEMENT)
    for one in (module, copy.deepcopy(module)):
        assert len(one.state_dict()) == 3 * len(AUTHORS)
        with pytest.raises(RuntimeError, match="equirelax_residual"):
            one.load_state_dict(Module().state_dict())
    with pytest.raises(RuntimeError, match="stopped"):
        trainer(tmp_path, relaxing(), Stops("training")).fit(module, data())
    for one in (module, copy.deepcopy(module)):
        assert list(one.state_dict()) == [f"model.{key}" for key in AUTHORS]
        one.load_state_dict(Module().state_dict())
    assert len(module._state_dict_hooks) == len(module._load_state_dict_post_hooks) == 1


def test_early_stopping_is_an_end(tmp_path: Path) -> None:
    stop = lightning.callbacks.EarlyStopping("loss", patience=1, mode="max", min_delta=10.0)
    module, callback = Module(), relaxing("scheduled")
    with pytest.warns(EquirelaxWarning, match="8 of 16"):
        trainer(tmp_path, callback, stop, max_epochs=4).fit(module, data(), data())
    assert callback.projection is not None


def test_a_training_that_runs_no_step(tmp_path: Path) -> None:
    module, callback = Module(), relaxing()
    trainer(tmp_path, callback, max_epochs=0).fit(module, data())
    assert list(module.model.state_dict()) == AUTHORS


class InSetup(Module):
    """Builds its network in setup."""

    def __init__(self) -> None:
        super().__init__()
        del self.model

    def setup(self, stage: str) -> None:
        self.model = Network()


class InConfigureModel(InSetup):
    """Builds its network in configure_model."""

    def setup(self, stage: str) -> None:
        pass

    def configure_model(self) -> None:
        if not hasattr(self, "model"):
            self.model = Network()


class LoadsInSetup(Module):
    """Reads weights in setup, strictly."""

    def setup(self, stage: str) -> None:
        self.model.load_state_dict(Network().state_dict())


@pytest.mark.parametrize("kind", [InSetup, InConfigureModel, LoadsInSetup])
def test_networks_that_are_built_late(kind: type[Module], tmp_path: Path) -> None:
    module, callback = kind(), relaxing()
    trainer(tmp_path, callback).fit(module, data(), data())
    assert len(callback.projection.residuals) == 2
    assert float(callback.method.multipliers.abs().min()) > 0.0


class ByHand(Module):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


class Earlier(Module):
    def __init__(self) -> None:
        super().__init__()
        self.chosen = list(self.model.parameters())

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.chosen, lr=1e-2)


class LBFGS(Module):
    def configure_optimizers(self) -> Any:
        return torch.optim.LBFGS(self.parameters())


@pytest.mark.parametrize(
    ("module", "error", "words"),
    [
        (ByHand, MethodError, "automatic_optimization"),
        (Earlier, StaleOptimizerError, r"layers.0.*model\.parameters"),
        (LBFGS, MethodError, "LBFGS"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    module: type[Module], error: type[Exception], words: str, tmp_path: Path
) -> None:
    refused = module()
    keys = list(refused.state_dict())
    with pytest.raises(error, match=words):
        trainer(tmp_path, relaxing()).fit(refused, data())
    assert not any(isinstance(inside, Residual) for inside in refused.modules())
    assert list(refused.state_dict()) == keys


def test_other_refusals(tmp_path: Path) -> None:
    with pytest.raises(PlacementError, match=r"'net'.*model"):
        trainer(tmp_path, relaxing(module="net")).fit(Module(), data())
    with pytest.raises(MethodError, match="two"):
        trainer(tmp_path, relaxing(), relaxing(module="other")).fit(Module(), data())
    endless = Module()
    with pytest.raises(MethodError, match="max_steps"):
        trainer(tmp_path, relaxing("scheduled"), max_epochs=-1).fit(endless, data())
    assert not any(isinstance(inside, Residual) for inside in endless.modules())
    weights = lightning.callbacks.ModelCheckpoint(tmp_path, save_weights_only=True)
    with pytest.raises(MethodError, match="save_weights_only"):
        trainer(tmp_path, relaxing("resilient"), weights, enable_checkpointing=True).fit(Module(), data())
    relaxed = Module()
    er.relax(relaxed.model, er.Layers(exclude=("layers.1",), declare=PLACEMENT.declare))
    with pytest.raises(PlacementError, match="relaxed already"):
        trainer(tmp_path, relaxing()).fit(relaxed, data())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "acee", "dual_lr": 1e-2}, "acee"),
        ({"method": "ace", "dual_lr": 1e-2, "dual_rl": 1.0}, "'dual_rl'.*dual_optimizer"),
        ({"method": "ace"}, "dual_lr"),
        ({"method": "ace", "dual_lr": -1.0}, "dual_lr"),
        ({"method": {"dual_lr": 1e-2}}, "name"),
        ({"method": {"name": "ace", "dual_lr": 1e-2}, "pi": 0.1}, "pi"),
        ({"method": er.Strict, "peak": 1.0}, "peak"),
        ({"method": lambda relaxation: None, "peak": 1.0}, "peak"),
        ({"method": 3}, "method"),
        ({"method": "ace", "dual_lr": 1e-2, "audit": {"in_reps": "1x1o"}}, "'in_reps'.*in_rep"),
        ({"method": "ace", "dual_lr": 1e-2, "audit": 3}, "audit"),
        ({"method": "ace", "dual_lr": 1e-2, "audit": {"in_rep": "1x1o"}}, "out_rep"),
        ({"method": "ace", "dual_lr": 1e-2, "audit": {"outputs": "forces"}}, "outputs"),
        ({"method": "ace", "dual_lr": "1e-2"}, "dual_lr"),
    ],
)
def test_wrong_settings_are_refused_when_the_callback_is_made(options: dict[str, Any], words: str) -> None:
    with pytest.raises(MethodError, match=words):
        RelaxationCallback(**options)


def test_wrong_paths_are_refused(tmp_path: Path) -> None:
    for options, words in (({"module": None}, "module"), ({"others": "teacher"}, "teacher")):
        with pytest.raises(PlacementError, match=words):
            relaxing(**options)
    with pytest.raises(PlacementError, match="'teecher'"):
        trainer(tmp_path, relaxing(others=("teecher",))).fit(Module(), data())


class Mapping(Network):
    """Returns its input beside its output, as networks of atoms do."""

    def forward(self, x: Tensor) -> Any:
        return {"pos": x, "y": super().forward(x)}


class OfMapping(Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = Mapping()

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Any:
        return nn.functional.mse_loss(self.model(batch[0])["y"], batch[1])


def test_an_audit_of_some_outputs(tmp_path: Path) -> None:
    given = {"in_rep": VECTORS, "out_rep": {"y": VECTORS}, "samples": 2, "lie": False, "per_layer": False}
    callback, module = relaxing(audit={**given, "outputs": ["y"]}), OfMapping()
    trainer(tmp_path, callback, max_epochs=1).fit(module, data())
    assert callback.report.equivariant
    assert not module.model._forward_hooks
    callback = relaxing(audit={**given, "outputs": ["energy"]})
    with pytest.warns(EquirelaxWarning, match=r"energy.*pos, y"):
        trainer(tmp_path, callback, max_epochs=1).fit(OfMapping(), data())
    assert callback.projection is not None


@pytest.mark.parametrize("path", ["model", ""])
def test_the_whole_module_is_saved_with_its_residuals(path: str, tmp_path: Path) -> None:
    module = Module()
    trainer(tmp_path, relaxing("resilient", module=path), max_epochs=1).fit(module, data())
    er.save(module, tmp_path / "module.pt")
    x = torch.randn(3, 3, 2)
    for again in (Module(), module):
        er.load(again, tmp_path / "module.pt")
        assert torch.equal(again.model(x), module.model(x))


def test_processes_that_lose_the_residuals_are_refused(tmp_path: Path) -> None:
    run = trainer(tmp_path, relaxing("resilient"))
    run.strategy._launcher = type("_MultiProcessingLauncher", (), {"launch": lambda _, f, *a, **k: f(*a)})()
    with pytest.raises(MethodError, match="ddp"):
        run.fit(Module(), data())


def test_a_search_for_the_learning_rate(tmp_path: Path) -> None:
    """The method steps in it, and it leaves nothing behind: neither in the training that follows nor in the module."""

    class Rate(Module):
        lr = 1e-2

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), lr=self.lr)

    module, callback = Rate(), relaxing("scheduled", rows=None)
    search = lightning.callbacks.LearningRateFinder(num_training_steps=5, update_attr=False)
    fit = trainer(tmp_path, search, callback)
    fit.fit(module, data(64), data())
    assert callback.method.steps == callback.method.total_steps == fit.global_step == 16
    before = {key: value.clone() for key, value in module.state_dict().items()}
    tuner = lightning.tuner.Tuner(trainer(tmp_path, relaxing()))
    tuner.lr_find(module, data(64), num_training=5, update_attr=False)
    same(module.state_dict(), before)
    assert not any(isinstance(inside, Residual) for inside in module.modules())


def test_methods_by_mapping_class_and_function(tmp_path: Path) -> None:
    def fitted(method: Any, **settings: Any) -> Any:
        callback = RelaxationCallback(method, placement=PLACEMENT, **settings)
        trainer(tmp_path, callback, max_epochs=3, accumulate_grad_batches=2).fit(Module(), data())
        return callback.method

    assert fitted({"name": "ace", "dual_lr": 0.5}).settings.dual_lr == 0.5
    assert fitted(er.ACE, dual_lr=0.5).settings.dual_lr == 0.5
    assert fitted("strict").name == "strict"
    assert fitted(lambda relaxation: er.ACE(relaxation, dual_lr=0.5)).settings.dual_lr == 0.5
    made = fitted(lambda relaxation, total_steps: er.Scheduled(relaxation, 2 * total_steps, peak=0.0))
    assert (made.total_steps, made.steps) == (12, 6)
    assert fitted("scheduled").steps_per_epoch is None
    assert fitted("scheduled", steps_per_epoch="auto").steps_per_epoch == 2
    assert fitted("scheduled", total_steps=6, steps_per_epoch=3).steps_per_epoch == 3
    with pytest.raises(MethodError, match="returned None"):
        fitted(lambda relaxation: None)
    with pytest.raises(MethodError, match="REMUL"):
        fitted("remul")


def test_a_checkpoint_without_the_callback_is_refused(tmp_path: Path) -> None:
    plain = trainer(tmp_path)
    plain.fit(Module(), data())
    plain.save_checkpoint(tmp_path / "plain.ckpt")
    with pytest.raises(CheckpointError, match="without this callback"):
        trainer(tmp_path, relaxing(), max_epochs=4).fit(
            Module(), data(), ckpt_path=tmp_path / "plain.ckpt", weights_only=True
        )
    run, module = trainer(tmp_path, relaxing("resilient")), Module()
    run.fit(module, data())
    with pytest.raises(CheckpointError, match="without this callback"):
        run.test(module, data(), ckpt_path=tmp_path / "plain.ckpt", weights_only=True)


def test_a_method_that_measures_gets_its_function_as_a_setting(tmp_path: Path) -> None:
    held_out = next(iter(data(batch=32)))

    def measure(relaxation: er.relaxation.Relaxation) -> Any:
        return er.symmetry_score(
            relaxation.model, held_out, lambda model, b: (model(b[0]) - b[1]).square().sum((1, 2))
        )

    module, callback = (
        Module(),
        relaxing("symmetry-following", measure=measure, measure_every=4, dead_zone=1.0),
    )
    trainer(tmp_path, callback).fit(module, data())
    assert callback.method.steps == 8
    assert callback.method.ratios.tolist() == pytest.approx(
        list(measure(er.relaxation_of(module.model)).ratios.values()), abs=0.5
    )
    assert all(
        0 < gamma < 1 for gamma in er.relaxation_of(module.model).gammas().tolist()
    )  # deployed relaxed


def test_a_checkpoint_of_other_residuals_or_another_method_is_refused(tmp_path: Path) -> None:
    run = trainer(tmp_path, relaxing())
    run.fit(Module(), data())
    run.save_checkpoint(tmp_path / "ace.ckpt")
    half = er.Layers(exclude=("layers.1",), declare=PLACEMENT.declare)
    for callback, error, words in (
        (relaxing(placement=half), CheckpointError, r"layers\.1"),
        (relaxing("scheduled"), MethodError, "ace"),
    ):
        with pytest.raises(error, match=words):
            trainer(tmp_path, callback, max_epochs=4).fit(
                Module(), data(), ckpt_path=tmp_path / "ace.ckpt", weights_only=True
            )


def test_mixed_precision(tmp_path: Path) -> None:
    module, callback = Module(), relaxing(audit={"in_rep": VECTORS, "out_rep": VECTORS})
    trainer(tmp_path, callback, precision="bf16-mixed").fit(module, data(), data())
    assert callback.method.multipliers.dtype == torch.float32
    assert float(callback.method.multipliers.abs().min()) > 0.0
    assert callback.report.equivariant


@pytest.mark.parametrize("which", [pytest.param("module", marks=pytest.mark.slow), "network"])
def test_compiled(which: str, tmp_path: Path) -> None:
    ends = []
    for compiled in (False, True):
        torch.manual_seed(0)
        module: Any = Module()
        if compiled and which == "module":
            module = torch.compile(module, backend="eager")
        elif compiled:
            module.model = torch.compile(module.model, backend="eager")
        callback = relaxing()
        trainer(tmp_path, callback).fit(module, data(), data())
        ends.append((list(module.parameters()), callback.method.multipliers))
    for found, expected in zip(ends[1][0], ends[0][0], strict=True):
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(ends[1][1], ends[0][1])


def test_without_lightning_the_import_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] in ("lightning", "pytorch_lightning"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    monkeypatch.delitem(sys.modules, "equirelax.integrations.lightning")
    with pytest.raises(ImportError, match="pip install lightning"):
        importlib.import_module("equirelax.integrations.lightning")


def test_from_a_configuration_file(tmp_path: Path) -> None:
    """hydra gives mappings of its own kind; NequIP makes its callbacks so."""
    hydra = pytest.importorskip("hydra.utils")
    omegaconf = pytest.importorskip("omegaconf")
    text = """
      _target_: equirelax.integrations.lightning.RelaxationCallback
      _convert_: all
      method: {name: ace, dual_lr: 1e-2}
      placement:
        _target_: equirelax.Layers
        declare:
          - _target_: equirelax.Linear
            target: Linear
            in_rep: {_target_: equirelax.On, representation: 1x1o, axis: -2}
            channel_axis: -1
      audit: {in_rep: 2x1o, out_rep: 1x1o, samples: 3}
    """

    class Flat(Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = nn.Sequential(nn.Unflatten(-1, (2, 3)), Moved(), Network(), nn.Flatten(-2))

    class Moved(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mT

    flat = [(x.mT.flatten(-2), y.flatten(-2)) for x, y in data()]
    callback = hydra.instantiate(omegaconf.OmegaConf.create(text))
    trainer(tmp_path, callback).fit(Flat(), torch.utils.data.DataLoader(flat, batch_size=None))
    assert callback.report.equivariant
    assert callback.report.samples == 3


def test_without_a_trainer_it_says_what_is_missing() -> None:
    with pytest.raises(MethodError, match="Trainer"):
        RelaxationCallback("ace", dual_lr=1e-2).on_fit_start(None, None)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="trainer"):
        RelaxationCallback("ace", dual_lr=1e-2).load_state_dict({})
