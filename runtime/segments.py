"""The little of PNG's and JPEG's structure that libvips does not keep: text, frames, a bare JPEG's header.

libvips would write a PNG's text (XMP included) so that nothing beyond ASCII survives; here the chunks of
one file go into the next as they are. PNG specification, third edition, sections 5.3 and 11.3.3; JFIF 1.02.
"""

from __future__ import annotations

import mmap
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_TEXT = (b"tEXt", b"zTXt", b"iTXt")
PNG_BODY = len(SIGNATURE) + 25  # where a PNG's header ends: it always has 13 bytes of data
JPEG_BODY = 2  # behind the start-of-image marker
_TEXT_LIMIT = 1 << 26  # bytes; far more than any text, far less than a hostile file


def scan_chunks(file: BinaryIO) -> tuple[int, bytes]:
    """Walk the chunks of a PNG without reading its pixels.

    Args:
        file: a seekable PNG file.

    Returns:
        The number of frames (1 unless animated), and all its text chunks, ready to be written again.
        A damaged file gives what came before the damage: the decoder will tell.
    """
    frames, text = 1, b""
    file.seek(len(SIGNATURE))
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind == b"acTL":
            frames = int.from_bytes(file.read(4), "big")
            file.seek(length, 1)  # the 4 bytes read are as many as the checksum has
        elif kind in _TEXT and len(text) + length < _TEXT_LIMIT:
            chunk = head + file.read(length + 4)
            text += chunk if len(chunk) == length + 12 else b""
        else:
            file.seek(length + 4, 1)
    return frames, text


def is_whole(path: Path) -> bool:
    """Whether a PNG, JPEG or WebP is there to its end; of other files nothing is known, so True.

    What programs append to a picture (a film, more pictures) does no harm. A file that was cut where something
    had been reserved on the disk ends in zeros, and is not whole.
    """
    with open(path, "rb") as file:
        head = file.read(12)
        if head.startswith(SIGNATURE):
            file.seek(len(SIGNATURE))
            while len(chunk := file.read(8)) == 8:
                length, kind = struct.unpack(">I4s", chunk)
                if kind == b"IEND":
                    return True
                file.seek(length + 4, 1)
            return False
        size = file.seek(0, 2)
        if head.startswith(b"\xff\xd8"):
            return _ends_jpeg(file, size)
        if head[:4] == b"RIFF":
            return size >= int.from_bytes(head[4:8], "little") + 8 - 1  # the last chunk's padding may be missing
    return True


def _ends_jpeg(file: BinaryIO, size: int) -> bool:
    """Whether an end-of-image marker follows the last start of a scan. Within a scan 0xFF is never followed by it."""
    file.seek(max(size - 2, 0))
    if file.read(2) == b"\xff\xd9":
        return True
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        place = 2
        while (head := content[place : place + 4])[:1] == b"\xff" and len(head) == 4:
            if head[1] == 0xDA:  # start of scan
                return content.find(b"\xff\xd9", place) >= 0
            place += 1 if head[1] == 0xFF else 2 + int.from_bytes(head[2:], "big")
    return False


def xmp_chunk(xmp: bytes) -> bytes:
    """An XMP packet as the text chunk that the XMP specification (part 3, 1.1.5) asks for."""
    data = b"iTXtXML:com.adobe.xmp" + bytes(5) + xmp
    return struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))


def jfif_segment(across: float, down: float) -> bytes:
    """The header of a JPEG without EXIF; resolution in pixels per millimetre, 1 meaning unknown."""
    unit, *density = (0, 1, 1) if (across, down) == (1, 1) else (1, round(across * 25.4), round(down * 25.4))
    return struct.pack(">HH5sHBHHBB", 0xFFE0, 16, b"JFIF", 0x0102, unit, *(min(d, 65535) for d in density), 0, 0)


def insert(path: Path, position: int, data: bytes) -> None:
    """Put ``data`` into a file at ``position``; what follows moves, from its end on, so that no second file is made."""
    block = max(1 << 20, len(data))
    with open(path, "r+b") as file:
        end = file.seek(0, 2)
        while end > position:
            start = max(end - block, position)
            file.seek(start)
            moved = file.read(end - start)
            file.seek(start + len(data))
            file.write(moved)
            end = start
        file.seek(position)
        file.write(data)
