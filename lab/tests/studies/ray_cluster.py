"""A Ray cluster of several nodes on this machine's loopback, for tests; ended whatever happens."""

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
"""Ray takes 127.0.0.1 for a word for the machine's outer address; this it leaves as it is."""
PATIENCE, TRIES = 120.0, 5
STORE = 80 * 2**20
CONFIG = {
    "health_check_period_ms": 1000, "health_check_failure_threshold": 5, "health_check_timeout_ms": 8000,
    "worker_niceness": 0,
}  # fmt: skip
"""A lost node is noticed within seconds, a slow one is not taken for lost, and runs are no less urgent than other processes."""


@dataclass
class Nodes:
    """The cluster's address, and its nodes by name; the first is the head."""

    address: str
    cluster: Any
    made: dict[str, Any]

    def lose(self, name: str) -> None:
        """Kill what runs on a node as a machine does that loses its power: nothing can say farewell."""
        self.cluster.remove_node(self.made.pop(name), allow_graceful=False)

    @contextlib.contextmanager
    def without(self, name: str, folder: Path) -> Iterator[None]:
        """A further node of a core, for which `folder` is another one. Its processes are a namespace, which ends as one."""
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
    """The next line; None after the one that says that a node is up."""
    line: str = stream.readline()
    return line if line and "--block" not in line else None


@contextlib.contextmanager
def nodes(*names: str, cores: int = 1) -> Iterator[Nodes]:
    """Nodes of `cores` cores; the first is the head."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    temporary = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # sockets' paths must be short
    # Ray notes a cluster's address here whatever the cluster's own folder is, and fails where nobody has used Ray before.
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
    """Add a node. Ray gives one 30 seconds to start, which a busy machine may need longer for: then once more."""
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
