"""Whether a file is as long as its outermost parts say: what was cut off by a full disk or a broken copy is named."""

from __future__ import annotations

import os
from typing import BinaryIO

_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
_ISO_BOXES = (b"ftyp", b"moov", b"mdat", b"moof", b"wide", b"free", b"skip", b"styp", b"sidx", b"pnot", b"uuid")


def announced_bytes(path: str) -> int | None:
    """How long a file says it is: ISO base media (MP4, MOV), RIFF (AVI) and Matroska; None where nothing says so.

    Sources: ISO/IEC 14496-12, 4.2; the OpenDML AVI extensions; RFC 8794 and RFC 9559.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        head = file.read(12)
        if head[4:8] in _ISO_BOXES:
            return _end_of_boxes(file, size)
        if head[:4] == b"RIFF":
            return _end_of_riffs(file, size)
        if head[:4] == _EBML:
            return _end_of_segment(file)
    return None


def _end_of_boxes(file: BinaryIO, size: int) -> int | None:
    end = 0
    while end < size:
        file.seek(end)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        if length < 8:  # 0: to the end of the file, whatever that is
            return None
        end += length
    return end


def _end_of_riffs(file: BinaryIO, size: int) -> int | None:
    """A first RIFF chunk and, of files beyond a gigabyte, further ones; a length of 0 was never filled in."""
    end = 0
    while end < size:
        file.seek(end)
        head = file.read(8)
        length = int.from_bytes(head[4:], "little")
        if head[:4] != b"RIFF" or not length:
            return end or None
        end += 8 + length + length % 2
    return end if end - size > 1 else size  # the byte of padding may be missing


def _end_of_segment(file: BinaryIO) -> int | None:
    file.seek(4)
    length = _vint(file)
    if length is None:
        return None
    file.seek(length, os.SEEK_CUR)
    if file.read(4) != _SEGMENT:
        return None
    length = _vint(file)
    return None if length is None else file.tell() + length


def _vint(file: BinaryIO) -> int | None:
    """A length of EBML; None when it is unknown, as of what was written into a pipe."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    more = 8 - first[0].bit_length()
    value = int.from_bytes(bytes([first[0] & (0x7F >> more)]) + file.read(more), "big")
    return None if value == (1 << 7 * (more + 1)) - 1 else value
