"""A Ray cluster of several nodes on this machine's loopback interface, for tests; it is always shut down."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HOST = "127.0.0.2"
"""Ray replaces 127.0.0.1 by the machine's outer address, but not this one."""
PATIENCE, TRIES = 120.0, 5
STORE = 80 * 2**20
CONFIG = {
    "health_check_period_ms": 1000, "health_check_failure_threshold": 5, "health_check_timeout_ms": 8000,
    "worker_niceness": 0,
}  # fmt: skip
"""A lost node is noticed within seconds, a slow node is not taken for lost, and runs have the priority of other processes."""


@dataclass
class Nodes:
    """The address of a cluster, and its nodes by name; the first one is the head."""

    address: str
    cluster: Any
    made: dict[str, Any]

    def lose(self, name: str) -> None:
        """Kill all processes of a node at once, as a power failure does."""
        self.cluster.remove_node(self.made.pop(name), allow_graceful=False)

    @contextlib.contextmanager
    def without(self, name: str, folder: Path) -> Iterator[None]:
        """Add a node with one core that sees an empty folder at `folder`. Its processes end together."""
        start = [
            str(Path(sys.executable).parent / "ray"), "start", f"--address={self.address}", "--block", "--num-cpus=1",
            f"--node-name={name}", f"--node-ip-address={HOST}", f"--object-store-memory={STORE}",
        ]  # fmt: skip
        script = f"mount -t tmpfs none {shlex.quote(str(folder))} && exec {shlex.join(start)}"
        words = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", script]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert process.stdout is not None
        try:
            said = "".join(iter(lambda: _line(process.stdout), None))
            assert "Ray runtime started" in said, said
            yield
        finally:
            process.kill()
            process.communicate()


def _line(stream: Any) -> str | None:
    """The next line of a node's output; None after the one that says that it is up."""
    line: str = stream.readline()
    return line if line and "--block" not in line else None


@contextlib.contextmanager
def nodes(*names: str, cores: int = 1) -> Iterator[Nodes]:
    """A cluster of nodes with `cores` cores each; the first one is the head."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    temporary = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # sockets' paths must be short
    # Ray writes a cluster's address into this folder, wherever the cluster's own folder is, and does not make it.
    Path(tempfile.gettempdir(), "ray").mkdir(exist_ok=True)
    cluster = Cluster()
    head = {"temp_dir": temporary, "include_dashboard": False, "_system_config": CONFIG}
    try:
        made = {name: _add(cluster, name, cores, {} if index else head) for index, name in enumerate(names)}
        yield Nodes(cluster.address, cluster, made)
    finally:
        cluster.shutdown()
        shutil.rmtree(temporary, ignore_errors=True)


def _add(cluster: Any, name: str, cores: int, options: dict[str, Any]) -> Any:
    """Add a node. Ray gives it 30 seconds to start, which may not do on a busy machine: then it is tried again."""
    for _ in range(TRIES):
        try:
            node = cluster.add_node(
                wait=False,
                node_name=name,
                num_cpus=cores,
                object_store_memory=STORE,
                node_ip_address=HOST,
                **options,
            )
            cluster.wait_for_nodes(timeout=PATIENCE)
        except Exception as error:
            if "timed out during startup" not in str(error):
                raise
        else:
            return node
    raise TimeoutError(f"Ray's node {name} did not start.")
