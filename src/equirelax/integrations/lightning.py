"""Relaxation in Lightning's trainer, by a callback. The LightningModule needs no changes."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from equirelax.auditing import AuditReport, audit
from equirelax.errors import (
    CheckpointError,
    EquirelaxError,
    EquirelaxWarning,
    MethodError,
    PlacementError,
    StaleOptimizerError,
)
from equirelax.files import did_you_mean
from equirelax.integrations.choice import MethodChoice
from equirelax.integrations.inside import RelaxedInside
from equirelax.integrations.trainer_run import TrainerRun, callbacks_of
from equirelax.methods import Method, ProjectedLoss
from equirelax.relaxation import Placement, ProjectionReport, Relaxation, placements, project, relax
from equirelax.relaxation.relaxation import unwrapped
from equirelax.relaxation.residual import Residual
from equirelax.settings import COUNT, check, shown

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.utilities import move_data_to_device
except ImportError:
    try:
        from pytorch_lightning import (  # type: ignore[assignment]
            Callback,
            LightningModule,
            Trainer,
        )
        from pytorch_lightning.utilities import move_data_to_device
    except ImportError as missing:
        raise ImportError(
            "equirelax.integrations.lightning needs Lightning: pip install lightning"
        ) from missing

SHARDED = ("FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy", "XLAFSDPStrategy")
"""Strategies that shard parameters, whereas penalties and projections need whole ones."""
AVERAGE = "._average_model.module{}"
"""The path at which Lightning's WeightAveraging keeps its copy of the network."""
SPAWNED = "_MultiProcessingLauncher"
ERROR, STRENGTH = "relaxation/equivariance_error", "relaxation/largest_gamma"
LOSSES = "relaxation/{}_loss"


class RelaxationCallback(Callback):
    """Relaxes the network of a LightningModule during training, and leaves the module as its author wrote it.

        trainer = Trainer(callbacks=[RelaxationCallback(method="ace", dual_lr=1e-2)])
        trainer.fit(module, data)

    The network at `module.model` is relaxed before `configure_optimizers` is called, so that an optimizer of the module's
    parameters also trains the residuals and their strengths. The method's penalty is added to the loss that `training_step`
    returns, once per optimizer step, and the method steps with the optimizer. Validation, test and prediction use the network
    as the method deploys it. When `fit` ends, the network is projected if the method deploys it projected, and audited on
    request.

    The module's state dict, and therefore `state_dict` in every checkpoint, has only the author's keys. The residuals, their
    strengths, the method, and torch's random state are in the callback's state, so that training continues from
    `fit(ckpt_path=...)`. From a checkpoint at the end of an epoch, in one process on a CPU, it continues bit for bit.

    Every `fit` is a separate training run. A network that is already relaxed, by hand or by a `fit` that an exception ended,
    keeps its residuals. A `fit` that is refused leaves the module as it was.

    Args:
        method: The name of a method ("ace", "scheduled", "resilient", ...), with its settings in `settings`; a mapping
            {"name": ..., and the settings}; a class of methods; or a function that makes a method from the relaxation, and that
            may also take `total_steps` and `steps_per_epoch` by name.
        module: Path of the network in the LightningModule; "" relaxes the LightningModule itself.
        placement: A placement or its name, as for `equirelax.relax`. None relaxes the layers that are known by default.
        audit: Arguments of `equirelax.audit` by name, {"in_rep": ..., "out_rep": ...}, for a check of the network when `fit`
            ends. Without "sample", the network's first input in training is the sample. If the network returns a mapping,
            "outputs" lists the entries to compare, by default all. Or a function of the network that returns the report.
            None: no audit.
        watch: Steps from one measurement of the projected network's training loss to the next; see
            `equirelax.methods.ProjectedLoss`. At these steps `training_step` is called a second time, without residuals
            and gradients of the parameters. The module's `log` then does nothing, but any other side effects of
            `training_step` happen twice. None: no measurement.
        others: Paths of modules in the LightningModule, or in another callback, that look like a copy of the network but are
            separate networks, such as a teacher. They stay as they are.
        settings: The method's settings by name. If the method needs `total_steps`, it gets the trainer's number of optimizer
            steps; `steps_per_epoch="auto"` gives it the number per epoch.

    Attributes:
        method: The method; None before `fit`.
        projection: The report of the projection at the end of the last `fit`; None if the network is deployed relaxed.
        report: The audit at the end of the last `fit`; None without one.
        watch: The `ProjectedLoss` that measures the projected network's training loss; None without it.

    Raises:
        MethodError: A setting is unknown, missing or out of range. In `fit`: the module uses manual optimization, there is a
            second callback of this class, or the strategy shards parameters or trains a copy of a network that is deployed
            relaxed in another process.
        PlacementError: In `fit`, `placement`, `module` or `others` does not fit.
        StaleOptimizerError: In `fit`, the module's optimizer lacks parameters of the residuals.
        RelaxationStateError: In `fit`, an average of the weights that was made before can no longer be paired with the network.
        CheckpointError: A checkpoint was not made with this callback, or is of another network.
    """

    def __init__(
        self,
        method: str | Mapping[str, Any] | Callable[..., Method] = "ace",
        *,
        module: str = "model",
        placement: Placement | str | None = None,
        audit: Mapping[str, Any] | Callable[[nn.Module], AuditReport] | None = None,
        watch: int | None = None,
        others: Sequence[str] = (),
        **settings: Any,
    ) -> None:
        super().__init__()
        if not isinstance(module, str):
            raise PlacementError(
                f"module is {shown(module)}; expected the network's path in the LightningModule, such as 'model', or '' for all"
            )
        if isinstance(others, str):
            raise PlacementError(f"others is the text {others!r}; expected a list of paths, [{others!r}]")
        self._choice = MethodChoice(_plain(method), settings)
        self._path, self._placement, self._audit = module, placement, _checked_audit(audit)
        check(watch, COUNT, "watch", MethodError)
        self._others, self._every = tuple(others), watch
        self.method: Method | None = None
        self.watch: ProjectedLoss | None = None
        self.projection: ProjectionReport | None = None
        self.report: AuditReport | None = None
        self._deploys_relaxed = bool(self._choice.deploys_relaxed)
        self._inside: RelaxedInside | None = None
        self._run: TrainerRun | None = None
        self._start = 0  # the trainer's step at which the method was made
        self._kept: dict[str, Any] = {}  # the state at the end of the last fit, before the projection

    @property
    def state_key(self) -> str:
        """The key of the state in a checkpoint."""
        return self._generate_state_key(module=self._path)

    @property
    def relaxation(self) -> Relaxation | None:
        """The handle of the relaxed network; None before `fit`, and after a projection."""
        return None if self._inside is None else self._inside.relaxation

    # Building

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """For `fit`, arrange that the network is relaxed after the module's own `setup` and `configure_model`."""
        if self._run is None or self._run.module is not pl_module:
            self._let_go()
            self.method, self._kept = None, {}
        self._run = run = TrainerRun(trainer, pl_module, stage == "fit")
        run.was_relaxed = self._inside is not None
        if run.fitting:
            _check_trainer(trainer)
            self.projection, self.report, self._kept = None, None, {}
            self._start = trainer.global_step
            run.wrap("setup", lambda call: _then(call, lambda: self._after_setup(run)))
            run.wrap("configure_model", lambda call: _then(call, lambda: self._after_configure(run)))
        elif (network := _found(pl_module, self._path)) is not None and _is_relaxed(network):
            self._adopt(run, Relaxation(network))
        else:
            self._let_go()

    def _after_setup(self, run: TrainerRun) -> None:
        run.is_set_up = True
        if not _builds_late(run.module):
            self._build(run)

    def _after_configure(self, run: TrainerRun) -> None:
        if run.is_set_up:  # other callbacks call it in their setup
            self._build(run)

    def _build(self, run: TrainerRun) -> None:
        """Relax the network, make the method, and arrange that its penalty is added."""
        if not run.module.automatic_optimization:
            raise MethodError(
                f"{type(run.module).__name__} uses manual optimization (automatic_optimization is False), so a callback cannot "
                f"add a penalty to its loss: call penalty and attach in the module, as in the README's loop"
            )
        network = _network(run.module, self._path)
        run.fresh = not _is_relaxed(network)
        relaxation = relax(network, self._placement) if run.fresh else Relaxation(network)
        _check_placement(relaxation, self._placement)
        self._make_method(run, relaxation)  # it sets the strengths, with which averages begin
        self._adopt(run, relaxation)
        if isinstance(self._audit, Mapping) and "sample" not in self._audit:
            run.note_input(network)
        self.watch = None if self._every is None else self._made_watch(relaxation, self._every)
        run.wrap("training_step", lambda call: functools.partial(self._trained, run, call))

    def _make_method(self, run: TrainerRun, relaxation: Relaxation) -> Method:
        lengths = {"total_steps": lambda: run.steps(self._start), "steps_per_epoch": run.steps_per_epoch}
        self.method = self._choice.make(relaxation, lengths)
        self._deploys_relaxed = self.method.deploys_relaxed
        return self.method

    def _made_watch(self, relaxation: Relaxation, every: int) -> ProjectedLoss:
        if self._deploys_relaxed:
            raise MethodError(
                f"{type(self.method).__name__} deploys the network with its residuals, so the projected network's loss "
                f"has no meaning: leave watch out"
            )
        return ProjectedLoss(relaxation, every=every)

    def _adopt(self, run: TrainerRun, relaxation: Relaxation) -> RelaxedInside:
        self._let_go()
        self._inside = RelaxedInside(relaxation, run.module, lambda: run.owners(self), self._others)
        return self._inside

    def _let_go(self) -> None:
        if self._inside is not None:
            self._inside.release()
            self._inside = None

    # Training

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach the method to the module's optimizers, which must hold every parameter of the residuals."""
        self._attach()

    def _at_work(self) -> tuple[TrainerRun, RelaxedInside, Method]:
        """The run, the relaxed network and the method of the current call of `fit`.

        Raises:
            MethodError: No trainer has set the callback up.
        """
        if self._run is None or self._inside is None or self.method is None:
            raise MethodError(
                "the callback has relaxed no network yet: give it to Trainer(callbacks=[...]), and call the trainer's fit"
            )
        return self._run, self._inside, self.method

    def _attach(self) -> None:
        run, inside, method = self._at_work()
        inside.pair()
        _check_held(run.trainer, inside.relaxation, run.module, self._path)
        if self._deploys_relaxed:
            _check_what_stays(run.trainer, method)
        method.attach(run.trainer.optimizers)
        run.attached = True

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the random state of the checkpoint."""
        if self._run is not None:
            self._run.restore_random()

    def _trained(self, run: TrainerRun, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call `training_step` and add the penalty."""
        _, inside, _ = self._at_work()
        kept = [(residual, residual.inputs_kept) for residual in inside.relaxation.residuals.values()]
        output = call(*args, **kwargs)
        loss = _loss_of(output)
        if loss is None:  # forget the inputs of this batch, but not those of the step's other micro-batches
            for residual, count in kept:
                residual.forget_inputs(count)
        if self.watch is not None and isinstance(loss, Tensor) and run.step_follows():
            with run.silent():
                measured = self.watch(loss, lambda: _loss_of(call(*args, **kwargs)))
            if measured:
                several = run.trainer.world_size > 1
                for name, value in self.watch.scalars().items():
                    run.module.log(
                        LOSSES.format(name), value, on_step=True, on_epoch=False, sync_dist=several
                    )
        return self._with_penalty(run, output)

    def _with_penalty(self, run: TrainerRun, output: Any) -> Any:
        """Add the penalty to the output of `training_step` if an optimizer step follows.

        The trainer divides every loss by the number of batches that it accumulates.
        """
        _, _, method = self._at_work()
        run.trained = True
        if not run.attached:  # a search for the learning rate trains in its own on_fit_start
            self._attach()
        loss = _loss_of(output)
        run.has_loss = run.has_loss or loss is not None
        if not run.step_follows():
            return output
        if not run.has_loss:
            method.skip()
            return output
        run.has_loss = False
        penalty = method.penalty() * run.trainer.accumulate_grad_batches
        if output is None:  # Strict's has no gradient
            return penalty if penalty.requires_grad else None
        if not isinstance(loss, Tensor):
            return output  # the trainer reports what is wrong with it
        return {**output, "loss": loss + penalty} if isinstance(output, Mapping) else loss + penalty

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the largest strength."""
        if self.relaxation is not None:
            pl_module.log(STRENGTH, self.relaxation.gammas().abs().max(), sync_dist=trainer.world_size > 1)

    # Evaluation

    def _begin_evaluation(self) -> None:
        if self._inside is not None and not self._deploys_relaxed:
            self._inside.begin_strict()

    def _end_evaluation(self) -> None:
        if self._inside is not None:
            self._inside.end_strict()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the network as the method deploys it."""
        self._begin_evaluation()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the network as it trains."""
        self._end_evaluation()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See `on_validation_start`."""
        self._begin_evaluation()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See `on_validation_end`."""
        self._end_evaluation()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See `on_validation_start`."""
        self._begin_evaluation()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See `on_validation_end`."""
        self._end_evaluation()

    # The end

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Project the network if the method deploys it projected, and audit it."""
        run, inside, method = self._at_work()
        run.end()
        network = inside.relaxation.model
        if not self._deploys_relaxed:
            _warn_if_early(method, float(inside.relaxation.gammas().abs().max()))
            self._kept = self.state_dict()
            self.projection = inside.project()
            self._inside = None
        try:
            self.report = self._audited(network, run.sample)
        except EquirelaxError as error:
            # the training is done, and the program must be able to continue
            warnings.warn(f"the audit failed. {error}", EquirelaxWarning, stacklevel=2)
        run.sample = None
        run.is_over = True
        if self.report is not None:
            for logger in trainer.loggers:
                logger.log_metrics({ERROR: self.report.relative}, step=trainer.global_step)
            if self.projection is not None and not self.report.equivariant:
                warnings.warn(
                    f"the projected {type(network).__name__} is not equivariant (relative error {self.report.relative:.1e}): "
                    f"print(callback.report) says which module breaks it",
                    EquirelaxWarning,
                    stacklevel=2,
                )

    def _audited(self, network: nn.Module, noted: Any) -> AuditReport | None:
        if self._audit is None:
            return None
        if not isinstance(self._audit, Mapping):
            report: AuditReport = self._audit(network)
            return report
        arguments = dict(self._audit)
        sample = arguments.pop("sample", noted)
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
        """Restore the module's functions. A network that was trained stays relaxed, as training left it."""
        self._end_evaluation()
        run = self._run
        if run is None:
            return
        run.end()
        if not run.trained:
            self._undo(run)

    def _undo(self, run: TrainerRun) -> None:
        """Restore the module to its state before this call."""
        if not run.fitting or run.was_relaxed:
            return
        if self._inside is not None:
            self._inside.undo()
            self._inside = None
        network = _found(run.module, self._path)
        if run.fresh and network is not None and _is_relaxed(network):
            project(network)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restore the module's functions."""
        run = self._run
        if run is not None:
            run.end()
            if (
                run.fitting and not run.is_over
            ):  # a search by Lightning's Tuner, which has put the weights back
                self._undo(run)

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """The state of the residuals with their strengths, the method, averages of the residuals, and torch's random numbers.

        It consists of tensors and plain data. After `fit` it is the state at its end, before the projection.
        """
        if self._kept or self._inside is None or self.method is None or self._run is None:
            return self._kept
        own = {
            "deploys_relaxed": self._deploys_relaxed,
            "start": self._start,
            "random": self._run.random_state(),
        }
        watched = {} if self.watch is None else {"watch": self.watch.state_dict()}
        return {**own, **self._inside.state(), **watched, "method": self.method.state_dict()}

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Reject a checkpoint that was made without this callback if its residuals are needed."""
        if self._run is not None:
            # Lightning's WeightAveraging: "state_dict" has the averages
            self._run.averaged = "current_model_state" in checkpoint
        needed = trainer.state.fn == "fit" or (self._deploys_relaxed and self._inside is not None)
        if needed and not checkpoint.get("callbacks", {}).get(self.state_key):
            raise CheckpointError(
                f"the checkpoint has no state of {self.state_key}: it was made without this callback, or for another module. To "
                f"start from its weights, load them into the module and call fit without ckpt_path"
            )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from `state_dict()`. Outside `fit` this is needed only if the network is deployed relaxed.

        Raises:
            CheckpointError: The state is of a network with other residuals.
            MethodError: The state is of another method.
        """
        run = self._run
        if run is None:
            raise CheckpointError(
                "the callback's state is loaded by a trainer: trainer.fit(module, ckpt_path=...)"
            )
        if not run.fitting and not state_dict["deploys_relaxed"]:
            return
        self._deploys_relaxed = bool(state_dict["deploys_relaxed"])
        inside = self._inside or self._adopt(run, relax(_network(run.module, self._path), self._placement))
        inside.load(
            state_dict, AVERAGE.format(f".{self._path}" if self._path else "") if run.averaged else ""
        )
        if run.fitting:
            method = self.method
            if method is None or state_dict["start"] != self._start:
                self._start = int(state_dict["start"])
                method = self._make_method(run, inside.relaxation)
            method.load_state_dict(state_dict["method"])
            if self.watch is not None and "watch" in state_dict:
                self.watch.load_state_dict(state_dict["watch"])
            run.random = state_dict["random"]


def _loss_of(output: Any) -> Any:
    """The loss in the output of `training_step`."""
    return output.get("loss") if isinstance(output, Mapping) else output


def _then(call: Callable[..., Any], after: Callable[[], None]) -> Callable[..., Any]:
    def both(*args: Any, **kwargs: Any) -> Any:
        result = call(*args, **kwargs)
        after()
        return result

    return both


def _plain(value: Any) -> Any:
    """Convert mappings and lists of configurations, such as OmegaConf's, to Python's."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | tuple):
        return [_plain(inner) for inner in value]
    return value


def _builds_late(module: LightningModule) -> bool:
    """Whether the module defines `configure_model`, which Lightning then calls after `setup`."""
    owner = next(cls for cls in type(module).__mro__ if "configure_model" in vars(cls))
    return owner.__module__.split(".")[0] not in ("lightning", "pytorch_lightning")


def _is_relaxed(network: nn.Module) -> bool:
    return any(isinstance(module, Residual) for module in network.modules())


def _found(module: LightningModule, path: str) -> nn.Module | None:
    """The network, or None if the module has none yet."""
    try:
        return unwrapped(module.get_submodule(path))
    except AttributeError:
        return None


def _network(module: LightningModule, path: str) -> nn.Module:
    found = _found(module, path)
    if found is None:
        children = {name: type(child).__name__ for name, child in module.named_children()}
        listed = ", ".join(f"{name} ({kind})" for name, kind in children.items()) or "none"
        raise PlacementError(
            f"{type(module).__name__} has no module {path!r}.{did_you_mean(path, list(children))} It has {listed}: give the "
            f"network's path, RelaxationCallback(module=...)"
        )
    return found


def _check_placement(relaxation: Relaxation, wanted: Placement | str | None) -> None:
    """Check that a network that was already relaxed has the requested placement."""
    wanted = placements.get(wanted) if isinstance(wanted, str) else wanted
    if wanted is not None and list(relaxation.placements.values()) != [wanted]:
        raise PlacementError(
            f"{type(relaxation.model).__name__} is relaxed already, and not by the callback's placement: leave that out to "
            f"train the residuals that are there, or call equirelax.project(network) first"
        )


def _check_trainer(trainer: Trainer) -> None:
    if sum(isinstance(callback, RelaxationCallback) for callback in callbacks_of(trainer)) > 1:
        raise MethodError(
            "the trainer has two callbacks of this class: relax a module that holds both parts, with one"
        )
    if type(trainer.strategy).__name__ in SHARDED:
        raise MethodError(
            f"{type(trainer.strategy).__name__} shards parameters, whereas penalties and projections need whole ones: "
            f"train with DDP"
        )


def _check_held(trainer: Trainer, relaxation: Relaxation, module: LightningModule, path: str) -> None:
    """Check that the optimizers hold every trainable parameter of the residuals."""
    held = {
        id(p) for optimizer in trainer.optimizers for group in optimizer.param_groups for p in group["params"]
    }
    strengths = {f"{key}.gamma": gamma for key, gamma in relaxation.gamma_parameters().items()}
    trained = {name: p for name, p in relaxation.residual_parameters().items() if p.requires_grad} | strengths
    left_out = [name for name, p in trained.items() if id(p) not in held]
    if left_out:
        raise StaleOptimizerError(
            f"the optimizer that {type(module).__name__}.configure_optimizers made lacks {len(left_out)} of {len(trained)} "
            f"parameters of the residuals, such as {left_out[0]}: use self.{f'{path}.' if path else ''}parameters() there, "
            f"and not a list that was made earlier or is of a part"
        )


def _check_what_stays(trainer: Trainer, method: Method) -> None:
    """Check that residuals that are deployed outlive the training, in checkpoints and in this process."""
    for callback in trainer.checkpoint_callbacks:
        if getattr(callback, "save_weights_only", False):
            raise MethodError(
                f"{type(callback).__name__}(save_weights_only=True) would leave out the residuals, which {type(method).__name__} "
                f"deploys: set it to False"
            )
    if type(trainer.strategy.launcher).__name__ == SPAWNED:
        raise MethodError(
            f"the strategy trains copies in separate processes, which return only the author's weights, whereas "
            f"{type(method).__name__} deploys the residuals: give strategy='ddp'"
        )


def _checked_audit(given: Any) -> Any:
    if isinstance(given, Mapping):
        known = list(inspect.signature(audit).parameters)[1:]
        for name in given:
            if name not in known:
                raise MethodError(
                    f"audit has no argument {name!r}.{did_you_mean(str(name), known)} It has {', '.join(known)}"
                )
        if "in_rep" in given and "out_rep" not in given:
            raise MethodError(
                'audit has in_rep without out_rep; expected {"in_rep": "2x0e+2x1o", "out_rep": "1x1o"}'
            )
        if isinstance(given.get("outputs"), str):
            raise MethodError(f"audit's outputs is the text {given['outputs']!r}; expected a list of names")
        return {name: value if name == "sample" else _plain(value) for name, value in given.items()}
    if given is not None and not callable(given):
        raise MethodError(
            f'audit is {shown(given)}; expected a mapping such as {{"in_rep": "2x0e+2x1o", "out_rep": "1x1o"}}, or a function of '
            f"the network"
        )
    return given


def _warn_if_early(method: Method, gamma: float) -> None:
    total, steps = getattr(method, "total_steps", None), getattr(method, "steps", None)
    if total is not None and steps is not None and steps < total and gamma > 0.0:
        warnings.warn(
            f"{type(method).__name__}: training ended after {steps} of {total} steps, where gamma is {gamma:.2g}, and the "
            f"network was projected from there: the schedule had not ended",
            EquirelaxWarning,
            stacklevel=2,
        )
