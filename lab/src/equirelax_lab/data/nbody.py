"""The N-body benchmark of EGNN and SEGNN: simulate, verify and load it.

Input: positions and velocities of frame 30. Target: positions of frame 40, 1.0 time units later. Splits are drawn from
independent seeded generators, block by block, so that the first rows of a split do not depend on its size.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from equirelax.errors import DataError
from equirelax_lab.data import charged, gravity
from equirelax_lab.data.archive import manifest_path, read_archive, read_manifest, write_archive
from equirelax_lab.data.blocks import STEPS_PER_FRAME, TIME_STEP, Trajectories
from equirelax_lab.data.graphs import GraphSet, complete_graph, gather, nearest_neighbours, squared_distances
from equirelax_lab.data.root import command, data_root, find, search_roots, writable_root

SPLITS = ("train", "val", "test")
SYSTEMS = ("charged", "gravity")
DEFAULT_SIZES: Mapping[str, Mapping[str, int]] = {
    "charged": {"train": 10_000, "val": 2_000, "test": 2_000},
    "gravity": {"train": 3_000, "val": 2_000, "test": 2_000},
}
"""Default numbers of systems, which take seconds for charged and a quarter of an hour on two cores for gravity."""
INPUT_FRAME, TARGET_FRAME = 30, 40
# The frame after the first 100 steps is also kept. Chaos has not grown yet, so other machines can reproduce it (`replay`).
_FIRST_FRAME = {"charged": 0, "gravity": 1}
NEIGHBOURS = 6
"""Number of nearest neighbours that send messages to a body of the gravity system."""


@dataclass
class NBodySet(GraphSet):
    """A split of the N-body data. See `GraphSet` for the tensors.

    features (N, n, 1): |v|. edge_features (N, e, 2): [q_i q_j, |r_ij|^2]. charges (N, n, 1): +-1, or for gravity the masses, 1.

    Attributes:
        clamped: (N,) bool: whether a force of the trajectory was clamped before the target.
        manifest: Settings, seed, versions and SHA-256 of the file from which the split was read.
    """

    clamped: Tensor | None = None
    manifest: dict[str, Any] | None = None


def settings(system: str = "charged", clamp: str | None = None) -> dict[str, Any]:
    """Everything except seed and size that defines the data, as plain values. It is written into the file.

    Args:
        system: One of `SYSTEMS`.
        clamp: One of `charged.CLAMPS` for charged, `none` for gravity; None: the system's default.
    """
    if system not in SYSTEMS:
        raise DataError(f"Unknown N-body system {system!r}; choose one of {', '.join(SYSTEMS)}.")
    clamps = charged.CLAMPS if system == "charged" else ("none",)
    clamp = clamps[0] if clamp is None else clamp
    if clamp not in clamps:
        known = ", ".join(clamps)
        raise DataError(f"Unknown clamp {clamp!r} for the {system} system; choose one of {known}.")
    common = {
        "system": system,
        "clamp": clamp,
        "time_step": TIME_STEP,
        "steps_per_frame": STEPS_PER_FRAME,
        "frames": [_FIRST_FRAME[system], INPUT_FRAME, TARGET_FRAME],
    }
    if system == "charged":
        return common | {"bodies": charged.BODIES, "speed": charged.SPEED, "clamp_limit": charged.CLAMP_LIMIT}
    return common | {"bodies": gravity.BODIES, "softening": gravity.SOFTENING}


def relative_path(split: str, system: str = "charged", clamp: str | None = None, seed: int = 0) -> Path:
    """The path of a split below the data root."""
    if split not in SPLITS:
        raise DataError(f"Unknown split {split!r}; choose one of {', '.join(SPLITS)}.")
    if seed < 0:
        raise DataError(f"The seed of a data set must be 0 or more; got {seed}.")
    return Path("nbody") / f"{system}-{settings(system, clamp)['clamp']}-seed{seed}" / f"{split}.npz"


def _command(
    system: str, clamp: str | None, seed: int, root: str | Path | None = None, extra: str = ""
) -> str:
    """The command that simulates the data, for messages."""
    words = ["equirelax data make nbody"]
    words += [f"--system {system}"] if system != "charged" else []
    words += [f"--clamp {clamp}"] if clamp not in (None, "component", "none") else []
    words += [f"--seed {seed}"] if seed else []
    return command(" ".join([*words, extra]).strip(), root)


def make(
    system: str = "charged",
    *,
    clamp: str | None = None,
    sizes: Mapping[str, int] | None = None,
    seed: int = 0,
    root: str | Path | None = None,
    force: bool = False,
    threads: int = 2,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Path]:
    """Simulate and write the splits that are missing; return split -> file.

    A verified split that is large enough is kept. A smaller one is extended, and its rows are kept.

    Args:
        system: `charged` or `gravity`.
        clamp: See `settings`.
        sizes: Split -> number of trajectories (default `DEFAULT_SIZES[system]`).
        seed: Seed of the data, 0 or more.
        root: See `equirelax_lab.data.root`; a read-only root means the user's cache.
        force: Simulate everything again, and overwrite existing files.
        threads: Number of blocks that are simulated in parallel.
        progress: Called as progress(split, trajectories done, trajectories to do).

    Raises:
        DataError: A name is unknown, a size is below 1, or a file is damaged and `force` is not set (it is kept).
    """
    sizes = DEFAULT_SIZES[settings(system, clamp)["system"]] if sizes is None else sizes
    paths = {}
    for split, count in sizes.items():
        relative = relative_path(split, system, clamp, seed)
        if count < 1:
            raise DataError(f"The size of the split {split!r} must be 1 or more; got {count}.")
        # The cache is used only if the root cannot be written to.
        places = (data_root(root) / relative, writable_root(root) / relative)
        path = None if force else _large_enough(places, count, _remedy(system, clamp, seed, root))
        kept: Mapping[str, np.ndarray] = {}
        if path is None:
            path = writable_root(root) / relative
        else:
            kept, _ = _read(path, system, clamp, seed, root)
        have = len(kept.get("charges", ()))
        paths[split] = path
        if have >= count:
            continue
        if have and writable_root(root) not in path.parents:
            paths[split] = path = writable_root(root) / relative

        def report(done: int, total: int, split: str = split) -> None:
            if progress is not None:
                progress(split, done, total)

        made = _simulate(system, clamp, seed, split, have, count, threads, report)
        arrays = {k: np.concatenate([kept[k], v]) if have else v for k, v in made.items()}
        _write(path, arrays, system, clamp, seed, split)
    return paths


def _large_enough(places: Iterable[Path], count: int | None, remedy: str) -> Path | None:
    """The first of `places` with a complete file of `count` systems (None: of any number), or else the one with the most.

    The result is None if no file is complete. Raise `DataError`, ending in `remedy`, if a manifest is damaged.
    """
    sizes: dict[Path, int] = {}
    for place in places:
        if not (place.exists() and manifest_path(place).exists()):
            continue
        size = read_manifest(place, remedy).get("count")
        if not isinstance(size, int):
            raise DataError(
                f"The manifest {manifest_path(place)} does not say how many systems there are. {remedy}"
            )
        if size >= (count or 0):
            return place
        sizes[place] = size
    return max(sizes, key=sizes.__getitem__, default=None)


def _remedy(system: str, clamp: str | None, seed: int, root: str | Path | None) -> str:
    return f"Make it again: {_command(system, clamp, seed, root, '--force')}"


def _read(
    path: Path, system: str, clamp: str | None, seed: int, root: str | Path | None
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    remedy = _remedy(system, clamp, seed, root)
    arrays, manifest = read_archive(path, remedy)
    expected = settings(system, clamp)
    if manifest.get("settings") != expected or json.loads(str(arrays.pop("settings", "{}"))) != expected:
        raise DataError(f"{path} was made with settings {manifest.get('settings')}, not {expected}. {remedy}")
    return arrays, manifest


def _states(system: str, seed: int, split: str, start: int, stop: int) -> tuple[Tensor, ...]:
    """Draw the initial states of the blocks start .. stop-1. Every block has its own generator."""
    draw = charged.initial_states if system == "charged" else gravity.initial_states
    keys = ([seed, SYSTEMS.index(system), SPLITS.index(split), block] for block in range(start, stop))
    blocks = [draw(np.random.default_rng(key)) for key in keys]
    return tuple(torch.cat(parts) for parts in zip(*blocks, strict=True))


def _run(
    system: str,
    clamp: str | None,
    states: tuple[Tensor, ...],
    frames: list[int],
    threads: int,
    progress: Callable[[int, int], None] | None = None,
) -> Trajectories:
    if system == "charged":
        limit = settings(system, clamp)["clamp"]
        x, v, q = states
        return charged.simulate(x, v, q, frames, clamp=limit, threads=threads, progress=progress)
    x, v = states
    return gravity.simulate(x, v, frames, threads=threads, progress=progress)


def _simulate(
    system: str,
    clamp: str | None,
    seed: int,
    split: str,
    have: int,
    count: int,
    threads: int,
    progress: Callable[[int, int], None],
) -> dict[str, np.ndarray]:
    """Simulate the rows have .. count-1. Blocks are simulated whole, because a part of one may round differently."""
    chunk = charged.CHUNK if system == "charged" else gravity.CHUNK
    first = have // chunk
    states = _states(system, seed, split, first, -(-count // chunk))
    out = _run(system, clamp, states, settings(system, clamp)["frames"], threads, progress)
    charges = states[2] if system == "charged" else torch.ones(states[0].shape[:2])
    rows = slice(have - first * chunk, count - first * chunk)
    return {
        "positions": out.positions[rows].numpy(),
        "velocities": out.velocities[rows].numpy(),
        "charges": charges[rows].to(torch.int8).numpy(),
        "clamped": out.clamped[rows].numpy(),
    }


def _write(
    path: Path, arrays: dict[str, np.ndarray], system: str, clamp: str | None, seed: int, split: str
) -> None:
    for name in ("positions", "velocities"):
        if not np.isfinite(arrays[name]).all():
            raise DataError(f"The simulation of {path} gave {name} that are not finite; it was not written.")
    rule = settings(system, clamp)
    manifest = {
        "settings": rule,
        "seed": seed,
        "split": split,
        "count": len(arrays["charges"]),
        "clamped_fraction": round(float(arrays["clamped"].mean()), 6),
        "made_with": {
            "torch": torch.__version__,
            "numpy": np.__version__,
            "machine": platform.machine(),
            "vector_instructions": torch.backends.cpu.get_cpu_capability(),
        },
    }
    write_archive(path, {**arrays, "settings": np.array(json.dumps(rule))}, manifest)


def load(
    split: str,
    *,
    system: str = "charged",
    clamp: str | None = None,
    count: int | None = None,
    seed: int = 0,
    root: str | Path | None = None,
    dtype: torch.dtype = torch.float32,
) -> NBodySet:
    """Load the first `count` systems of a split (default: all), after checking the file's SHA-256.

    Of the files below the data root and in the cache the first one is read that is complete and large enough.

    Args:
        split, system, clamp, seed, root: As for `make`.
        count: Number of systems; None: all.
        dtype: Dtype to which the file's float64 is cast.

    Raises:
        DataError: The file is missing, damaged or too small. The message contains the command that makes it.
    """
    path = _find(split, system, clamp, seed, root, count)
    arrays, manifest = _read(path, system, clamp, seed, root)
    available = len(arrays["charges"])
    count = available if count is None else count
    if not 1 <= count <= available:
        more = _command(system, clamp, seed, root, f"--{split} {count}")
        raise DataError(f"{path} holds {available} systems; {count} were requested. Make more: {more}")
    frames = settings(system, clamp)["frames"]
    given, wanted = frames.index(INPUT_FRAME), frames.index(TARGET_FRAME)
    positions = torch.from_numpy(arrays["positions"][:count])  # (count, frames, n, 3) float64
    velocities = torch.from_numpy(arrays["velocities"][:count, given])
    charges = torch.from_numpy(arrays["charges"][:count]).double()[..., None]
    inputs = positions[:, given]
    bodies = inputs.shape[1]
    edge_index = complete_graph(bodies) if system == "charged" else nearest_neighbours(inputs, NEIGHBOURS)
    source, target = gather(charges, edge_index)
    edge_features = torch.cat([source * target, squared_distances(inputs, edge_index)[..., None]], -1)
    return NBodySet(
        positions=inputs.to(dtype).contiguous(),
        velocities=velocities.to(dtype).contiguous(),
        features=velocities.norm(dim=-1, keepdim=True).to(dtype),
        targets=positions[:, wanted].to(dtype).contiguous(),
        edge_index=edge_index,
        edge_features=edge_features.to(dtype),
        charges=charges.to(dtype),
        clamped=torch.from_numpy(arrays["clamped"][:count]),
        manifest=manifest,
    )


def NBody(
    split: str,
    system: str = "charged",
    clamp: str | None = None,
    count: int | None = None,
    root: str | Path | None = None,
    seed: int = 0,
) -> NBodySet:
    """Load the data; see `load`."""
    return load(split, system=system, clamp=clamp, count=count, seed=seed, root=root)


def _find(
    split: str,
    system: str,
    clamp: str | None,
    seed: int,
    root: str | Path | None,
    count: int | None = None,
) -> Path:
    relative = relative_path(split, system, clamp, seed)
    first = find(relative, root, hint=f"Make it: {_command(system, clamp, seed, root)}")
    places = (folder / relative for folder in search_roots(root))
    return _large_enough(places, count, _remedy(system, clamp, seed, root)) or first


def replay(
    split: str,
    *,
    system: str = "charged",
    clamp: str | None = None,
    count: int = 256,
    seed: int = 0,
    root: str | Path | None = None,
) -> Tensor:
    """Compare the file with a new simulation of the first 100 steps: largest difference in position, (count,).

    Trajectories are chaotic: another machine gives other frames 30 and 40, but the same first 100 steps to about 1e-9.
    """
    path = _find(split, system, clamp, seed, root)
    arrays, _ = _read(path, system, clamp, seed, root)
    stored = torch.from_numpy(arrays["positions"][:count, 0])
    chunk = charged.CHUNK if system == "charged" else gravity.CHUNK
    states = _states(system, seed, split, 0, -(-len(stored) // chunk))
    again = _run(system, clamp, states, [_FIRST_FRAME[system]], threads=1)
    return (again.positions[: len(stored), 0] - stored).abs().flatten(1).amax(1)
