"""Relaxation in Lightning's trainer: a callback, on a LightningModule that knows nothing of it."""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.hooks import RemovableHandle

from equirelax.auditing import AuditReport, audit
from equirelax.errors import (
    CheckpointError,
    EquirelaxWarning,
    MethodError,
    PlacementError,
    StaleOptimizerError,
)
from equirelax.files import did_you_mean
from equirelax.integrations.averages import (
    StrictAverage,
    copies_of,
    held_modules,
    refuse_unknown,
    relax_alike,
)
from equirelax.integrations.choice import MethodChoice
from equirelax.methods import Method
from equirelax.relaxation import Placement, ProjectionReport, Relaxation, project, relax
from equirelax.relaxation.entries import of_residual
from equirelax.relaxation.relaxation import unwrapped
from equirelax.relaxation.residual import Residual
from equirelax.settings import shown

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.utilities import move_data_to_device
    from lightning.pytorch.utilities.model_helpers import is_overridden
except ImportError:
    try:
        from pytorch_lightning import (  # type: ignore[assignment]
            Callback,
            LightningModule,
            Trainer,
        )
        from pytorch_lightning.utilities import move_data_to_device
        from pytorch_lightning.utilities.model_helpers import is_overridden
    except ImportError as missing:
        raise ImportError(
            'equirelax.integrations.lightning needs Lightning: pip install "equirelax[lightning]"'
        ) from missing

SHARDED = ("FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy", "XLAFSDPStrategy")
"""Strategies that cut parameters into pieces, of which penalties and projections would see one each."""
ERROR, STRENGTH = "relaxation/equivariance_error", "relaxation/largest_gamma"


class RelaxationCallback(Callback):
    """Relaxes the network of a LightningModule while it trains, and leaves the module as its author wrote it.

        trainer = Trainer(callbacks=[RelaxationCallback(method="ace", dual_lr=1e-2)])
        trainer.fit(module, data)

    The network at `module.model` is relaxed before `configure_optimizers` is called, so that an optimizer made of the module's
    parameters trains the residuals and their strengths. The method's penalty is added to the loss that `training_step` returns,
    once for every step of the optimizer, and the method steps with the optimizer. Validation, test and prediction see what the
    method deploys. When `fit` ends, the network is projected where the method deploys it so, and audited on request.

    The module's state dict, and so `state_dict` in every checkpoint, has the author's keys alone. The residuals, their
    strengths, the method, and torch's random state are in the callback's state, so that a training continues from
    `fit(ckpt_path=...)`; where it was saved at the end of an epoch, to the bit in one process on a CPU.

    Every `fit` is a training of its own. A network that is relaxed already, by hand or by a `fit` that an exception ended, keeps
    its residuals.

    Args:
        method: The name of a method ("ace", "scheduled", "resilient", ...), with its settings in `settings`; a mapping
            {"name": ..., and the settings}; a class of methods; or a function that makes one of the relaxation, and that may also
            take `total_steps` and `steps_per_epoch` by name.
        module: Path of the network in the LightningModule; "" relaxes the LightningModule itself.
        placement: What `equirelax.relax` takes: a placement or its name. None relaxes what is known by default.
        audit: What to check the network with when `fit` ends, and what `equirelax.audit` takes, by name: {"in_rep": ...,
            "out_rep": ...}. Without "sample" the network's first input in training is the sample. Or a function of the network,
            which returns the report. None: no audit.
        settings: The method's settings by name. Where it needs `total_steps`, the trainer's number of optimizer steps is taken;
            `steps_per_epoch="auto"` takes that of an epoch.

    Attributes:
        relaxation: The handle of the relaxed network; None before, and after a projection.
        method: The method; None before `fit`.
        projection: What the projection at the end of the last `fit` removed; None where the network is deployed relaxed.
        report: The audit at the end of the last `fit`; None without one.

    Raises:
        MethodError: A setting is unknown, missing or out of range; in `fit`, a module that is optimised by hand, a second
            callback of this class, or a strategy that shards parameters.
        PlacementError: `placement` or `module` does not fit.
        StaleOptimizerError: In `fit`, the module's optimizer lacks parameters of the residuals.
        RelaxationStateError: In `fit`, an average of the weights was made before and cannot be paired with the network any more.
        CheckpointError: A checkpoint was not made with this callback, or of another network.
    """

    def __init__(
        self,
        method: str | Mapping[str, Any] | Callable[..., Method] = "ace",
        *,
        module: str = "model",
        placement: Placement | str | None = None,
        audit: Mapping[str, Any] | Callable[[nn.Module], AuditReport] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        self._choice = MethodChoice(method, settings)
        self._path, self._placement = module, placement
        self._audit = _checked_audit(audit)
        self.relaxation: Relaxation | None = None
        self.method: Method | None = None
        self.projection: ProjectionReport | None = None
        self.report: AuditReport | None = None
        self._trainer: Trainer | None = None
        self._module: LightningModule | None = None
        self._deploys_relaxed = bool(self._choice.deploys_relaxed)
        self._copies: dict[str, Relaxation] = {}
        self._averages: dict[str, StrictAverage] = {}
        self._handles: list[RemovableHandle] = []
        self._wrapped: list[tuple[nn.Module, str, Any]] = []
        self._strict = contextlib.ExitStack()
        self._sample: Any = None
        self._built = self._losses = False
        self._start = 0
        self._random: dict[str, Any] | None = None
        self._kept: dict[str, Any] = {}

    # ---- building ----

    @property
    def state_key(self) -> str:
        """The key of the state in a checkpoint."""
        return self._generate_state_key(module=self._path)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Note the module. For `fit`, relax its network when the module's own `setup` and `configure_model` are through."""
        if pl_module is not self._module:
            self._release()
            self.relaxation, self.method, self._kept = None, None, {}
        self._trainer, self._module = trainer, pl_module
        if stage == "fit":
            _check_trainer(trainer)
            self.projection, self.report, self._sample, self._random, self._kept = None, None, None, None, {}
            self._built = self._losses = False
            self._start = trainer.global_step
            late = is_overridden("configure_model", pl_module)
            self._wrap("setup", lambda call: _then(call, lambda: None if late else self._build()))
            self._wrap("configure_model", lambda call: _then(call, self._build))
        elif (network := self._find()) is not None and _is_relaxed(network):
            self._adopt(Relaxation(network))

    def _wrap(self, name: str, around: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        """Replace a function of the module until `_unwrap`."""
        module = self._module
        assert module is not None
        original = getattr(module, name)
        self._wrapped.append((module, name, module.__dict__.get(name)))
        setattr(module, name, functools.wraps(original)(around(original)))

    def _unwrap(self) -> None:
        for module, name, before in reversed(self._wrapped):
            if before is None:
                module.__dict__.pop(name, None)
            else:
                setattr(module, name, before)
        self._wrapped.clear()

    def _find(self) -> nn.Module | None:
        """The network, None where the module has none yet."""
        try:
            assert self._module is not None
            return unwrapped(self._module.get_submodule(self._path))
        except AttributeError:
            return None

    def _build(self) -> None:
        """Relax the network and make the method."""
        module, network = self._module, self._find()
        assert module is not None
        if not module.automatic_optimization:
            raise MethodError(
                f"{type(module).__name__} optimises by hand (automatic_optimization is False), so that a callback cannot add a "
                f"penalty to its loss: add method.penalty() in its training_step, and attach the method in configure_optimizers"
            )
        if network is None:
            raise PlacementError(_no_network(module, self._path))
        if _is_relaxed(network):
            if self._placement is not None and self.relaxation is None:
                raise PlacementError(
                    f"{type(network).__name__} is relaxed already, so that the placement would have no effect: leave it out"
                )
            relaxation = Relaxation(network)
        else:
            relaxation = relax(network, self._placement)
        self._adopt(relaxation)
        self._make_method()
        if not self._built:
            self._wrap(
                "training_step",
                lambda call: lambda *args, **kwargs: self._with_penalty(call(*args, **kwargs)),
            )
            self._built = True

    def _make_method(self) -> None:
        assert self.relaxation is not None
        lengths = {"total_steps": self._total_steps, "steps_per_epoch": self._steps_per_epoch}
        self.method = self._choice.make(self.relaxation, lengths)
        self._deploys_relaxed = self.method.deploys_relaxed

    def _total_steps(self) -> int:
        assert self._trainer is not None
        steps = self._trainer.estimated_stepping_batches
        if not math.isfinite(steps) or steps < 0:
            raise MethodError(
                "the trainer does not know how many steps the training has (no max_epochs and no max_steps, or data without a "
                "length): give Trainer(max_steps=...), or total_steps to the callback"
            )
        return max(int(steps) - self._start, 1)

    def _steps_per_epoch(self) -> int:
        assert self._trainer is not None
        self._total_steps()  # loads the data
        batches = self._trainer.num_training_batches
        if not math.isfinite(batches):
            raise MethodError("the data have no length: give steps_per_epoch as a number")
        return max(math.ceil(batches / self._trainer.accumulate_grad_batches), 1)

    # ---- a relaxed network inside the module ----

    def _adopt(self, relaxation: Relaxation) -> None:
        """Keep the residuals out of state dicts, pair averages with the network, and note an input for the audit."""
        self._release()
        self.relaxation = relaxation
        self._pair()
        if isinstance(self._audit, Mapping) and "sample" not in self._audit and self._sample is None:
            hook = relaxation.model.register_forward_pre_hook(self._note_input, with_kwargs=True)
            self._handles.append(hook)

    def _pair(self) -> None:
        """Relax copies of the network, and adapt averages; called again where some may have been made in between."""
        module, relaxation = self._module, self.relaxation
        assert module is not None
        assert relaxation is not None
        assert self._trainer is not None
        others = (c for c in _callbacks(self._trainer) if c is not self)
        owners: dict[str, object] = {type(module).__name__: module, **{type(c).__name__: c for c in others}}
        self._copies = {
            name: relax_alike(copy, relaxation, name)
            for name, copy in copies_of(relaxation.model, owners).items()
        }
        for name, held in held_modules(owners):
            for path, inside in held.named_modules():
                if StrictAverage.fits(inside) and not any(a.is_of(inside) for a in self._averages.values()):
                    self._averages[f"{name}.{path}" if path else name] = StrictAverage(inside, relaxation)
        known = [
            *(copy.model for copy in self._copies.values()),
            *(a.average for a in self._averages.values()),
        ]
        refuse_unknown(relaxation.model, owners, known)
        modules = [
            module,
            *(m for _, held in held_modules(owners) for m in held.modules() if type(m) is type(module)),
        ]
        for one in modules:
            if not any(hook is _leave_residuals_out for hook in one._state_dict_hooks.values()):
                self._handles.append(one.register_state_dict_post_hook(_leave_residuals_out))
                self._handles.append(one.register_load_state_dict_post_hook(_miss_no_residuals))

    def _release(self) -> None:
        """Undo `_adopt`."""
        for handle in self._handles:
            handle.remove()
        for average in self._averages.values():
            average.remove()
        self._handles, self._averages, self._copies = [], {}, {}

    def _note_input(self, network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._sample is None and network.training:
            self._sample = _as_sample(network, args, kwargs)

    # ---- training ----

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach the method to the module's optimizers, which hold every parameter of the residuals."""
        assert self.relaxation is not None
        assert self.method is not None
        self._pair()
        held = {
            id(p)
            for optimizer in trainer.optimizers
            for group in optimizer.param_groups
            for p in group["params"]
        }
        strengths = {f"{key}.gamma": p for key, p in self.relaxation.gamma_parameters().items()}
        trained = {**self.relaxation.residual_parameters(), **strengths}
        left_out = [name for name, p in trained.items() if p.requires_grad and id(p) not in held]
        if left_out:
            raise StaleOptimizerError(
                f"the optimizer that {type(pl_module).__name__}.configure_optimizers made lacks {len(left_out)} of "
                f"{len(trained)} parameters of the residuals, such as {left_out[0]}: take the network's parameters there, "
                f"self.{self._path or 'parameters'}{'.parameters' if self._path else ''}(), and not a list that was made before"
            )
        if self._deploys_relaxed:
            _check_checkpoints(trainer, self.method)
        self.method.attach(trainer.optimizers)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Continue with the random numbers of the checkpoint from which the training goes on."""
        self._pair()
        if self._random is not None:
            torch.set_rng_state(self._random["cpu"].cpu())
            if self._random["cuda"] is not None and torch.cuda.is_available():
                torch.cuda.set_rng_state(self._random["cuda"].cpu(), pl_module.device)
            self._random = None

    def _with_penalty(self, output: Any) -> Any:
        """What `training_step` returned, with the penalty where a step of the optimizer follows.

        The trainer divides every loss by the number of batches that it accumulates.
        """
        trainer, method = self._trainer, self.method
        assert trainer is not None
        assert method is not None
        loss = output.get("loss") if isinstance(output, Mapping) else output
        self._losses = self._losses or loss is not None
        ready = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        ends = trainer.is_last_batch or ready >= trainer.num_training_batches
        if not ends and ready % trainer.accumulate_grad_batches != 0:
            return output
        if not self._losses:
            method.skip()
            return output
        self._losses = False
        penalty = method.penalty() * trainer.accumulate_grad_batches
        if output is None:
            return penalty
        if not isinstance(loss, Tensor):
            return output  # the trainer says what is wrong with it
        return {**output, "loss": loss + penalty} if isinstance(output, Mapping) else loss + penalty

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the largest strength."""
        if self.relaxation is not None:
            pl_module.log(STRENGTH, self.relaxation.gammas().abs().max(), sync_dist=trainer.world_size > 1)

    # ---- evaluation ----

    def _begin_evaluation(self) -> None:
        if self.relaxation is not None and not self._deploys_relaxed:
            self._pair()
            for handle in (self.relaxation, *self._copies.values()):
                self._strict.enter_context(handle.strict())

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the network as the method deploys it."""
        self._begin_evaluation()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the network as it trains."""
        self._strict.close()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See `on_validation_start`."""
        self._begin_evaluation()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See `on_validation_end`."""
        self._strict.close()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See `on_validation_start`."""
        self._begin_evaluation()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See `on_validation_end`."""
        self._strict.close()

    # ---- the end ----

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Project the network where the method deploys it projected, and audit it."""
        self._unwrap()
        if self.relaxation is None or self.method is None:
            return
        network = self.relaxation.model
        self._pair()
        self._kept = self._collect()
        if not self._deploys_relaxed:
            _warn_if_early(self.method, float(self.relaxation.gammas().abs().max()))
            copies = list(self._copies.values())
            self._release()
            self.projection = project(network)
            for copy in copies:
                project(copy.model)
            self.relaxation = None
        self.report = self._audited(network)
        if self.report is not None:
            for logger in trainer.loggers:
                logger.log_metrics({ERROR: self.report.relative}, step=trainer.global_step)

    def _audited(self, network: nn.Module) -> AuditReport | None:
        if self._audit is None:
            return None
        if not isinstance(self._audit, Mapping):
            return self._audit(network)
        arguments = dict(self._audit)
        sample = arguments.pop("sample", self._sample)
        self._sample = None
        if sample is None:
            warnings.warn(
                f"no audit: {type(network).__name__} at {self._path!r} was not called in training. Give the path of the module "
                f'that is called, or audit={{"sample": ...}}',
                EquirelaxWarning,
                stacklevel=2,
            )
            return None
        device = next((p.device for p in network.parameters()), torch.device("cpu"))
        return audit(network, move_data_to_device(sample, device), **arguments)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the module its functions back; its network stays relaxed, as training left it."""
        self._strict.close()
        self._unwrap()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the module its functions back."""
        self._strict.close()
        self._unwrap()

    # ---- checkpoints ----

    def state_dict(self) -> dict[str, Any]:
        """The residuals with their strengths, the method, averages of the residuals, and torch's random state: tensors and plain
        data. After `fit` the state as it was at its end, before the projection.
        """
        if self._kept or self.relaxation is None or self.method is None:
            return self._kept
        return self._collect()

    def _collect(self) -> dict[str, Any]:
        assert self.relaxation is not None
        assert self.method is not None
        return {
            "deploys_relaxed": self._deploys_relaxed,
            "start": self._start,
            "method": self.method.state_dict(),
            "residuals": _state_of(self.relaxation),
            "copies": {name: _state_of(copy) for name, copy in self._copies.items()},
            "averages": {name: average.beside.state_dict() for name, average in self._averages.items()},
            "random": self._random_state(),
        }

    def _random_state(self) -> dict[str, Any] | None:
        """None with several processes, of which the first alone writes."""
        assert self._trainer is not None
        assert self._module is not None
        if self._trainer.world_size > 1:
            return None
        device = self._module.device
        cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        return {"cpu": torch.get_rng_state(), "cuda": cuda}

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Refuse a checkpoint that was made without this callback where its residuals would be missed."""
        needed = trainer.state.fn == "fit" or (self._deploys_relaxed and self.relaxation is not None)
        if needed and not checkpoint.get("callbacks", {}).get(self.state_key):
            raise CheckpointError(
                f"the checkpoint has no state of {self.state_key}: it was made without this callback, or for another module. To "
                f"start from its weights, load them into the module and call fit without ckpt_path"
            )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from `state_dict()`. Outside of `fit` it is needed where the network is deployed relaxed alone.

        Raises:
            CheckpointError: The state is of a network with other residuals.
            MethodError: The state is of another method.
        """
        assert self._trainer is not None
        fitting = self._trainer.state.fn == "fit"
        if not fitting and not state_dict["deploys_relaxed"]:
            return
        if self.relaxation is None:
            network = self._find()
            if network is None:
                assert self._module is not None
                raise PlacementError(_no_network(self._module, self._path))
            self._adopt(relax(network, self._placement))
        assert self.relaxation is not None
        self._deploys_relaxed = bool(state_dict["deploys_relaxed"])
        _fill(self.relaxation, state_dict["residuals"], "the network")
        self._pair()
        for name, copy in self._copies.items():
            if name in state_dict["copies"]:
                _fill(copy, state_dict["copies"][name], name)
        for name, average in self._averages.items():
            if name in state_dict["averages"]:
                average.beside.load_state_dict(state_dict["averages"][name])
        if fitting:
            assert self.method is not None
            if state_dict["start"] != self._start:
                self._start = int(state_dict["start"])
                self._make_method()
            self.method.load_state_dict(state_dict["method"])
            self._random = state_dict["random"]


def _then(call: Callable[..., Any], after: Callable[[], None]) -> Callable[..., Any]:
    def both(*args: Any, **kwargs: Any) -> Any:
        result = call(*args, **kwargs)
        after()
        return result

    return both


def _is_relaxed(network: nn.Module) -> bool:
    return any(isinstance(module, Residual) for module in network.modules())


def _no_network(module: LightningModule, path: str) -> str:
    children = [f"{name} ({type(child).__name__})" for name, child in module.named_children()]
    hint = did_you_mean(path, [name for name, _ in module.named_children()])
    return (
        f"{type(module).__name__} has no module {path!r}.{hint} It has {', '.join(children) or 'none'}: "
        f"give the network's path, RelaxationCallback(module=...)"
    )


def _callbacks(trainer: Trainer) -> list[Callback]:
    found: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return found


def _check_trainer(trainer: Trainer) -> None:
    if sum(isinstance(callback, RelaxationCallback) for callback in _callbacks(trainer)) > 1:
        raise MethodError(
            "the trainer has two callbacks of this class: relax a module that contains both parts, or the whole, with one"
        )
    if type(trainer.strategy).__name__ in SHARDED:
        raise MethodError(
            f"{type(trainer.strategy).__name__} cuts parameters into pieces, of which penalties and projections need the whole: "
            f"train with DDP"
        )


def _check_checkpoints(trainer: Trainer, method: Method) -> None:
    """A checkpoint of weights alone has no callback's state, and so no residuals."""
    for callback in trainer.checkpoint_callbacks:
        if getattr(callback, "save_weights_only", False):
            raise MethodError(
                f"{type(callback).__name__}(save_weights_only=True) would leave out the residuals, which {type(method).__name__} "
                f"deploys: set it to False"
            )


def _checked_audit(given: Any) -> Any:
    if given is None or (callable(given) and not isinstance(given, Mapping)):
        return given
    known = list(inspect.signature(audit).parameters)[1:]
    if not isinstance(given, Mapping):
        raise MethodError(
            f'audit is {shown(given)}; expected a mapping such as {{"in_rep": "2x0e+2x1o", "out_rep": "1x1o"}}, or a function of '
            f"the network"
        )
    for name in given:
        if name not in known:
            raise MethodError(
                f"audit has no argument {name!r}.{did_you_mean(str(name), known)} It has {', '.join(known)}"
            )
    return given


def _as_sample(network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A call's arguments in the form that `audit` takes, copied: the network may write into them."""
    if kwargs and args:
        kwargs, args = dict(inspect.signature(network.forward).bind(*args, **kwargs).arguments), ()
    sample = kwargs if kwargs else args if len(args) > 1 else args[0]
    return tree_map(_copied, sample)


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    return value.clone() if hasattr(value, "clone") else value


def _state_of(relaxation: Relaxation) -> dict[str, dict[str, Tensor]]:
    return {key: dict(residual.state_dict()) for key, residual in relaxation}


def _fill(relaxation: Relaxation, state: Mapping[str, Mapping[str, Tensor]], what: str) -> None:
    here, there = list(relaxation.residuals), list(state)
    if here != there:
        odd: Iterable[str] = sorted(set(here) ^ set(there)) or here
        raise CheckpointError(
            f"the checkpoint's residuals are not those of {what}, such as {next(iter(odd))!r} ({len(there)} there, {len(here)} "
            f"here): use the placement it was trained with"
        )
    for key, residual in relaxation:
        try:
            residual.load_state_dict(state[key])
        except RuntimeError as error:
            raise CheckpointError(
                f"the checkpoint's residual {key!r} does not fit that of {what}: {error}"
            ) from error


def _leave_residuals_out(
    module: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]
) -> None:
    """A hook of `state_dict`."""
    for key in [key for key in state if key.startswith(prefix) and of_residual(key)]:
        del state[key]


def _miss_no_residuals(module: nn.Module, incompatible: Any) -> None:
    """A hook of `load_state_dict`."""
    incompatible.missing_keys[:] = [key for key in incompatible.missing_keys if not of_residual(key)]


def _warn_if_early(method: Method, gamma: float) -> None:
    total, steps = getattr(method, "total_steps", None), getattr(method, "steps", None)
    if total is not None and steps is not None and steps < total and gamma > 0.0:
        warnings.warn(
            f"{type(method).__name__}: training ended after {steps} of {total} steps, where gamma is {gamma:.2g}, and the "
            f"network was projected from there: what was validated is what is left, but the schedule had not come to its end",
            EquirelaxWarning,
            stacklevel=2,
        )
