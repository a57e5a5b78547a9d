"""Archives of several kinds (.zip, .tar with any compression) as lists of entries that can be read."""

from __future__ import annotations

import lzma
import stat
import tarfile
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

UNREADABLE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    OSError,
)
"""What reading a damaged archive raises."""


@dataclass(frozen=True)
class Entry:
    """Something in an archive.

    Attributes:
        name: its path as stored.
        size: bytes, unpacked.
        directory: whether it is a folder.
        special: whether it is neither a folder nor a plain file: a link, a device.
        number: its place in the archive.
    """

    name: str
    size: int
    directory: bool
    special: bool
    number: int


class Container(ABC):
    """An archive that is open."""

    @abstractmethod
    def entries(self) -> list[Entry]:
        """Everything in it, in its order."""

    @abstractmethod
    def read(self, entry: Entry) -> IO[bytes]:
        """The content of a plain file, as an open file."""


class _Zip(Container):
    def __init__(self, archive: zipfile.ZipFile) -> None:
        self.archive = archive
        self.infos = archive.infolist()

    def entries(self) -> list[Entry]:
        return [
            Entry(i.filename, i.file_size, i.is_dir(), stat.S_ISLNK(i.external_attr >> 16), k)
            for k, i in enumerate(self.infos)
        ]

    def read(self, entry: Entry) -> IO[bytes]:
        return self.archive.open(self.infos[entry.number])


class _Tar(Container):
    def __init__(self, archive: tarfile.TarFile) -> None:
        self.archive = archive
        self.infos = archive.getmembers()

    def entries(self) -> list[Entry]:
        return [
            Entry(i.name, i.size, i.isdir(), not (i.isdir() or i.isreg()), k)
            for k, i in enumerate(self.infos)
        ]

    def read(self, entry: Entry) -> IO[bytes]:
        found = self.archive.extractfile(self.infos[entry.number])
        if found is None:
            raise tarfile.ReadError(f"{entry.name} is no plain file")
        return found


@contextmanager
def opened(path: Path) -> Iterator[Container]:
    """The archive `path`, whatever its kind. Raises one of `UNREADABLE` where it is none."""
    if tarfile.is_tarfile(path):
        with tarfile.open(path) as tar:
            yield _Tar(tar)
    else:
        with zipfile.ZipFile(path) as archive:
            yield _Zip(archive)
