"""The machines of a Ray cluster, which share the file system that holds the study's folder."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import equirelax
from equirelax.errors import ConfigError
from equirelax_lab.data.root import ENVIRONMENT
from equirelax_lab.extras import install
from equirelax_lab.studies.machines import LOCK, Ending, Job, Process
from equirelax_lab.training.parent import end_with_this_process

SECONDS_TO_SEE = 15.0
"""How long a node may take to see a new file: network file systems may show it to other machines only after some seconds."""
SECONDS_TO_ANSWER = 120.0
SECONDS_TO_CONNECT = 5.0


@dataclass(frozen=True)
class Node:
    """A machine of the cluster.

    Attributes:
        number: Ray's identifier for it.
        name: Ray's name for it.
        cores, gpus: How many of them Ray may use.
    """

    number: str
    name: str
    cores: int
    gpus: int


def look(out: Path, token: str, version: str, patience: float = SECONDS_TO_SEE) -> str:
    """The reason why this machine cannot work in the study's folder, in words; empty if it can.

    Args:
        out: The folder, an absolute path.
        token: The content of its lock file.
        version: The version of equirelax that runs the study.
        patience: Seconds within which this machine must see the lock file with that content.
    """
    if equirelax.__version__ != version:
        return f"has equirelax {equirelax.__version__}, and this machine {version}"
    deadline = time.monotonic() + patience
    while True:
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if (out / LOCK).read_text(encoding="utf-8") == token:
                return "" if os.access(out, os.W_OK) else f"may not write to {out}"
        if time.monotonic() > deadline:
            return f"does not see {out} as this machine does"
        time.sleep(0.2)


@contextlib.contextmanager
def unblocked(*signals: signal.Signals) -> Iterator[None]:
    """Unblock `signals` within the context. Ray blocks some in its workers, and processes started there would inherit that."""
    before = signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Attempt:
    """One try of a run on the node that Ray chose for it: an actor that lives as long as the try."""

    def __init__(self, job: Job, data: str | None, token: str, out: Path, version: str) -> None:
        import ray

        self.node: str = ray.get_runtime_context().get_node_id()
        self.problem = look(out, token, version)
        self.process: Process | None = None
        if self.problem:
            return
        try:
            # The run ends with this actor, so that a run whose study is lost does not keep its folder locked.
            with unblocked(signal.SIGINT, signal.SIGTERM):
                self.process = Process(replace(job, environment=end_with_this_process()).start(data))
        except OSError as error:
            self.problem = f"could not start it: {error}"

    def poll(self) -> tuple[str, Ending | None]:
        """The node, and how the run ended; None as long as it runs."""
        if self.process is None:
            return self.node, Ending(None, self.problem)
        return self.node, self.process.poll()

    def interrupt(self) -> None:
        """See `Handle`."""
        if self.process is not None:
            self.process.interrupt()

    def kill(self) -> None:
        """See `Handle`."""
        if self.process is not None:
            self.process.kill()


@dataclass(eq=False)
class RemoteAttempt:
    """The handle of an `Attempt`: asks it for its state without waiting for the answer."""

    ray: Any
    actor: Any
    names: dict[str, str]
    where: str | None = None
    _question: Any = None
    _ending: Ending | None = None

    def poll(self) -> Ending | None:
        """See `Handle`. A try whose node is lost has ended."""
        if self._ending is not None:
            return self._ending
        if self._question is None:
            self._question = self.actor.poll.remote()
        if not self.ray.wait([self._question], timeout=0)[0]:
            return None
        question, self._question = self._question, None
        try:
            number, ending = self.ray.get(question)
        except self.ray.exceptions.ActorUnavailableError:
            return None  # it cannot be reached for now; Ray decides whether it is lost
        except self.ray.exceptions.RayError as error:
            return self._end(Ending(None, f"{self._place()} was lost ({_first_line(error)})"))
        if self.where is None:
            self.where = self.names.get(number, number)
        if ending is None:
            return None
        return self._end(replace(ending, why=f"{self._place()} {ending.why}") if ending.why else ending)

    def interrupt(self) -> None:
        """See `Handle`. A try that still waits for a node is given up."""
        if self.where is None:
            self._end(Ending(-signal.SIGINT))
        else:
            self.actor.interrupt.remote()

    def kill(self) -> None:
        """See `Handle`."""
        self.actor.kill.remote()

    def _place(self) -> str:
        return f"node {self.where}" if self.where else "its node"

    def _end(self, ending: Ending) -> Ending:
        self._ending = ending
        self.ray.kill(self.actor)
        return ending


@dataclass(eq=False)
class RayCluster:
    """A Ray cluster: runs are actors, and as many execute at the same time as there are cores and GPUs for.

    Attributes:
        ray: The package `ray`, connected to the cluster.
        address: The address as the user gave it.
    """

    ray: Any
    address: str
    place: str = "on the cluster, if its machines are as fast as this one"
    _out: Path = field(default=Path())
    _token: str = ""

    def nodes(self) -> list[Node]:
        """The living machines that have cores for runs, ordered by name."""
        found = [
            Node(
                each["NodeID"],
                each["NodeName"],
                int(each["Resources"].get("CPU", 0)),
                int(each["Resources"].get("GPU", 0)),
            )
            for each in self.ray.nodes()
            if each["Alive"] and each["Resources"].get("CPU", 0) >= 1
        ]
        return sorted(found, key=lambda node: node.name)

    def prepare(self, out: Path) -> None:
        """Check that every node sees the folder, may write to it, and has the same equirelax. See `Machines`."""
        self._out = out.resolve()
        self._token = (out / LOCK).read_text(encoding="utf-8")
        pin = self.ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        task, nodes = self.ray.remote(look), self.nodes()
        asked = {
            task.options(num_cpus=0, max_retries=0, scheduling_strategy=pin(node.number, soft=False)).remote(
                self._out, self._token, equirelax.__version__
            ): node
            for node in nodes
        }
        self.ray.wait(list(asked), num_returns=len(asked), timeout=SECONDS_TO_ANSWER)
        problems = [f"{node.name} {found}" for ref, node in asked.items() if (found := self._answer(ref))]
        if problems:
            raise ConfigError(
                f"Nodes of the Ray cluster {self.address} that cannot take part: {'; '.join(problems)}. All need the same "
                "equirelax, and the study's folder on a file system that they share (data, too): name one with --out."
            )

    def _answer(self, reference: Any) -> str:
        try:
            found: str = self.ray.get(reference, timeout=0)
        except self.ray.exceptions.GetTimeoutError:
            return f"does not answer within {SECONDS_TO_ANSWER:.0f} s"
        except self.ray.exceptions.RayError as error:
            return f"fails: {_first_line(error.cause if getattr(error, 'cause', None) else error)}"
        return found

    def slots(self, devices: int, threads: int, gpu: bool) -> int:
        """See `Machines`."""
        nodes = self.nodes()
        if not any(_fit(node, devices, 1, gpu) for node in nodes):
            many = "s" if devices > 1 else ""
            needed = f"{devices} core{many}" + (f" and {devices} GPU{many}" if gpu else "")
            have = "; ".join(f"{node.name}: {node.cores} cores, {node.gpus} GPUs" for node in nodes)
            raise ConfigError(
                f"No node of the Ray cluster {self.address} has the {needed} of a run with 'devices: {devices}' "
                f"({have or 'no node gives out cores'})."
            )
        return sum(_fit(node, devices, threads, gpu) for node in nodes)

    def start(self, job: Job, data: str | None) -> RemoteAttempt:
        """See `Machines`. Without `data`, runs use this machine's EQUIRELAX_DATA, or else the default of their node."""
        machine = job.machine
        root = data or os.environ.get(ENVIRONMENT)
        job = replace(job, folder=job.folder.resolve())
        actor = self.ray.remote(Attempt).options(
            num_cpus=machine.threads * machine.devices,
            num_gpus=machine.devices if machine.accelerator == "gpu" else 0,
            max_restarts=0,
        )
        made = actor.remote(
            job,
            str(Path(root).expanduser().resolve()) if root else None,
            self._token,
            self._out,
            equirelax.__version__,
        )
        return RemoteAttempt(self.ray, made, {node.number: node.name for node in self.nodes()})


@contextlib.contextmanager
def connected(address: str) -> Iterator[RayCluster]:
    """A Ray cluster, connected while the context is open.

    Args:
        address: "auto" for the cluster that this machine belongs to, or HOST:PORT, or ray://HOST:PORT.

    Raises:
        ConfigError: Ray is not installed, no cluster answers, or its version of Ray or Python differs.
    """
    try:
        import ray
        import ray.util.scheduling_strategies
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"--ray needs the package '{error.name}', on every machine of the cluster: {install('ray')}"
        ) from error
    before = signal.getsignal(signal.SIGTERM)
    try:
        _reach(ray, address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
        yield RayCluster(ray, address)
    except (OSError, RuntimeError, ValueError) as error:
        if ray.is_initialized():
            raise
        raise ConfigError(
            f"--ray {address}: {_first_line(error).rstrip('.')}. Start Ray with `ray start --head`, on other machines with "
            "`ray start --address HOST:PORT`, and name that address, or auto on a machine of the cluster."
        ) from error
    finally:
        ray.shutdown()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)  # Ray installs its own handler


def _reach(ray: Any, address: str) -> None:
    """Raise `OSError` within seconds if nobody listens; Ray itself would try for minutes."""
    match = re.fullmatch(r"(?:ray://)?\[?([^/]+?)\]?:(\d{1,5})", address)
    if match is None:
        return
    host, port = match.group(1), int(match.group(2))
    if host in ("localhost", "127.0.0.1"):  # Ray listens at the address that other machines use for this one
        host = ray.util.get_node_ip_address()
    try:
        socket.create_connection((host, port), SECONDS_TO_CONNECT).close()
    except (OSError, OverflowError) as error:
        raise ConnectionError(f"no cluster answers at {host}:{port} ({error})") from error


def _fit(node: Node, devices: int, threads: int, gpu: bool) -> int:
    """How many runs fit on a node at the same time."""
    by_cores = node.cores // (devices * threads)
    return min(by_cores, node.gpus // devices) if gpu else by_cores


def _first_line(error: BaseException) -> str:
    """The first line of an error's message that is not blank, or else the name of its class."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
