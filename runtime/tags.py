"""Tags of TIFF and EXIF, which libvips knows a few of: read from one file, put into another.

EXIF is a small TIFF file, so one reader does for both. TIFF 6.0; BigTIFF as libtiff describes it; EXIF 2.3.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO
from typing import BinaryIO

import numpy as np

# Bytes of a value by its type, and of what has a byte order in it: a rational is two of four bytes.
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 16: 8, 17: 8}
_UNITS = {**_SIZES, 5: 4, 10: 4}
_LIMIT = 1 << 26  # bytes of one tag; far more than any, far less than a hostile file

PHOTOMETRIC, ORIENTATION, SAMPLES, X_RESOLUTION, RESOLUTION_UNIT, EXTRA_SAMPLES = 262, 274, 277, 282, 296, 338
STRIP_OFFSETS, STRIP_BYTES, TILE_OFFSETS, TILE_BYTES = 273, 279, 324, 325
_INTEROPERABILITY = 40965  # a third such folder, of no use here
_PIXEL_X, _PIXEL_Y = 40962, 40963  # EXIF's own width and height
_DENSITIES = {X_RESOLUTION, 283, 41486, 41487}  # pixels per unit, of the print and of the sensor
_FOLDERS = (34665, 34853)  # EXIF's and GPS' own tags
# How the pixels lie in the file, which the new file settles for itself; and pointers to what stays behind.
_STRUCTURE = {
    *range(254, 260), PHOTOMETRIC, *range(263, 267), STRIP_OFFSETS, ORIENTATION, SAMPLES, 278, STRIP_BYTES, 280, 281,
    X_RESOLUTION, 283, 284, *range(288, 294), RESOLUTION_UNIT, 297, 301, 317, *range(320, 331), *range(332, 348),
    *range(512, 522), *range(529, 533), 700, 33723, 34377, 34675, 37724,
}  # fmt: skip


@dataclass(frozen=True)
class Tag:
    """A value as it stands in the file, little-endian; or a folder of more tags."""

    type: int
    count: int
    data: bytes = b""
    folder: Mapping[int, Tag] | None = None

    @property
    def numbers(self) -> list[int]:
        """The values of a tag of whole numbers."""
        return np.frombuffer(self.data, f"<u{_UNITS[self.type]}").tolist()


Tags = Mapping[int, Tag]


def read_tags(file: BinaryIO) -> Tags:
    """The first picture's tags of a TIFF file or an EXIF block; what is damaged or unknown is left out."""
    file.seek(0)
    head = file.read(16)
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    if order is None or len(head) < 8:
        return {}
    big = head[2:4] in (b"+\0", b"\0+")
    if big and len(head) < 16:
        return {}
    (start,) = struct.unpack_from(order + ("Q" if big else "I"), head, 8 if big else 4)
    return _read_folder(file, order, big, start, depth=0)


def read_exif(exif: bytes) -> Tags:
    """The tags of an EXIF block, with or without its prefix."""
    return read_tags(BytesIO(exif.removeprefix(b"Exif\0\0")))


def exif_resolution(tags: Tags) -> tuple[float, float] | None:
    """Pixels per millimetre, across and down; None where the tags do not say it. TIFF 6.0, section 8."""
    found = [tags.get(number) for number in (282, 283)]
    unit = tags[296].numbers[:1] if 296 in tags and tags[296].type == 3 else [2]
    millimetres = {2: 25.4, 3: 10.0}.get(unit[0] if unit else 0)
    values = [tag.numbers for tag in found if tag is not None and tag.type == 5 and tag.count == 1]
    if millimetres is None or not values or any(top == 0 or bottom == 0 for top, bottom in values):
        return None
    across, down = (top / bottom / millimetres for top, bottom in (values[0], values[-1]))
    return across, down


def carried(tags: Tags) -> Tags:
    """Those that say nothing of how the pixels lie in the file."""
    return {number: tag for number, tag in tags.items() if number not in _STRUCTURE}


def to_exif(tags: Tags) -> bytes:
    """An EXIF block of these tags, without prefix."""
    file = BytesIO(b"II*\0" + bytes(4))
    add_tags(file, tags)
    return file.getvalue()


def with_orientation(exif: bytes, orientation: int) -> bytes:
    """An EXIF block with its orientation changed, if it has one; nothing else moves."""
    prefix = b"Exif\0\0" if exif.startswith(b"Exif\0\0") else b""
    block = bytearray(exif[len(prefix) :])
    order = {b"II": "<", b"MM": ">"}.get(bytes(block[:2]))
    try:
        if order is not None:
            (start,) = struct.unpack_from(order + "I", block, 4)
            (count,) = struct.unpack_from(order + "H", block, start)
            for place in range(start + 2, start + 2 + 12 * count, 12):
                if struct.unpack_from(order + "HH", block, place) == (ORIENTATION, 3):
                    struct.pack_into(order + "H", block, place + 8, orientation)
    except struct.error:  # cut short: no orientation there
        pass
    return prefix + bytes(block)


def scaled_tags(tags: Tags, scale: float, height: int, width: int) -> Tags:
    """Tags of a TIFF that say of an enlarged picture what they said of the picture before."""
    folders = {number: tag.folder for number, tag in tags.items() if tag.folder is not None}
    new = {number: Tag(4, 1, folder=scaled_tags(folder, scale, height, width)) for number, folder in folders.items()}
    for number, side in ((_PIXEL_X, width), (_PIXEL_Y, height)):
        if number in tags:
            new[number] = Tag(4, 1, struct.pack("<I", side))
    for number in _DENSITIES & tags.keys():
        if tags[number].type == 5 and tags[number].count == 1:
            new[number] = Tag(5, 1, struct.pack("<II", *_scaled(tags[number].numbers, scale)))
    return {**tags, **new}


def scaled_exif(exif: bytes, scale: float, height: int, width: int) -> bytes:
    """The same for an EXIF block; nothing in it moves."""
    prefix = b"Exif\0\0" if exif.startswith(b"Exif\0\0") else b""
    block = bytearray(exif[len(prefix) :])
    order = {b"II": "<", b"MM": ">"}.get(bytes(block[:2]))
    if order is None:
        return exif

    def change(start: int, depth: int) -> None:
        (count,) = struct.unpack_from(order + "H", block, start)
        for place in range(start + 2, start + 2 + 12 * count, 12):
            number, kind, values = struct.unpack_from(order + "HHI", block, place)
            if number == _FOLDERS[0] and depth == 0:
                change(struct.unpack_from(order + "I", block, place + 8)[0], 1)
            elif number in (_PIXEL_X, _PIXEL_Y) and values == 1:
                side = width if number == _PIXEL_X else height
                struct.pack_into(order + "HHII", block, place, number, 4, 1, side)
            elif number in _DENSITIES and (kind, values) == (5, 1):
                (at,) = struct.unpack_from(order + "I", block, place + 8)
                numbers = list(struct.unpack_from(order + "II", block, at))
                struct.pack_into(order + "II", block, at, *_scaled(numbers, scale))

    with suppress(struct.error):  # cut short
        change(struct.unpack_from(order + "I", block, 4)[0], 0)
    return prefix + bytes(block)


def _scaled(rational: list[int], scale: float) -> tuple[int, int]:
    """A rational number of 32 bits, times a scale."""
    value = Fraction(*rational) * Fraction(scale) if rational[1] else Fraction(0)
    value = value.limit_denominator(2**16)
    return (value.numerator, value.denominator) if value.numerator < 2**32 else (rational[0], rational[1])


def add_tags(file: BinaryIO, tags: Tags) -> None:
    """Put tags into the first picture of a TIFF file, in place of those of the same number.

    They go to the end of the file, with a new list of all tags; nothing else moves.

    Args:
        file: open for reading and writing; a header alone, with zero for the list's place, is a file without tags.
    """
    file.seek(0)
    head = file.read(16)
    order, big = "<" if head[:2] == b"II" else ">", head[2:4] in (b"+\0", b"\0+")
    (start,) = struct.unpack_from(order + ("Q" if big else "I"), head, 8 if big else 4)
    records = _records(file, order, big, start) if start else {}
    new = _write_folder(file, order, big, tags, records)
    file.seek(8 if big else 4)
    file.write(struct.pack(order + ("Q" if big else "I"), new))


def _records(file: BinaryIO, order: str, big: bool, start: int) -> dict[int, bytes]:
    """The entries of a list of tags as they stand, by number."""
    file.seek(start)
    count_format, size = (order + "Q", 20) if big else (order + "H", 12)
    head = file.read(struct.calcsize(count_format))
    if len(head) < struct.calcsize(count_format):
        return {}
    block = file.read(size * min(struct.unpack(count_format, head)[0], 4096))
    return {
        struct.unpack_from(order + "H", block, place)[0]: block[place : place + size]
        for place in range(0, len(block) - size + 1, size)
    }


def _read_folder(file: BinaryIO, order: str, big: bool, start: int, depth: int) -> dict[int, Tag]:
    tags: dict[int, Tag] = {}
    room = 8 if big else 4
    for number, record in _records(file, order, big, start).items():
        kind, count = struct.unpack_from(order + ("HQ" if big else "HI"), record, 2)
        length = _SIZES.get(kind, 0) * count
        if number == _INTEROPERABILITY:
            continue
        if number in _FOLDERS and depth == 0 and kind in (4, 13, 18):
            (place,) = struct.unpack_from(order + ("Q" if kind == 18 else "I"), record, len(record) - room)
            if folder := _read_folder(file, order, big, place, depth + 1):
                tags[number] = Tag(4, 1, folder=folder)
        elif 0 < length <= _LIMIT:
            if length <= room:
                data = record[-room:][:length]
            else:
                file.seek(struct.unpack_from(order + ("Q" if big else "I"), record, len(record) - room)[0])
                data = file.read(length)
            if len(data) == length:
                tags[number] = Tag(kind, count, _swapped(data, kind) if order == ">" else data)
    return tags


def _write_folder(file: BinaryIO, order: str, big: bool, tags: Tags, records: dict[int, bytes]) -> int:
    """Write tags and their list to the end of a file; returns the list's place."""
    room = 8 if big else 4
    place_format = order + ("Q" if big else "I")
    for number, tag in tags.items():
        if tag.folder is not None:
            data = struct.pack(place_format, _write_folder(file, order, big, tag.folder, {}))
        else:
            data = _swapped(tag.data, tag.type) if order == ">" else tag.data
        if len(data) > room:
            place = _end(file)
            file.write(data)
            data = struct.pack(place_format, place)
        # BigTIFF points to a folder with eight bytes.
        kind = 18 if big and tag.folder is not None else tag.type
        records[number] = struct.pack(order + ("HHQ" if big else "HHI"), number, kind, tag.count) + data.ljust(
            room, b"\0"
        )
    place = _end(file)
    file.write(struct.pack(order + ("Q" if big else "H"), len(records)))
    file.write(b"".join(records[number] for number in sorted(records)))
    file.write(bytes(room))  # no further picture
    return place


def _end(file: BinaryIO) -> int:
    """The end of a file, made even: TIFF wants every place to be."""
    place = file.seek(0, 2)
    if place % 2:
        file.write(b"\0")
    return place + place % 2


def _swapped(data: bytes, kind: int) -> bytes:
    unit = _UNITS[kind]
    return data if unit == 1 else np.frombuffer(data, f">u{unit}").astype(f"<u{unit}").tobytes()
