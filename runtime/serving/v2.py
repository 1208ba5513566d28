"""Messages of the open inference protocol v2 (KServe's), with its extension for binary tensors.

A request or an answer is a JSON object and then the tensor's bytes, little-endian; a header says where the JSON ends.
Source: docs/protocol in triton-inference-server/server, extension_binary_data.md; kserve/open-inference-protocol.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from echoir.runtime.contract import Array
from echoir.runtime.manifest import TensorSpec

LENGTH = "Inference-Header-Content-Length"  # bytes of JSON before the tensor's
DATATYPES = {"float32": "FP32", "uint8": "UINT8"}
DTYPES = {name: dtype for dtype, name in DATATYPES.items()}
MOST_JSON = 1 << 20  # bytes; an answer's JSON takes a few hundred


class BadAnswerError(Exception):
    """An answer that is not one; the message says in what way."""


def request(tiles: Array, source: TensorSpec, sink: TensorSpec) -> tuple[bytes, dict[str, str]]:
    """Body and headers that ask for the output of these tiles."""
    data = np.ascontiguousarray(tiles, tiles.dtype.newbyteorder("<")).tobytes()
    entry = {
        "name": source.name,
        "shape": list(tiles.shape),
        "datatype": DATATYPES[source.dtype],
        "parameters": {"binary_data_size": len(data)},
    }
    outputs = [{"name": sink.name, "parameters": {"binary_data": True}}]
    header = json.dumps({"inputs": [entry], "outputs": outputs}).encode()
    return header + data, {"Content-Type": "application/octet-stream", LENGTH: str(len(header))}


def answer(body: bytes, length: str | None, sink: TensorSpec, shape: tuple[int, ...]) -> Array:
    """The tensor of an answer to :func:`request`.

    Args:
        body: the whole body.
        length: the answer's :data:`LENGTH` header.
        sink: the output that was asked for.
        shape: what it must have.

    Raises:
        BadAnswerError: the answer says or holds something else.
    """
    if length is None:
        raise BadAnswerError("it has no binary tensor; the server lacks that extension of the protocol")
    if not length.isascii() or not length.isdigit() or int(length) > len(body):
        raise BadAnswerError(f"it is {len(body)} bytes long and says that {length} of them are JSON")
    header = json_object(body[: int(length)])
    outputs = header.get("outputs")
    if not isinstance(outputs, list) or len(outputs) != 1 or not isinstance(outputs[0], dict):
        raise BadAnswerError(f"it should hold one output, {sink.name}, and holds {str(outputs)[:200]}")
    found = {name: outputs[0].get(name) for name in ("name", "datatype", "shape")}
    needed = {"name": sink.name, "datatype": DATATYPES[sink.dtype], "shape": list(shape)}
    for name, value in found.items():
        if value != needed[name]:
            raise BadAnswerError(f"the output's {name} is {str(value)[:200]}, needed {needed[name]}")
    data = body[int(length) :]
    dtype = np.dtype(sink.dtype).newbyteorder("<")
    size = int(np.prod(shape)) * dtype.itemsize
    if len(data) != size:
        raise BadAnswerError(f"it holds {len(data)} bytes of pixels, needed {size}")
    return np.frombuffer(data, dtype).reshape(shape).astype(sink.dtype, copy=False)


def json_object(body: bytes) -> dict[str, Any]:
    """A JSON object, or :class:`BadAnswerError`."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise BadAnswerError(f"it is no JSON object but {body[:60]!r}")
    return value
