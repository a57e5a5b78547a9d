"""Where runs execute: what a scheduler needs to know about a set of machines, and the local machine."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Protocol

import torch

from equirelax.errors import ConfigError
from equirelax_lab.tasks.settings import RunConfig
from equirelax_lab.training.folder import CONFIG, LOG
from equirelax_lab.training.machine import Machine, cores

GPUS = "CUDA_VISIBLE_DEVICES"
LOCK = "study.lock"
"""Lock file of the process that runs a study. Nodes of a cluster read it to see whether they share the study's folder."""


@dataclass(frozen=True, eq=False)
class Job:
    """One run to start, or several that one process trains as a stack.

    Attributes:
        config: Its settings.
        folder: Its folder.
        machine: Where and how it executes.
        environment: Environment variables in addition to those of this process.
        stacked: Settings and folders of the other runs in its stack.
    """

    config: RunConfig
    folder: Path
    machine: Machine
    environment: Mapping[str, str] = field(default_factory=dict)
    stacked: tuple[tuple[RunConfig, Path], ...] = ()

    def start(self, data: str | None) -> subprocess.Popen[bytes]:
        """Start the run as a process whose output goes to log.txt, or continue the run in its folder. A stack's output goes
        to the log of its first run.

        The process leads its own session, so that Ctrl-C in the terminal does not reach it; the scheduler passes it on.

        Args:
            data: The data root; None takes the default.
        """
        for config, folder in ((self.config, self.folder), *self.stacked):
            if not (folder / CONFIG).exists():
                config.write(folder / CONFIG)
        words = [sys.executable, "-m", "equirelax_lab.cli"]
        if self.stacked:
            words += ["stack", str(self.folder), *(str(folder) for _, folder in self.stacked)]
        else:
            words += ["train", self.config.benchmark]
            words += ["--config", str(self.folder / CONFIG), "--out", str(self.folder), "--resume"]
        words += ["--data", data] if data else []
        for name, value in asdict(self.machine).items():
            words.append(f"--{name}={str(value).lower() if isinstance(value, bool) else value}")
        environment = {**os.environ, **self.environment}
        with (self.folder / LOG).open("ab") as log:
            return subprocess.Popen(
                words, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, env=environment
            )


@dataclass(frozen=True)
class Ending:
    """How a run ended.

    Attributes:
        code: Its exit code, or minus the number of the signal that ended it; None if unknown, because its machine
            was lost.
        why: The reason in words, if the run's log cannot tell it.
    """

    code: int | None
    why: str = ""


class Handle(Protocol):
    """One run that was started."""

    @property
    def where(self) -> str | None:
        """The machine that it runs on, "" for this one; None while it waits for a machine."""

    def poll(self) -> Ending | None:
        """How it ended; None while it runs."""

    def interrupt(self) -> None:
        """Ask it to end after its current epoch, or at once if it is asked again."""

    def kill(self) -> None:
        """End it now, with all of its processes."""


class Machines(Protocol):
    """A set of machines on which runs execute."""

    place: str
    """The place in words, to follow "takes 3 h": here."""

    def prepare(self, out: Path) -> None:
        """Check that runs can work in the study's folder, which this process holds.

        Raises:
            ConfigError: They cannot; the message names the machine and the reason.
        """

    def slots(self, devices: int, threads: int, gpu: bool) -> int:
        """How many runs of `devices` processes with `threads` threads each fit at the same time.

        Raises:
            ConfigError: No machine can ever take such a run.
        """

    def start(self, job: Job, data: str | None) -> Handle:
        """Start a run with the data root `data`. Raises `OSError` if that is not possible."""


@dataclass(eq=False)
class Process:
    """A run as a process on this machine."""

    process: subprocess.Popen[bytes]
    where: str | None = ""

    def poll(self) -> Ending | None:
        """See `Handle`. Ends the remaining processes of a broken distributed run."""
        code = self.process.poll()
        if code is None:
            return None
        if code:
            self.kill()
        return Ending(code)

    def interrupt(self) -> None:
        """See `Handle`. The first process of a distributed run tells the others."""
        self.process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        """See `Handle`."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)  # the run leads its process group


@dataclass(eq=False)
class LocalMachine:
    """This machine. Runs that need GPUs get those that the fewest other runs use."""

    place: str = "here"
    _on_gpus: list[tuple[Process, list[str]]] = field(default_factory=list)

    def prepare(self, out: Path) -> None:
        """Do nothing: this process already holds the folder."""

    def slots(self, devices: int, threads: int, gpu: bool) -> int:
        """See `Machines`."""
        by_cores = cores() // (devices * threads)
        if not gpu:
            return by_cores
        number = torch.cuda.device_count()
        if number < devices:
            raise ConfigError(
                f"'accelerator: gpu' with 'devices: {devices}' needs {devices} GPUs; this machine has {number}."
            )
        return min(by_cores, number // devices)

    def start(self, job: Job, data: str | None) -> Process:
        """See `Machines`."""
        if job.machine.accelerator != "gpu":
            return Process(job.start(data))
        names = self._free_gpus(job.machine.devices)
        started = Process(replace(job, environment={GPUS: ",".join(names)}).start(data))
        self._on_gpus.append((started, names))
        return started

    def _free_gpus(self, devices: int) -> list[str]:
        """The names of the `devices` GPUs that the fewest living runs use."""
        self._on_gpus = [(run, names) for run, names in self._on_gpus if run.process.poll() is None]
        busy = Counter(name for _, names in self._on_gpus for name in names)
        visible = os.environ.get(GPUS, "")
        names = visible.split(",") if visible else [str(n) for n in range(torch.cuda.device_count())]
        return sorted(names, key=lambda name: busy[name])[:devices]
