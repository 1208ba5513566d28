"""The segments of JPEG: read, and put into the next file as they stand, byte for byte.

ITU-T T.81, annex B; JFIF 1.02; CIPA DC-007 (several pictures in one JPEG).
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import BinaryIO

from echoir.runtime.extras import EXIF, Extras
from echoir.runtime.files import replace_bytes
from echoir.runtime.tags import read_exif

_BODY = 2  # behind the start-of-image marker
_JUMBF = b"JP"


def read_jpeg(file: BinaryIO) -> Extras:
    segments: list[tuple[int, bytes]] = []
    left: list[str] = []
    exif, xmp, pictures, resolved, chroma = b"", b"", 0, False, None
    file.seek(2)
    while len(head := file.read(2)) == 2 and head[0] == 0xFF:
        marker = head[1]
        if marker == 0xFF:  # a fill byte
            file.seek(-1, 1)
            continue
        if marker in (0xDA, 0xD9):
            break
        length = int.from_bytes(file.read(2), "big") - 2
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            chroma = _sampling(file.read(max(length, 0)))
            continue
        if not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            file.seek(max(length, 0), 1)
            continue
        data = file.read(max(length, 0))
        if marker == 0xE0:
            if data.startswith(b"JFIF\0") and len(data) >= 14:
                resolved = data[7] in (1, 2)
                segments.append((marker, data[:12] + b"\0\0"))  # without its thumbnail, of the picture as it was
        elif marker == 0xE2 and data.startswith(b"MPF\0"):
            pictures = _count_pictures(data[4:])
        elif marker == 0xE2 and data.startswith(b"urn:iso:std:iso:ts:21496"):
            pass  # describes a gain map, which does not come along
        elif marker == 0xEB and data.startswith(_JUMBF):
            left.append("its signed provenance (C2PA), which vouches for the old pixels")
        elif marker != 0xEE:  # Adobe's, of how colours are coded
            segments.append((marker, data))
            exif = data if marker == 0xE1 and data.startswith(EXIF) else exif
            xmp += data if marker == 0xE1 and not data.startswith(EXIF) else b""
    left += _name_rest(file, pictures, xmp)
    tags = read_exif(exif) if exif else None
    return Extras(
        segments=tuple(segments),
        tags=tags,
        resolved=resolved or 282 in (tags or {}),
        chroma=chroma,
        left=tuple(dict.fromkeys(left)),
    )


def _sampling(frame: bytes) -> str | None:
    """How a frame's header (T.81, B.2.2) samples two planes of chroma beside the luma."""
    if len(frame) < 15 or frame[5] != 3:
        return None
    luma, blue, red = frame[7], frame[10], frame[13]
    if blue != red or not blue & 15 or not blue >> 4:
        return None
    shares = {(1.0, 1.0): "4:4:4", (2.0, 1.0): "4:2:2", (2.0, 2.0): "4:2:0"}
    return shares.get(((luma >> 4) / (blue >> 4), (luma & 15) / (blue & 15)))


def _count_pictures(index: bytes) -> int:
    """How many pictures a multi-picture file says it holds."""
    tags = read_exif(index)  # laid out like EXIF
    return tags[0xB001].numbers[0] if 0xB001 in tags and tags[0xB001].type in (3, 4) else 0


def _name_rest(file: BinaryIO, pictures: int, xmp: bytes) -> list[str]:
    """What lies behind the picture in a JPEG, in words: nothing of it goes on."""
    left = []
    further = max(pictures - 1, 0)
    if b"hdrgm:" in xmp or b"HDRGainMap" in xmp:
        left.append("its gain map (HDR)")
        further -= 1
    if further > 0:
        left.append(f"{further} further picture{'s' if further > 1 else ''}")
    size = file.seek(0, 2)
    file.seek(max(size - 2, 0))
    if file.read(2) == b"\xff\xd9" and not pictures:
        return left
    end = jpeg_end(file)
    if end and end < size:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content.find(b"ftyp", end) >= 0 or b"MotionPhoto_Data" in content[end:]:
                left.append("the film of a motion photo")
            elif not left and content[end:].strip(b"\0\n\r "):
                left.append(f"{size - end} bytes behind the picture")
    return left


def jpeg_end(file: BinaryIO) -> int:
    """Behind the first end-of-image marker that follows a scan; 0 if there is none.

    Within a scan 0xFF is never followed by it. A thumbnail's comes before any scan, inside a segment.
    """
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        place = 2
        while (head := content[place : place + 4])[:1] == b"\xff" and len(head) == 4:
            if head[1] == 0xDA:
                return content.find(b"\xff\xd9", place) + 2 if content.find(b"\xff\xd9", place) >= 0 else 0
            place += 1 if head[1] == 0xFF else 2 + int.from_bytes(head[2:], "big")
    return 0


def put_segments(path: Path, segments: list[tuple[int, bytes]]) -> None:
    """Put segments behind a JPEG's first marker."""
    replace_bytes(path, _BODY, _BODY, b"".join(struct.pack(">BBH", 0xFF, m, len(d) + 2) + d for m, d in segments))


def jfif_segment(resolution: tuple[float, float] | None) -> tuple[int, bytes]:
    """The header of a JPEG without EXIF; resolution in pixels per millimetre, None meaning unknown."""
    unit, *density = (
        (0, 1, 1) if resolution is None else (1, *(min(round(25.4 * value), 65535) for value in resolution))
    )
    return 0xE0, struct.pack(">5sHBHHBB", b"JFIF", 0x0102, unit, *density, 0, 0)
