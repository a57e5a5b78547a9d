"""Write files atomically: a crash leaves either the old file or the new one, never a part of one."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from equirelax.errors import EquirelaxError, StorageError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR)
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
"""Error numbers of file systems without locks."""


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path next to `path`, which is renamed to `path` on success and removed after an error.

    The temporary name keeps the suffix of `path`, for writers that choose a format by it. Parent folders are created. Temporary
    files of killed writers are removed: a temporary file is locked as long as its writer lives.

    Raises:
        StorageError: The disk is full or the path is not writable. An older file at `path` is untouched.
    """
    target = Path(path)
    with storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_temporaries(target)
        handle, temporary = _temporary(target)
        try:
            yield temporary
            # mkstemp makes files that only their owner can read, but others should be able to read a result.
            mask = os.umask(0)
            os.umask(mask)
            temporary.chmod(0o666 & ~mask)
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
            if handle is not None:
                os.close(handle)


def _temporary(target: Path) -> tuple[int | None, Path]:
    """Create a file next to `target`; return the descriptor that locks it (None without locks) and its path."""
    while True:
        handle, name = tempfile.mkstemp(
            dir=target.parent, prefix=f".{target.stem}-", suffix=f".tmp{target.suffix}"
        )
        held = try_lock(handle)
        if held is None:
            os.close(handle)
            return None, Path(name)
        if held and is_at(handle, Path(name)):
            return handle, Path(name)
        os.close(handle)  # another writer took it for a dead one's before it was locked: try again


def _remove_temporaries(target: Path) -> None:
    """Remove the temporary files of dead writers of `target`."""
    left = re.compile(rf"\.{re.escape(target.stem)}-[a-z0-9_]{{8}}\.tmp{re.escape(target.suffix)}")
    for path in [entry for entry in target.parent.iterdir() if left.fullmatch(entry.name)]:
        remove_left(path)


def remove_left(path: Path) -> None:
    """Remove a file if the process that locked it has ended; else do nothing."""
    with contextlib.suppress(OSError):  # it is gone, or belongs to another user
        handle = os.open(path, os.O_RDWR)
        try:
            if try_lock(handle) and is_at(handle, path):
                path.unlink()
        finally:
            os.close(handle)


def try_lock(handle: int) -> bool | None:
    """Lock an open file, without waiting, until it is closed or this process ends.

    Returns:
        True if it is locked now, False if another process holds it, None if the system or file system has no locks.
    """
    try:
        import fcntl  # on Unix
    except ImportError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        raise
    return True


def is_at(handle: int, path: Path) -> bool:
    """Whether `path` still names the open file."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def storage_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn errors of a full disk or missing write permission into a `StorageError` that names `path`."""
    try:
        yield
    except EquirelaxError:
        raise
    except Exception as error:
        refused = _refusal(error)
        if refused is None:
            raise
        if refused.errno in _NO_ROOM:
            remedy = (
                "Free some space and repeat the command; a run continues with --resume, a study by itself."
            )
        else:
            remedy = "Choose another place, or get permission to write to this one."
        message = f"{os.fspath(path)} could not be written: {refused.strerror}. {remedy}"
        raise StorageError(message, refused) from error


def _refusal(error: BaseException | None) -> OSError | None:
    """Find the operating system's error behind an error, since torch.save hides it behind its own."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (*_NO_ROOM, *_REFUSED):
            return error
        error = error.__cause__ or error.__context__
    return None


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` (UTF-8) to `path` through a temporary file."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sha256(path: str | os.PathLike[str]) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def did_you_mean(word: str, known: list[str] | tuple[str, ...]) -> str:
    """Return a sentence such as ` Did you mean 'gamma'?`, or an empty string if no known word is similar.

    A known word is similar if `word` is its initials (lr: learning_rate), or else if their spelling is similar.
    """
    import difflib

    near = [each for each in known if word and initials(each) == word] or difflib.get_close_matches(
        word, known, n=3, cutoff=0.5
    )
    return f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""


def initials(name: str) -> str:
    """The initials of a name of several words, after its last dot or dash; empty for a single word."""
    words = re.split(r"[.-]", name)[-1].split("_")
    return "".join(word[:1] for word in words) if len(words) > 1 else ""
