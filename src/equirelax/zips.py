"""What Python's zipfile does not look at: whether all of an archive's members are found."""

from __future__ import annotations

import struct
import zipfile
from typing import IO

_END = b"PK\x05\x06"
_END_SIZE = 22
_LONGEST_COMMENT = 65_535


def check_complete(file: IO[bytes], archive: zipfile.ZipFile) -> None:
    """Raise `zipfile.BadZipFile` unless `archive` (opened from `file`) has as many members as its end says.

    A flipped bit in a member's entry of the directory can hide those that follow it, without any other sign.
    """
    size = file.seek(0, 2)
    file.seek(max(0, size - _END_SIZE - _LONGEST_COMMENT))
    tail = file.read()
    (count,) = struct.unpack_from("<H", tail, tail.rindex(_END) + 10)
    found = len(archive.infolist())
    if found & 0xFFFF != count and count != 0xFFFF:  # that stands for more than fit into two bytes
        raise zipfile.BadZipFile(f"its directory lists {found} files instead of {count}")
