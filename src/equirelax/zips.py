"""Check that the directory of a zip archive lists all members by their own names, which Python's zipfile does not."""

from __future__ import annotations

import struct
import zipfile
from typing import IO

_END = b"PK\x05\x06"
_END_SIZE = 22
_LONGEST_COMMENT = 65_535


def check_complete(file: IO[bytes], archive: zipfile.ZipFile) -> None:
    """Check that the directory of `archive` (opened from `file`) lists all its members.

    A flipped bit in the entry of a member can hide the members after it, or change its name.

    Raises:
        zipfile.BadZipFile: The number of members differs from the one at the archive's end, or a member has another name in
            its own header. Other damage raises other errors of zipfile (NotImplementedError, RuntimeError, ...).
    """
    size = file.seek(0, 2)
    file.seek(max(0, size - _END_SIZE - _LONGEST_COMMENT))
    tail = file.read()
    (count,) = struct.unpack_from("<H", tail, tail.rindex(_END) + 10)
    found = len(archive.infolist())
    if found & 0xFFFF != count and count != 0xFFFF:  # 0xFFFF: the number does not fit into two bytes
        raise zipfile.BadZipFile(f"its directory lists {found} files instead of {count}")
    for entry in archive.infolist():
        archive.open(entry).close()  # reads only its header, and compares the names
