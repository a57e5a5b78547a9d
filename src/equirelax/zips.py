"""What Python's zipfile does not look at by itself: whether all of an archive's members are found, by their own names."""

from __future__ import annotations

import struct
import zipfile
from typing import IO

_END = b"PK\x05\x06"
_END_SIZE = 22
_LONGEST_COMMENT = 65_535


def check_complete(file: IO[bytes], archive: zipfile.ZipFile) -> None:
    """Check that the directory of `archive` (opened from `file`) lists what is there.

    A flipped bit in a member's entry can hide those that follow it, or give it a name under which nobody looks for it.

    Raises:
        zipfile.BadZipFile: there are fewer or more members than its end says, or one has another name in its own header.
            What else damaged entries lead to (NotImplementedError, RuntimeError, ...) comes from zipfile.
    """
    size = file.seek(0, 2)
    file.seek(max(0, size - _END_SIZE - _LONGEST_COMMENT))
    tail = file.read()
    (count,) = struct.unpack_from("<H", tail, tail.rindex(_END) + 10)
    found = len(archive.infolist())
    if found & 0xFFFF != count and count != 0xFFFF:  # that stands for more than fit into two bytes
        raise zipfile.BadZipFile(f"its directory lists {found} files instead of {count}")
    for entry in archive.infolist():
        archive.open(entry).close()  # reads its header alone, and compares the names
