"""The little of PNG's chunks that libvips does not keep: text, and whether the file is animated.

libvips would write text (XMP included) so that nothing beyond ASCII survives; here the chunks of one
file go into the next as they are. PNG specification, third edition, sections 5.3 and 11.3.3.
"""

from __future__ import annotations

import shutil
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_TEXT = (b"tEXt", b"zTXt", b"iTXt")
_AFTER_HEADER = len(SIGNATURE) + 25  # the header chunk always has 13 bytes of data
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


def xmp_chunk(xmp: bytes) -> bytes:
    """An XMP packet as the text chunk that the XMP specification (part 3, 1.1.5) asks for."""
    data = b"iTXtXML:com.adobe.xmp" + bytes(5) + xmp
    return struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))


def insert_chunks(path: Path, chunks: bytes) -> None:
    """Rewrite a PNG with more chunks after its header."""
    bare = path.with_suffix(".bare")
    path.rename(bare)
    try:
        with open(bare, "rb") as source, open(path, "wb") as target:
            target.write(source.read(_AFTER_HEADER))
            target.write(chunks)
            shutil.copyfileobj(source, target, 1 << 20)
    finally:
        bare.unlink()
