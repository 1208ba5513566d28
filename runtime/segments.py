"""The structure of picture files: what is in them besides pixels, and whether they are whole."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

from echoir.runtime.extras import LIMIT, Extras
from echoir.runtime.jpeg import jpeg_end, read_jpeg
from echoir.runtime.png import SIGNATURE, read_png
from echoir.runtime.tags import read_exif, read_tags


def read_extras(file: BinaryIO, format: str) -> Extras:
    """Walk a file without reading its pixels.

    A damaged file gives what came before the damage: the decoder will tell.

    Args:
        file: seekable.
        format: ``"png"``, ``"jpeg"``, ``"tiff"``, ``"webp"`` or ``"bmp"``, which has nothing but pixels.
    """
    if format == "tiff":
        tags = read_tags(file)
        unit = tags[296].numbers if 296 in tags and tags[296].type == 3 else [2]
        return Extras(tags=tags, resolved=282 in tags and unit != [1])
    if format == "bmp":
        return Extras()
    return {"png": read_png, "jpeg": read_jpeg, "webp": _read_webp}[format](file)


def _read_webp(file: BinaryIO) -> Extras:
    file.seek(12)
    lossless, tags = False, None
    while len(head := file.read(8)) == 8:
        kind, length = struct.unpack("<4sI", head)
        lossless = lossless or kind == b"VP8L"
        if kind == b"EXIF" and length <= LIMIT:
            tags = read_exif(file.read(length))
            file.seek(length % 2, 1)
        else:
            file.seek(length + length % 2, 1)
    return Extras(tags=tags, lossless=lossless)


def is_whole(path: Path) -> bool:
    """Whether a picture is there to its end, as far as that shows without decoding it.

    What programs append to a picture (a film, more pictures) does no harm. A file that was cut where something
    had been reserved on the disk ends in zeros, and is not whole.
    """
    with open(path, "rb") as file:
        head = file.read(12)
        size = file.seek(0, 2)
        if head.startswith(SIGNATURE):
            file.seek(len(SIGNATURE))
            while len(chunk := file.read(8)) == 8:
                length, kind = struct.unpack(">I4s", chunk)
                if kind == b"IEND":
                    return True
                file.seek(length + 4, 1)
            return False
        if head.startswith(b"\xff\xd8"):
            file.seek(max(size - 2, 0))
            return file.read(2) == b"\xff\xd9" or jpeg_end(file) > 0
        if head[:4] == b"RIFF":
            return size >= int.from_bytes(head[4:8], "little") + 8 - 1  # the last chunk's padding may be missing
        tags = read_tags(file)
        for places, lengths in ((273, 279), (324, 325)):
            if places in tags and lengths in tags:
                ends = zip(tags[places].numbers, tags[lengths].numbers, strict=False)
                return all(place + length <= size for place, length in ends)
    return True
