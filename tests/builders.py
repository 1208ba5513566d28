"""Small artifacts that tests make in milliseconds, of any precision, layout and behaviour."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from echoir.runtime.artifact import Artifact, write_artifact
from echoir.runtime.descriptor import Descriptor
from echoir.runtime.manifest import (
    FLOAT_NCHW,
    UINT8_NHWC,
    CheckpointRecord,
    Manifest,
    Model,
    Precision,
    TensorSpec,
    Tile,
)

if TYPE_CHECKING:
    from echoir.export.sources import TorchSource
    from echoir.networks.echoir import EchoIR

Io = Literal["float", "uint8"]
Array = np.ndarray[Any, np.dtype[Any]]


class FunctionSession:
    """A session made of a function of whole batches."""

    def __init__(self, function: Callable[[Array], Array]) -> None:
        self.function = function
        self.batches: list[int] = []
        self.closed = False

    def run(self, tiles: Array) -> Array:
        self.batches.append(len(tiles))
        return self.function(tiles)

    def close(self) -> None:
        self.closed = True

    def __enter__(self) -> FunctionSession:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def make_manifest(
    *,
    io: Io = "float",
    tile: tuple[int, int] = (64, 64),
    overlap: int = 8,
    batch: int | None = None,
    most: int | None = None,
    **changes: Any,
) -> Manifest:
    """A valid manifest of an ONNX artifact; ``changes`` replaces whole fields."""
    tensor: dict[str, Any] = FLOAT_NCHW if io == "float" else UINT8_NHWC
    fields: dict[str, Any] = {
        "name": "test",
        "network": Descriptor("none", "denoise", 1, multiple=(8, 8)),
        "checkpoint": CheckpointRecord("none", "0" * 64),
        "model": Model("onnxruntime"),
        "precision": Precision("fp32"),
        "tile": Tile(*tile, overlap, batch, most),
        "versions": {"echoir": "0"},
    }
    network: Descriptor = changes.get("network", fields["network"])
    fields["input"] = TensorSpec("image", **tensor, colour=network.input)
    fields["output"] = TensorSpec("restored", **tensor, colour=network.output)
    return Manifest(**(fields | changes))


def make_model(
    path: Path,
    *,
    io: Io = "float",
    tile: tuple[int, int] = (64, 64),
    batch: int | None = None,
    free: bool = False,
    gain: float = 1.0,
    bias: float = 0.0,
) -> None:
    """Write an ONNX model that gives ``gain * image + bias`` (in units of [0, 1] for both ``io``).

    ``gain=1, bias=0`` is the identity; ``gain=0, bias=0`` a black frame; ``bias=nan`` gives NaN.
    """
    n: Any = batch if batch is not None else "batch"
    sides: list[Any] = ["rows", "columns"] if free else [*tile]
    shape = [n, 3, *sides] if io == "float" else [n, *sides, 3]
    kind = TensorProto.FLOAT if io == "float" else TensorProto.UINT8
    white = 1.0 if io == "float" else 255.0
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["float", "gain"], ["scaled"]),
        helper.make_node("Add", ["scaled", "bias"], ["moved"]),
    ]
    if io == "uint8":
        nodes += [
            helper.make_node("Round", ["moved"], ["whole"]),
            helper.make_node("Clip", ["whole", "low", "high"], ["clipped"]),
            helper.make_node("Cast", ["clipped"], ["restored"], to=TensorProto.UINT8),
        ]
    else:
        nodes.append(helper.make_node("Identity", ["moved"], ["restored"]))
    constants = {"gain": gain, "bias": bias * white, "low": 0.0, "high": 255.0}
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("image", kind, shape)],
        [helper.make_tensor_value_info("restored", kind, shape)],
        [numpy_helper.from_array(np.float32(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def make_artifact(
    folder: Path,
    name: str = "test",
    *,
    io: Io = "float",
    tile: tuple[int, int] = (64, 64),
    overlap: int = 8,
    batch: int | None = None,
    most: int | None = None,
    gain: float = 1.0,
    bias: float = 0.0,
    **changes: Any,
) -> Artifact:
    """Write model and manifest; see :func:`make_model` and :func:`make_manifest`."""
    path = folder / f"{name}.onnx"
    make_model(path, io=io, tile=tile, batch=batch, free=most is not None, gain=gain, bias=bias)
    manifest = make_manifest(io=io, tile=tile, overlap=overlap, batch=batch, most=most, name=name, **changes)
    return write_artifact(manifest, path)


def make_source(network: EchoIR) -> TorchSource:
    """A network as the export takes it."""
    from echoir.export.sources import TorchSource

    return TorchSource(network, network.describe("denoise", "tiny"))
