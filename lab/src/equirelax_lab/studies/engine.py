"""Where the runs of a study execute: an engine starts them and says how many fit, a handle tells how one goes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import torch

from equirelax.errors import ConfigError
from equirelax_lab.training.jobs import Job
from equirelax_lab.training.machine import cores

GPUS = "CUDA_VISIBLE_DEVICES"
LOCK = "study.lock"
"""Held by the process that runs a study; what stands in it tells nodes whether they see the same folder."""


@dataclass(frozen=True)
class Ending:
    """How a run ended.

    Attributes:
        code: Its exit code, or minus the number of the signal that ended it; None where nobody knows, for its machine is lost.
        why: In words, where the run's log cannot say it.
    """

    code: int | None
    why: str = ""


class Handle(Protocol):
    """One run that was started."""

    @property
    def where(self) -> str | None:
        """The machine that it runs on, "" for this one; None as long as it waits for a place."""

    def poll(self) -> Ending | None:
        """How it ended; None as long as it runs."""

    def interrupt(self) -> None:
        """Ask it to end after its present epoch; asked again, at once."""

    def kill(self) -> None:
        """End it now, with all of its processes."""


class Engine(Protocol):
    """What a study needs to know of where its runs execute."""

    place: str
    """In words, after "takes 3 h": here."""

    def prepare(self, out: Path) -> None:
        """Check that runs can work in the study's folder, which this process holds.

        Raises:
            ConfigError: they cannot; says which machine and why.
        """

    def slots(self, devices: int, threads: int, gpu: bool) -> int:
        """How many runs of `devices` processes with `threads` threads each fit at the same time.

        Raises:
            ConfigError: there is no GPU, or none of the machines can ever take such a run.
        """

    def start(self, job: Job, data: str | None) -> Handle:
        """Start a run with the data root `data`. Raises `OSError` if that is not possible."""


@dataclass(eq=False)
class Process:
    """A run as a process of this machine."""

    process: subprocess.Popen[bytes]
    where: str | None = ""

    def poll(self) -> Ending | None:
        """See `Handle`. What a broken distributed run left of its group is ended."""
        code = self.process.poll()
        if code is None:
            return None
        if code:
            self._signal_group(signal.SIGKILL)
        return Ending(code)

    def interrupt(self) -> None:
        """See `Handle`. The first process of a distributed run tells the others."""
        self.process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        """See `Handle`."""
        self._signal_group(signal.SIGKILL)

    def _signal_group(self, number: int) -> None:
        with contextlib.suppress(
            ProcessLookupError, PermissionError
        ):  # a job leads a group of its own number
            os.killpg(self.process.pid, number)


@dataclass(eq=False)
class LocalEngine:
    """Runs are processes of this machine. Those on GPUs see the GPUs that the fewest of the others are on."""

    place: str = "here"
    _on_gpus: list[tuple[Process, list[str]]] = field(default_factory=list)

    def prepare(self, out: Path) -> None:
        """Nothing is to be checked: the folder is held by this very process."""

    def slots(self, devices: int, threads: int, gpu: bool) -> int:
        """See `Engine`. More runs than fit share what there is."""
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
        """See `Engine`."""
        if job.machine.accelerator != "gpu":
            return Process(job.start(data))
        names = self._free_gpus(job.machine.devices)
        started = Process(replace(job, environment={GPUS: ",".join(names)}).start(data))
        self._on_gpus.append((started, names))
        return started

    def _free_gpus(self, devices: int) -> list[str]:
        """So many GPUs, those first that the fewest living runs are on."""
        self._on_gpus = [(run, names) for run, names in self._on_gpus if run.process.poll() is None]
        busy = Counter(name for _, names in self._on_gpus for name in names)
        visible = os.environ.get(GPUS, "")
        names = visible.split(",") if visible else [str(n) for n in range(torch.cuda.device_count())]
        return sorted(names, key=lambda name: busy[name])[:devices]
