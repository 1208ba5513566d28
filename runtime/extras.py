"""What a picture's file holds besides pixels, as far as libvips does not keep it; and the same for a larger picture."""

from __future__ import annotations

import dataclasses
import struct
from dataclasses import dataclass

from echoir.runtime.tags import Tags, scaled_exif, scaled_tags

LIMIT = 1 << 26  # bytes; far more than any metadata, far less than a hostile file
EXIF = b"Exif\0\0"  # how such a segment of a JPEG begins
_SRGB_GAMMA = struct.pack(">I", 45455)


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
        if marker == 0xE1 and data.startswith(EXIF):
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
