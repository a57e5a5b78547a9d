"""One process at a time in a folder: a lock that names its owner and ends with it.

It is built on the lock of open files that atomic writes also use (`equirelax.files.try_lock`). The package filelock would not
make it shorter: its lock files are left behind when they are released, asking who holds a folder would create one, and errors of
file systems without locks would still have to be distinguished here.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from equirelax.errors import ConfigError, FolderInUseError
from equirelax.files import is_at, try_lock

LOCK = "run.lock"


@dataclass(frozen=True)
class Owner:
    """The process that holds, or held, a folder.

    Attributes:
        pid: Its number.
        host: The name of its machine.
        since: Local time at which it took the folder, in full seconds.
    """

    pid: int
    host: str
    since: str

    @classmethod
    def here(cls) -> Owner:
        """This process, now."""
        return cls(os.getpid(), socket.gethostname(), datetime.now().isoformat(" ", "seconds"))

    @classmethod
    def read(cls, path: Path) -> Owner | None:
        """The owner named in a lock file; None if it names none, as between locking and writing the name."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return cls(int(content["pid"]), str(content["host"]), str(content["since"]))
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"


@contextlib.contextmanager
def locked(folder: Path, name: str = LOCK) -> Iterator[None]:
    """Hold `folder`, which is created if needed, while the context is open.

    The operating system frees the lock of a process however it ends. The lock file of a dead process is taken over, with a
    message. On a file system without locks a warning is printed instead.

    Args:
        folder: The folder to hold.
        name: The name of the lock file in it.

    Raises:
        FolderInUseError: Another process holds the folder; the message names that process.
        ConfigError: The folder cannot be created or written to.
    """
    path = folder / name
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = _take(path)
    except OSError as error:
        _remove_empty(made)
        raise ConfigError(
            f"{folder} cannot be written to: {error.strerror}. Name another folder with --out."
        ) from error
    try:
        yield
    finally:
        # Removed while it is locked: a process that has opened it in the meantime sees that the path no longer leads to it.
        path.unlink(missing_ok=True)
        os.close(handle)
        _remove_empty(made)


def _remove_empty(made: list[Path]) -> None:
    """Remove the empty folders among `made`, which are left after unusable settings."""
    with contextlib.suppress(OSError):
        for place in made:
            place.rmdir()


def _take(path: Path) -> int:
    """Open and lock the file; returns its descriptor, which child processes do not inherit."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(handle, path)
            if is_at(handle, path):
                before = Owner.read(path)
                if before is not None:
                    print(f"{path.parent}: taken over from {before}, which has ended.", file=sys.stderr)
                os.ftruncate(handle, 0)
                _name_owner(handle, path)
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # its owner removed it between our opening and locking it: try again


def _name_owner(handle: int, path: Path) -> None:
    """Write this process into its lock file; remove the file if there is no room for that."""
    try:
        os.write(handle, json.dumps(asdict(Owner.here())).encode())
    except OSError:
        path.unlink(missing_ok=True)
        raise


def _lock(handle: int, path: Path) -> None:
    """Lock an open file. Raises `FolderInUseError` if another process has locked it."""
    held = try_lock(handle)
    if held is None:
        print(
            f"warning: {path.parent} is on a file system without locks, or this system has no file locks: a second "
            "process in it would not be noticed.",
            file=sys.stderr,
        )
    elif not held:
        owner = Owner.read(path)
        kill = "" if owner is None else f", stop it (kill -INT {owner.pid} on {owner.host})"
        raise FolderInUseError(
            f"{path.parent} is in use by {owner or 'another process'}. Wait until it has ended{kill}, or name another "
            "folder with --out."
        )


def holder(folder: Path, name: str = LOCK) -> Owner | None:
    """The living process that holds `folder`; None if there is none, or if it cannot be determined.

    Args:
        folder: The folder.
        name: The name of the lock file in it.
    """
    path = folder / name
    try:
        handle = os.open(path, os.O_RDWR)
    except OSError:
        return None
    try:
        return Owner.read(path) if try_lock(handle) is False else None
    finally:
        os.close(handle)
