"""The origin of a result: commit, hardware, versions."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import torch

PACKAGES = ("equirelax", "torch", "numpy", "e3nn", "lightning", "torch_geometric")


def commit() -> str | None:
    """The commit of the running source tree, with "+dirty" if it has changes; None outside a repository."""
    folder = Path(__file__).resolve().parent
    revision = _git(folder, "rev-parse", "HEAD")
    # An installed package can be inside another project's repository (in its .venv), whose commit is not ours.
    if revision is None or _git(folder, "ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None
    changes = _git(
        folder,
        "status",
        "--porcelain",
        "--untracked-files=no",
        "--",
        ":/src",
        ":/lab/src",
        ":/pyproject.toml",
        ":/lab/pyproject.toml",
    )
    return revision + ("+dirty" if changes else "")


def hardware() -> dict[str, str | int | None]:
    """CPU model, number of cores available to this process, threads of torch, and the GPU if there is one."""
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "cpu": _cpu_model(),
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that can change a result."""
    numbers = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            numbers[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return numbers


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
