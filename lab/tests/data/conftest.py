"""Isolated data roots, and one block of charged trajectories that several tests use."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from equirelax_lab.data import charged
from equirelax_lab.data.blocks import Trajectories
from file_server import Server
from torch import Tensor


@pytest.fixture(autouse=True)
def _no_data_of_the_user(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Only tests marked `data` see the configured data root; none writes to the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if request.node.get_closest_marker("data") is None:
        monkeypatch.delenv("EQUIRELAX_DATA", raising=False)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that connects to another machine fails, whether that answers or not."""
    ask = socket.getaddrinfo

    def here(host: object, *rest: object, **kinds: object) -> object:
        if host not in ("localhost", "127.0.0.1", "::1", ""):
            pytest.fail(f"a test asked the network for {host}")
        return ask(host, *rest, **kinds)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", here)


@pytest.fixture(scope="session")
def charged_states() -> tuple[Tensor, Tensor, Tensor]:
    return charged.initial_states(np.random.default_rng(7), 2 * charged.CHUNK)


@pytest.fixture(scope="session")
def charged_run(charged_states: tuple[Tensor, Tensor, Tensor]) -> Trajectories:
    """2048 trajectories at the frames 0, 30, 40, component clamp."""
    x, v, q = charged_states
    return charged.simulate(x, v, q, [0, 30, 40])


@pytest.fixture
def rotation() -> Tensor:
    """One rotation, and one with a reflection: (2, 3, 3) float64."""
    q = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))[0]
    q = q * torch.det(q)
    return torch.stack([q, -q])


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    running = Server()
    yield running
    running.http.shutdown()
    running.http.server_close()
