"""A Ray cluster of several nodes on this machine's loopback, for tests; ended whatever happens."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

HOST = "127.0.0.2"
"""Ray takes 127.0.0.1 for a word for the machine's outer address; this it leaves as it is."""
STORE = 80 * 2**20
QUICK = {"health_check_period_ms": 500, "health_check_failure_threshold": 4, "health_check_timeout_ms": 1000}
"""So that a lost node is noticed within seconds."""


@dataclass
class Nodes:
    """The cluster's address, and its nodes but the head by name; the head is called a."""

    address: str
    cluster: Any
    others: dict[str, Any]

    def lose(self, name: str) -> None:
        """Kill what runs on a node as a machine does that loses its power: nothing can say farewell."""
        self.cluster.remove_node(self.others.pop(name), allow_graceful=False)


@contextlib.contextmanager
def nodes(*names: str, cores: int = 1) -> Iterator[Nodes]:
    """Nodes of `cores` cores; the first is the head."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    temporary = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # sockets' paths must be short
    common = {"num_cpus": cores, "object_store_memory": STORE, "node_ip_address": HOST}
    cluster = Cluster()
    try:
        cluster.add_node(
            node_name=names[0], include_dashboard=False, temp_dir=temporary, _system_config=QUICK, **common
        )
        others = {name: cluster.add_node(node_name=name, **common) for name in names[1:]}
        yield Nodes(cluster.address, cluster, others)
    finally:
        cluster.shutdown()
        shutil.rmtree(temporary, ignore_errors=True)
