"""The chunks of PNG: read, and put into the next file as they stand, byte for byte.

PNG specification, third edition, sections 5.3 and 11.3.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import BinaryIO

from echoir.runtime.extras import LIMIT, Extras
from echoir.runtime.files import replace_bytes
from echoir.runtime.tags import read_exif

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_BODY = len(SIGNATURE) + 25  # where the header ends: it always has 13 bytes of data
# Chunks that mean the same whatever the pixels are; others are carried only if their names say so (section 5.4).
_CARRIED = {
    b"cHRM", b"gAMA", b"iCCP", b"sBIT", b"sRGB", b"cICP", b"mDCV", b"cLLI", b"mDCv", b"cLLi", b"bKGD", b"tIME",
    b"sTER", b"sCAL", b"pCAL", b"sPLT",
}  # fmt: skip


def read_png(file: BinaryIO) -> Extras:
    frames, chunks, exif = 1, [], b""
    room = LIMIT
    resolved = False
    palette = b""
    header = b""
    file.seek(len(SIGNATURE))
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        safe = kind[3:].islower() and kind[:1].islower()  # section 5.4: ancillary and safe to copy
        if not (safe or kind in _CARRIED or kind in (b"acTL", b"IHDR", b"PLTE")) or length > room:
            if kind == b"IEND":
                break
            file.seek(length + 4, 1)
            continue
        room -= length
        data = file.read(length)
        file.seek(4, 1)
        if len(data) < length:
            break
        if kind == b"IHDR":
            header = data
        elif kind == b"PLTE":
            palette = data
        elif kind == b"acTL":
            frames = int.from_bytes(data[:4], "big")
        else:
            resolved = resolved or (kind == b"pHYs" and data[8:] == b"\1")
            exif = data if kind == b"eXIf" else exif
            chunks.append((kind, data))
    tags = read_exif(exif) if exif else None
    return Extras(frames, tuple(_widened(chunks, header, palette)), tags=tags, resolved=resolved)


def _widened(chunks: list[tuple[bytes, bytes]], header: bytes, palette: bytes) -> list[tuple[bytes, bytes]]:
    """The background colour of a palette, or of gray below 8 bits, as that of the pixels it becomes."""
    if len(header) < 10:
        return chunks
    depth, kind = header[8:10]

    def background(data: bytes) -> bytes:
        if kind == 3 and data and 3 * data[0] + 3 <= len(palette):
            return b"".join(bytes([0, value]) for value in palette[3 * data[0] : 3 * data[0] + 3])
        if kind == 0 and depth < 8 and len(data) == 2:
            return bytes([0, data[1] * 255 // (2**depth - 1) & 255])
        return data

    return [(name, background(data) if name == b"bKGD" else data) for name, data in chunks]


def fitting_chunks(chunks: tuple[tuple[bytes, bytes], ...], bands: int) -> list[tuple[bytes, bytes]]:
    """The chunks that may stand in a PNG of so many channels: significant bits are given channel by channel."""
    fitted = []
    for kind, data in chunks:
        if kind == b"sBIT" and len(data) == bands - 1:  # of colours, where transparency was a colour or a palette's
            data += b"\x08"
        if (kind == b"sBIT" and len(data) != bands) or (kind == b"bKGD" and len(data) != (2 if bands < 3 else 6)):
            continue
        fitted.append((kind, data))
    return fitted


def put_chunks(path: Path, chunks: list[tuple[bytes, bytes]]) -> None:
    """Put chunks behind a PNG's header, in place of the resolution that libvips wrote there."""
    with open(path, "rb") as file:
        file.seek(_BODY)
        kept = b""
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind == b"IDAT":
                break
            chunk = head + file.read(length + 4)
            kept += b"" if kind == b"pHYs" else chunk
        body = file.tell() - 8
    new = b"".join(struct.pack(">I", len(data)) + kind + data + _crc(kind + data) for kind, data in chunks) + kept
    replace_bytes(path, _BODY, body, new)


def xmp_chunk(xmp: bytes) -> tuple[bytes, bytes]:
    """An XMP packet as the text chunk that the XMP specification (part 3, 1.1.5) asks for."""
    return b"iTXt", b"XML:com.adobe.xmp" + bytes(5) + xmp


def comment_chunk(comment: bytes) -> tuple[bytes, bytes]:
    """A JPEG's comment, which has no encoding of its own, as text."""
    try:
        text = comment.decode()
    except UnicodeDecodeError:
        text = comment.decode("latin-1")
    return b"iTXt", b"Comment" + bytes(5) + text.replace("\0", "").encode()


def resolution_chunk(across: float, down: float) -> tuple[bytes, bytes]:
    """Pixels per millimetre."""
    return b"pHYs", struct.pack(">IIB", *(min(round(1000 * value), 2**31 - 1) for value in (across, down)), 1)


def _crc(data: bytes) -> bytes:
    return struct.pack(">I", zlib.crc32(data))
