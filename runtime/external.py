"""Does an ONNX file keep weights in other files? Its own hash says nothing of those.

A walk of the file's protobuf structure, since the onnx package is no part of the runtime. Field numbers are those of
onnx.proto; the wire format is that of https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import mmap
from pathlib import Path

# message -> field -> message that it holds
_INSIDE = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14  # of a tensor


class _DamagedError(Exception):
    pass


def has_external_data(path: Path) -> bool:
    """Whether a tensor of an ONNX file lies elsewhere. What is no ONNX file has none: loading it will tell."""
    if not path.stat().st_size:
        return False
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        try:
            return _external(content, 0, len(content), "model")
        except _DamagedError:
            return False


def _external(content: mmap.mmap, place: int, end: int, message: str) -> bool:
    while place < end:
        key, place = _varint(content, place, end)
        field, kind = key >> 3, key & 7
        if kind == 0:
            value, place = _varint(content, place, end)
            if message == "tensor" and field == _DATA_LOCATION and value == 1:
                return True
        elif kind == 2:
            length, place = _varint(content, place, end)
            if place + length > end:
                raise _DamagedError
            if message == "tensor" and field == _EXTERNAL_DATA:
                return True
            inner = _INSIDE.get(message, {}).get(field)
            if inner is not None and _external(content, place, place + length, inner):
                return True
            place += length
        elif kind in (1, 5):
            place += 8 if kind == 1 else 4
        else:
            raise _DamagedError
    return False


def _varint(content: mmap.mmap, place: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while place < end and shift < 70:
        byte = content[place]
        place += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, place
    raise _DamagedError
