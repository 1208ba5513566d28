"""The structure of PNG, JPEG and WebP, as far as libvips does not keep what is in it.

What belongs to the picture goes into the next file as it stands, byte for byte. PNG specification, third edition,
sections 5.3 and 11.3; JPEG, ITU-T T.81, annex B; JFIF 1.02; CIPA DC-007 (several pictures in one JPEG).
"""

from __future__ import annotations

import dataclasses
import mmap
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from echoir.runtime.tags import Tags, read_exif, read_tags, scaled_exif, scaled_tags

SIGNATURE = b"\x89PNG\r\n\x1a\n"
JPEG_BODY = 2  # behind the start-of-image marker
_PNG_BODY = len(SIGNATURE) + 25  # where a PNG's header ends: it always has 13 bytes of data
# Chunks that mean the same whatever the pixels are; others are carried only if their names say so (section 5.4).
_CARRIED = {
    b"cHRM", b"gAMA", b"iCCP", b"sBIT", b"sRGB", b"cICP", b"mDCV", b"cLLI", b"mDCv", b"cLLi", b"bKGD", b"tIME",
    b"sTER", b"sCAL", b"pCAL", b"sPLT",
}  # fmt: skip
_SRGB_GAMMA = struct.pack(">I", 45455)
_LIMIT = 1 << 26  # bytes; far more than any metadata, far less than a hostile file
_EXIF, _JUMBF = b"Exif\0\0", b"JP"


@dataclass(frozen=True)
class Extras:
    """What a file holds besides pixels and what libvips knows of.

    Attributes:
        frames: of an animation; 1 of a picture.
        chunks: of a PNG: type and data, those that can go on.
        segments: of a JPEG: marker and data, those that can go on.
        tags: of a TIFF, all; of others, those of their EXIF.
        resolved: whether the file says how large a pixel is.
        lossless: whether a WebP is.
        chroma: of a JPEG in colour, how it was stored: ``"4:4:4"``, ``"4:2:2"``, ``"4:2:0"``; None of others.
        left: what the next file will not have, in words.
    """

    frames: int = 1
    chunks: tuple[tuple[bytes, bytes], ...] = ()
    segments: tuple[tuple[int, bytes], ...] = ()
    tags: Tags | None = None
    resolved: bool = False
    lossless: bool = False
    chroma: str | None = None
    left: tuple[str, ...] = ()

    @property
    def colours(self) -> list[str]:
        """A PNG's chunks that say how its colours look, unlike sRGB's, and that no other format has; by name."""
        found = dict(self.chunks)
        usual = found.get(b"gAMA", _SRGB_GAMMA) == _SRGB_GAMMA or b"sRGB" in found or b"iCCP" in found
        named = [kind for kind in found if kind in (b"cICP", b"mDCV", b"cLLI") or (kind == b"gAMA" and not usual)]
        return [kind.decode() for kind in named]

    @property
    def comment(self) -> bytes:
        """A JPEG's first."""
        return next((data for marker, data in self.segments if marker == 0xFE), b"")


def scaled_extras(extras: Extras, scale: float, height: int, width: int) -> Extras:
    """What belongs to a picture that was enlarged, in place of what belonged to it before.

    Resolution and size are those of the new one, wherever they stand; all else stays as it is.
    """

    def chunk(kind: bytes, data: bytes) -> bytes:
        if kind == b"eXIf":
            return scaled_exif(data, scale, height, width)
        if kind == b"pHYs" and len(data) == 9:  # pixels per unit
            return (
                struct.pack(">II", *(min(round(scale * n), 2**31 - 1) for n in struct.unpack(">II", data[:8])))
                + data[8:]
            )
        if kind == b"sCAL":  # the size of a pixel, as text
            return data[:1] + b"\0".join(_scaled_text(text, 1 / scale) for text in data[1:].split(b"\0"))
        return data

    def segment(marker: int, data: bytes) -> bytes:
        if marker == 0xE1 and data.startswith(_EXIF):
            return scaled_exif(data, scale, height, width)
        if marker == 0xE0 and data[7:8] in (b"\1", b"\2"):
            return (
                data[:8]
                + struct.pack(">HH", *(min(round(scale * n), 65535) for n in struct.unpack(">HH", data[8:12])))
                + data[12:]
            )
        return data

    return dataclasses.replace(
        extras,
        chunks=tuple((kind, chunk(kind, data)) for kind, data in extras.chunks),
        segments=tuple((marker, segment(marker, data)) for marker, data in extras.segments),
        tags=None if extras.tags is None else scaled_tags(extras.tags, scale, height, width),
    )


def without_profile(extras: Extras) -> Extras:
    """Without a colour profile, which is for pictures of the same channels."""
    return dataclasses.replace(
        extras,
        chunks=tuple((kind, data) for kind, data in extras.chunks if kind != b"iCCP"),
        segments=tuple((m, data) for m, data in extras.segments if not data.startswith(b"ICC_PROFILE\0")),
    )


def _scaled_text(text: bytes, scale: float) -> bytes:
    """A number as text, times a scale."""
    try:
        return f"{float(text) * scale:.9g}".encode()
    except ValueError:
        return text


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
    return {"png": _read_png, "jpeg": _read_jpeg, "webp": _read_webp}[format](file)


def _read_png(file: BinaryIO) -> Extras:
    frames, chunks, exif = 1, [], b""
    room = _LIMIT
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
        file.seek(_PNG_BODY)
        kept = b""
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind == b"IDAT":
                break
            chunk = head + file.read(length + 4)
            kept += b"" if kind == b"pHYs" else chunk
        body = file.tell() - 8
    new = b"".join(struct.pack(">I", len(data)) + kind + data + _crc(kind + data) for kind, data in chunks) + kept
    replace(path, _PNG_BODY, body, new)


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


def _read_jpeg(file: BinaryIO) -> Extras:
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
            exif = data if marker == 0xE1 and data.startswith(_EXIF) else exif
            xmp += data if marker == 0xE1 and not data.startswith(_EXIF) else b""
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
    end = _jpeg_end(file)
    if end and end < size:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content.find(b"ftyp", end) >= 0 or b"MotionPhoto_Data" in content[end:]:
                left.append("the film of a motion photo")
            elif not left and content[end:].strip(b"\0\n\r "):
                left.append(f"{size - end} bytes behind the picture")
    return left


def _jpeg_end(file: BinaryIO) -> int:
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
    replace(path, JPEG_BODY, JPEG_BODY, b"".join(struct.pack(">BBH", 0xFF, m, len(d) + 2) + d for m, d in segments))


def jfif_segment(resolution: tuple[float, float] | None) -> tuple[int, bytes]:
    """The header of a JPEG without EXIF; resolution in pixels per millimetre, None meaning unknown."""
    unit, *density = (
        (0, 1, 1) if resolution is None else (1, *(min(round(25.4 * value), 65535) for value in resolution))
    )
    return 0xE0, struct.pack(">5sHBHHBB", b"JFIF", 0x0102, unit, *density, 0, 0)


def _read_webp(file: BinaryIO) -> Extras:
    file.seek(12)
    lossless, tags = False, None
    while len(head := file.read(8)) == 8:
        kind, length = struct.unpack("<4sI", head)
        lossless = lossless or kind == b"VP8L"
        if kind == b"EXIF" and length <= _LIMIT:
            tags = read_exif(file.read(length))
            file.seek(length % 2, 1)
        else:
            file.seek(length + length % 2, 1)
    return Extras(tags=tags, resolved=282 in (tags or {}), lossless=lossless)


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
            return file.read(2) == b"\xff\xd9" or _jpeg_end(file) > 0
        if head[:4] == b"RIFF":
            return size >= int.from_bytes(head[4:8], "little") + 8 - 1  # the last chunk's padding may be missing
        tags = read_tags(file)
        for places, lengths in ((273, 279), (324, 325)):
            if places in tags and lengths in tags:
                ends = zip(tags[places].numbers, tags[lengths].numbers, strict=False)
                return all(place + length <= size for place, length in ends)
    return True


def replace(path: Path, start: int, end: int, data: bytes) -> None:
    """Put ``data`` in place of the bytes from ``start`` to ``end`` - 1 of a file.

    What follows moves within the file, from its far end on, so that no second file is made.
    """
    shift = len(data) - (end - start)
    block = max(1 << 20, abs(shift))
    with open(path, "r+b") as file:
        size = file.seek(0, 2)
        starts = range(end, size, block)
        for place in reversed(starts) if shift > 0 else starts if shift < 0 else ():
            file.seek(place)
            moved = file.read(block)
            file.seek(place + shift)
            file.write(moved)
        file.seek(start)
        file.write(data)
        file.truncate(size + shift)
