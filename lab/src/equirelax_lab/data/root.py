"""The locations of data sets: the data root, finding files in it, and the status of every known data set."""

from __future__ import annotations

import os
import shlex
import stat
from dataclasses import dataclass
from pathlib import Path

from equirelax.errors import DataError

ENVIRONMENT = "EQUIRELAX_DATA"


def cache_root() -> Path:
    """The user's cache folder for equirelax: `$XDG_CACHE_HOME/equirelax`, else `~/.cache/equirelax`."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification says that a relative path is invalid and must be ignored.
    folder = Path(base) if base and Path(base).is_absolute() else Path.home() / ".cache"
    return folder / "equirelax"


def data_root(explicit: str | os.PathLike[str] | None = None) -> Path:
    """The data root: `explicit` if given, else the environment variable EQUIRELAX_DATA, else `cache_root()`.

    The folder need not exist. An empty EQUIRELAX_DATA counts as not set.
    """
    if explicit is not None:
        return Path(explicit).expanduser()
    configured = os.environ.get(ENVIRONMENT, "")
    return Path(configured).expanduser() if configured else cache_root()


def named_root(explicit: str | os.PathLike[str] | None) -> Path | None:
    """The data root that a user names to read from; None if none is named.

    Raises:
        DataError: There is no such folder. Otherwise the cache would be read instead without notice.
    """
    if explicit is None:
        return None
    root = Path(explicit).expanduser()
    if not root.is_dir():
        raise DataError(
            f"The data root {root} does not exist: name another folder with --data, or make data there first (equirelax data "
            f"make, or get, with --data {shlex.quote(os.fspath(explicit))})."
        )
    return root


def command(words: str, root: str | os.PathLike[str] | None) -> str:
    """A command that makes or downloads data, with the named data root, so that it writes where data is searched for."""
    return words if root is None else f"{words} --data {shlex.quote(os.fspath(root))}"


def search_roots(explicit: str | os.PathLike[str] | None = None) -> list[Path]:
    """Folders that are searched for data, in order: the data root, then the cache, which may hold simulated data."""
    roots = [data_root(explicit)]
    if roots[0].resolve() != cache_root().resolve():
        roots.append(cache_root())
    return roots


def writable_root(explicit: str | os.PathLike[str] | None = None) -> Path:
    """The folder to which data is written: the data root, or the cache if the root is read-only."""
    root = data_root(explicit)
    return root if _is_writable(root) else cache_root()


def _is_writable(folder: Path) -> bool:
    """Whether files may be created in `folder` or, if it is missing, in its nearest existing parent."""
    existing = folder
    while not existing.exists():
        existing = existing.parent
    # For the superuser os.access allows writing anywhere, but a folder without write permission should not be changed.
    anybody = existing.stat().st_mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH)
    return bool(anybody) and os.access(existing, os.W_OK | os.X_OK)


def find(
    relative: str | os.PathLike[str], root: str | os.PathLike[str] | None = None, *, hint: str = ""
) -> Path:
    """Return the first existing `folder / relative` of `search_roots(root)`.

    Args:
        hint: How to get the file, for the message.

    Raises:
        DataError: The file is in none of the folders, which the message names; or `root` does not exist.
    """
    named_root(root)
    candidates = [folder / relative for folder in search_roots(root)]
    for candidate in candidates:
        if candidate.exists():
            return candidate
    looked = ", ".join(str(candidate) for candidate in candidates)
    raise DataError(
        f"{relative} is missing; looked for {looked}. {hint or 'Put it there'}, "
        f"or name another data root with --data or {ENVIRONMENT}."
    )


@dataclass(frozen=True)
class DataStatus:
    """A data set in `equirelax list`: what it is, where it is (None: missing), and how to get it."""

    name: str
    description: str
    location: Path | None
    how_to_get: str

    @property
    def available(self) -> bool:
        """Whether every file of the data set was found. Files are verified when they are loaded, not here."""
        return self.location is not None


_MAKE = "equirelax data make nbody"
_NBODY_FILES = tuple(f"{split}.{suffix}" for split in ("train", "val", "test") for suffix in ("npz", "json"))
# name, description, patterns of files below the root, how to get it
_KNOWN: tuple[tuple[str, str, tuple[str, ...], str], ...] = (
    (
        "nbody",
        "charged particles, 5 bodies in 3D, component clamp (EGNN/SEGNN benchmark)",
        tuple(f"nbody/charged-component-seed0/{name}" for name in _NBODY_FILES),
        _MAKE,
    ),
    (
        "nbody-norm",
        "the same with the force norm clamped: exactly O(3)-equivariant dynamics",
        tuple(f"nbody/charged-norm-seed0/{name}" for name in _NBODY_FILES),
        f"{_MAKE} --clamp norm",
    ),
    (
        "nbody-gravity",
        "gravity, 100 bodies in 3D, softened (SEGNN benchmark)",
        tuple(f"nbody/gravity-none-seed0/{name}" for name in _NBODY_FILES),
        f"{_MAKE} --system gravity",
    ),
    (
        "smoke",
        "simulated smoke plumes: velocities on a grid, 10 inflow positions on every side (CR section 5.4)",
        ("smoke/*/run-0-00.json",),
        "equirelax data make smoke",
    ),
    (
        "mocap-run",
        "CMU motion capture, subject 9, 11 runs, 31 joints",
        ("cmu_mocap/cmu09_run.npz", "cmu_mocap/egno_split_run.npz"),
        "equirelax data get mocap-run",
    ),
    (
        "mocap-walk",
        "CMU motion capture, subject 35, 23 walks, 31 joints",
        ("cmu_mocap/cmu35_walk.npz", "cmu_mocap/egno_split.npz"),
        "equirelax data get mocap-walk",
    ),
    (
        "modelnet40",
        "12,311 objects of 40 kinds as point clouds (for research use)",
        ("modelnet40/modelnet40_1024_int16.npz",),
        "equirelax data get modelnet40",
    ),
    (
        "modelnet10-small",
        "600 of these objects, of 10 kinds, for quick tests",
        ("modelnet40/modelnet10_small_1024_f32.npz",),
        "put modelnet10_small_1024_f32.npz in the folder modelnet40 of the data root",
    ),
    (
        "qm9",
        "16,771 molecules of QM9 without fluorine, 12 properties",
        ("qm9/qm9_subset.npz",),
        "equirelax data get qm9",
    ),
    (
        "qm9-full",
        "all 130,831 molecules of QM9 that are consistent with their formula (train with --source full)",
        ("qm9/qm9.npz",),
        "equirelax data get qm9",
    ),
    (
        "rmd17",
        "energies and forces of small molecules, recomputed with tight settings (revised MD17)",
        ("md17/rmd17_aspirin_train.xyz", "md17/rmd17_aspirin_test.xyz"),
        "equirelax data get rmd17",
    ),
    (
        "md17",
        "the original MD17, a file for every molecule (this row looks for aspirin's)",
        ("md17/md17_aspirin.npz",),
        "equirelax data get md17 --molecule aspirin",
    ),
    (
        "mnist",
        "70,000 handwritten digits of 28 x 28 pixels (CC BY-SA 3.0), rotated when they are loaded",
        ("mnist/mnist.npz",),
        "equirelax data get mnist, or put mnist.npz in the folder mnist of the data root",
    ),
)
# name -> other files, each with the same data set in another form
_ALSO: dict[str, tuple[str, ...]] = {
    "rmd17": ("md17/rmd17_ethanol_train.xyz", "md17/rmd17/npz_data/rmd17_aspirin.npz"),
    "modelnet40": tuple(
        f"{parent}{file}"
        for file in (
            "modelnet40_ply_hdf5_2048/shape_names.txt",
            "modelnet40_normal_resampled/modelnet40_train.txt",
        )
        for parent in ("modelnet40/", "")
    ),
}


def _all_there(folder: Path, patterns: tuple[str, ...]) -> Path | None:
    """The first of the files that `patterns` name below a folder, if all of them are there."""
    files = [next(folder.glob(pattern), None) for pattern in patterns]
    return files[0] if all(files) else None


def status(root: str | os.PathLike[str] | None = None) -> list[DataStatus]:
    """List every known data set: whether it is there, where, and how to get it."""
    rows = []
    for name, description, files, how in _KNOWN:
        forms = (files, *((file,) for file in _ALSO.get(name, ())))
        places = (
            found.parent
            for form in forms
            for folder in search_roots(root)
            if (found := _all_there(folder, form)) is not None
        )
        location = next(places, None)
        how, comma, otherwise = how.partition(", or ")
        how = command(how, root) if how.startswith("equirelax ") else how
        rows.append(DataStatus(name, description, location, f"{how}{comma}{otherwise}"))
    return rows
