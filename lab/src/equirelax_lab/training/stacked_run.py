"""Several runs that differ only in the seed, from settings to result.json, in one process as a stack."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from equirelax.errors import CheckpointError, NonFiniteError
from equirelax_lab.data import Samples
from equirelax_lab.tasks.settings import RunConfig
from equirelax_lab.training import provenance
from equirelax_lab.training.assembly import assemble
from equirelax_lab.training.checkpoint import read_state
from equirelax_lab.training.conclusion import conclude
from equirelax_lab.training.epoch_end import EpochEnd
from equirelax_lab.training.folder import CONFIG, LAST, check_folder
from equirelax_lab.training.launch import launched
from equirelax_lab.training.lock import locked
from equirelax_lab.training.loggers import Loggers, quiet_event_thread
from equirelax_lab.training.machine import Machine
from equirelax_lab.training.member import Member
from equirelax_lab.training.progress import EpochProgress
from equirelax_lab.training.run_loggers import run_loggers
from equirelax_lab.training.samples import load_samples
from equirelax_lab.training.stack import StackError
from equirelax_lab.training.stack_memory import StackMemory
from equirelax_lab.training.stacked_loop import StackedLoop
from equirelax_lab.training.stopping import StopRequest, graceful_interrupt
from equirelax_lab.training.trackers import check_trackers

if TYPE_CHECKING:
    from lightning.fabric import Fabric

MEASURED = 4
"""The memory of larger stacks is measured before they are made, with a step of one and of two members."""


@dataclass(eq=False)
class StackedRun:
    """One run of a stack.

    Attributes:
        config: Its settings.
        folder: Its own folder.
        result: The content of its result.json, once it has finished.
        failure: Why it cannot continue; empty if it can.
    """

    config: RunConfig
    folder: Path
    result: dict[str, Any] | None = None
    failure: str = ""

    @property
    def open(self) -> bool:
        """Whether there is something left to train."""
        return self.result is None and not self.failure


def train_stack(
    runs: Sequence[StackedRun], root: Path | None = None, *, machine: Machine | None = None
) -> bool:
    """Train all runs, or continue those in their folders; each folder receives the files that `train` writes.

    Runs whose checkpoints are of different epochs, and runs that do not fit into memory together, are trained in several
    stacks, one after another. If the numbers of a run are no longer finite, or its checkpoint cannot be read, only that run
    fails.

    Args:
        runs: Runs that differ only in the seed; their `result` or `failure` is set.
        root: Data root; None takes EQUIRELAX_DATA or the user's cache folder.
        machine: Where and how the stack executes.

    Returns:
        Whether all runs have finished or failed; False after an interruption.

    Raises:
        StackError: The runs cannot be stacked, or no two of them fit into memory; the message says why. Nothing is lost: each of
            them can be trained alone.
        ConfigError: A folder holds a run with other settings, or the settings do not work here.
        FolderInUseError: Another process writes to a folder.
        DataError: Data is missing.
        CheckpointError: A checkpoint lacks what the stack needs.
    """
    machine = (machine or Machine()).resolved(torch.cuda.device_count())
    check_trackers(machine)
    if machine.devices > 1:
        raise StackError(f"{machine.devices} devices share every batch: choose --devices 1.")
    if machine.accumulate > 1:
        raise StackError(f"batches come in {machine.accumulate} parts: choose --accumulate 1.")
    for run in runs:
        run.result = check_folder(run.config, run.folder, resume=True)
    # Read now: the source tree may change during the run, but the imported code does not.
    commit = provenance.commit()
    torch.set_num_threads(machine.threads)
    with contextlib.ExitStack() as stack:
        for run in runs:
            if run.open:
                stack.enter_context(locked(run.folder))
        request = stack.enter_context(graceful_interrupt())
        while left := [run for run in runs if run.open]:
            if request.made:
                return False
            if together := _least_advanced(left):
                with launched(machine) as fabric:
                    _Training(together, root, fabric, machine, commit).run(request)
    return True


def _least_advanced(runs: Sequence[StackedRun]) -> list[tuple[StackedRun, dict[str, Any] | None]]:
    """The runs with the fewest completed epochs, and the state that each resumes from (None at its beginning).

    A run whose checkpoint cannot be read fails, and is not among them.
    """
    found: list[tuple[StackedRun, dict[str, Any] | None]] = []
    for run in runs:
        try:
            found.append((run, read_state(run.folder / LAST) if (run.folder / LAST).exists() else None))
        except CheckpointError as error:
            run.failure = str(error)
    done = [0 if state is None else state["completed"] for _, state in found]
    return [pair for pair, epochs in zip(found, done, strict=True) if epochs == min(done)]


class _Training:
    """The training of a stack whose runs are at the same epoch.

    Args:
        runs: The runs, and the state that each of them resumes from (None at the beginning). Of many, only as many as fit into
            memory are trained.
        root: Data root.
        fabric: Lightning Fabric, launched.
        machine: How the stack executes.
        commit: The commit that it is trained with.
    """

    def __init__(
        self,
        runs: Sequence[tuple[StackedRun, dict[str, Any] | None]],
        root: Path | None,
        fabric: Fabric,
        machine: Machine,
        commit: str | None,
    ) -> None:
        self.machine, self.commit = machine, commit
        self.samples: dict[Any, tuple[Samples, Samples, Samples, int]] = {}
        if len(runs) > MEASURED:
            runs = runs[: self._fitting([run for run, _ in runs], root, fabric)]
        self.runs, self.states = [run for run, _ in runs], [state for _, state in runs]
        self.members: list[Member] = []
        for run in self.runs:
            train, _, _, steps = self._samples(run, root, fabric)
            self.members.append(Member(assemble(run.config, root, steps), train, fabric, machine))
        template = assemble(self.runs[0].config, root, steps)
        self.loop = StackedLoop(self.members, template, fabric, machine)

    def _fitting(self, runs: Sequence[StackedRun], root: Path | None, fabric: Fabric) -> int:
        """How many of the runs fit into memory together, measured by a step of one and of two of them.

        Raises:
            StackError: Not even two fit.
        """
        machine = dataclasses.replace(self.machine, graph=False)
        config = runs[0].config
        train, _, _, steps = self._samples(runs[0], root, fabric)
        batch = train.subset(slice(0, config.training.batch_size))

        def made(count: int) -> StackedLoop:
            members = [
                Member(assemble(run.config, root, steps), batch, fabric, machine) for run in runs[:count]
            ]
            return StackedLoop(members, assemble(config, root, steps), fabric, machine)

        memory = StackMemory.measured(made)
        if memory.most < 2:
            memory.check(len(runs))
        if memory.most < len(runs):
            print(
                f"{memory.most} of {len(runs)} runs fit into memory together; the others follow.",
                file=sys.stderr,
            )
        return min(memory.most, len(runs))

    def _samples(
        self, run: StackedRun, root: Path | None, fabric: Fabric
    ) -> tuple[Samples, Samples, Samples, int]:
        """The training samples on the device, both sets as read, and the steps of an epoch."""
        dataset = run.config.dataset
        key = (dataset, run.config.seed if dataset.seeded else None)
        if key not in self.samples:
            train, val, steps = load_samples(run.config, root, self.machine)
            self.samples[key] = (train.to(fabric.device), train, val, steps)
        return self.samples[key]

    def run(self, request: StopRequest) -> None:
        """Train the remaining epochs, or until a stop is requested, and write the results."""
        with contextlib.ExitStack() as stack:
            self.ends = [self._end(index, stack) for index in range(len(self.runs))]
            states = [state for state in self.states if state is not None]
            if states:
                for end, state in zip(self.ends, states, strict=True):
                    end.load_state_dict(state)
                self.loop.load_state_dicts(states)
            epochs, stopping = self.runs[0].config.training.epochs, request.made
            while self.loop.completed < epochs and not stopping and any(run.open for run in self.runs):
                columns = self._epoch()
                if columns is None:
                    return
                # Read once: if a stop came while runs finish their epochs in turn, only the later ones would see it, and the
                # others would keep no checkpoint of this epoch.
                stopping = request.made
                self._finish(columns, stopping)
        if self.loop.completed == epochs:
            for index, run in enumerate(self.runs):
                if run.open:
                    self._conclude(index, run)

    def _end(self, index: int, stack: contextlib.ExitStack) -> EpochEnd:
        """The end of epochs for a member, with its open loggers."""
        run, member, state = self.runs[index], self.members[index], self.states[index]
        start = 0 if state is None else state["completed"]
        run.config.write(run.folder / CONFIG)
        stack.enter_context(quiet_event_thread())
        loggers = run_loggers(run.config, run.folder, self.machine, start)
        if self.machine.progress and index == 0:
            config, task = run.config, member.assembly.task
            label = f"{config.benchmark} {config.model} {config.method}, {len(self.runs)} runs"
            batches = self.loop.loader.batches
            progress = EpochProgress(start, config.training.epochs, batches, label, task.metric.heading)
            self.loop.on_step = progress.step
            loggers.append(progress)
        _, train, val, _ = self._samples(run, None, member.fabric)
        return EpochEnd(
            member, train, val, run.folder, stack.enter_context(contextlib.closing(Loggers(*loggers)))
        )

    def _epoch(self) -> list[dict[str, float]] | None:
        """Train an epoch; returns the members' columns, or None if the stack cannot go on."""
        try:
            return self.loop.epoch()
        except RuntimeError as error:
            # Non-finite numbers raise an error in some networks, and so for all members.
            for index, member in enumerate(self.members):
                if member.divergence.explains(error):
                    self._fail(index, member.failure or f"{error}{member.divergence.origin()}")
            if all(run.open for run in self.runs):
                raise
            return None

    def _finish(self, columns: Sequence[dict[str, float]], stopping: bool) -> None:
        """Finish an epoch for every member; `stopping` means that no further epoch follows now."""
        for index, (run, member) in enumerate(zip(self.runs, self.members, strict=True)):
            if not run.open:
                continue
            if member.failure:
                self._fail(index, member.failure)
                continue
            try:
                with member.own_randomness():
                    self.ends[index](columns[index], stopping)
            except (NonFiniteError, RuntimeError) as error:
                if not member.divergence.explains(error):
                    raise
                self._fail(index, f"{error}{member.divergence.origin()}")

    def _fail(self, index: int, why: str) -> None:
        run, end = self.runs[index], self.ends[index]
        if run.open:
            end.write_best()
            run.failure = f"{why} {end.kept()} Lower learning_rate, or set gradient_clip, and name another folder with --out."

    def _conclude(self, index: int, run: StackedRun) -> None:
        member, end = self.members[index], self.ends[index]
        val = self._samples(run, None, member.fabric)[2]
        try:
            with member.own_randomness():
                run.result = conclude(member.assembly, end, val, run.folder, self.commit, len(self.runs))
        except NonFiniteError as error:
            run.failure = str(error)
