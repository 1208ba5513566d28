"""Small artifacts that tests make in milliseconds, of any precision, layout and behaviour."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from echoir.runtime.artifact import Artifact, write_artifact
from echoir.runtime.descriptor import CHANNELS, Descriptor
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
    from echoir.networks.grl import GRL

Io = Literal["float", "uint8"]
Array = np.ndarray[Any, np.dtype[Any]]
PLAIN = Descriptor("none", "denoise", 1, multiple=(8, 8))


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


# Every kind of layer, at the image's resolution, in milliseconds: fields of EchoIRConfig.
SMALL: dict[str, Any] = {"width": 8, "blocks": (1, 1, 1), "middle": 1, "refinement": 1, "stem": 1}


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
        "network": PLAIN,
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
    network: Descriptor = PLAIN,
    ramp: bool = False,
) -> None:
    """Write an ONNX model that gives ``gain * image + bias`` (in units of [0, 1] for both ``io``).

    ``gain=1, bias=0`` is the identity; ``gain=0, bias=0`` a black frame; ``bias=nan`` gives NaN. A ``network`` of
    another scale repeats pixels; one whose output has other channels than its input gives the input's mean in all.
    With ``ramp``, noise from 0 to 0.25 is added, the same in every tile, so that no two places in a tile are alike.
    """
    n: Any = batch if batch is not None else "batch"
    sides: list[Any] = ["rows", "columns"] if free else [*tile]
    given, made, scale = CHANNELS[network.input], CHANNELS[network.output], network.scale
    large: list[Any] = ["rows out", "columns out"] if free else [scale * side for side in tile]
    shapes = [[n, given, *sides], [n, made, *large]] if io == "float" else [[n, *sides, given], [n, *large, made]]
    kind = TensorProto.FLOAT if io == "float" else TensorProto.UINT8
    white = 1.0 if io == "float" else 255.0
    axis, picture, factors = (1, "float", (1, 1, scale, scale)) if io == "float" else (3, "float", (1, scale, scale, 1))
    nodes = [helper.make_node("Cast", ["image"], [picture], to=TensorProto.FLOAT)]
    if given != made:
        copies = [made if i == axis else 1 for i in range(4)]
        nodes += [
            helper.make_node("ReduceMean", [picture], ["mean"], axes=[axis], keepdims=1),
            helper.make_node("Tile", ["mean", "copies"], [picture := "copied"]),
        ]
    if scale > 1:
        resize: dict[str, Any] = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric"}
        nodes.append(
            helper.make_node("Resize", [picture, "", "factors"], [picture := "large"], nearest_mode="floor", **resize)
        )
    nodes += [
        helper.make_node("Mul", [picture, "gain"], ["scaled"]),
        helper.make_node("Add", ["scaled", "bias"], ["biased"]),
        helper.make_node("Add", ["biased", "ramp"], ["moved"]),
    ]
    if io == "uint8":
        nodes += [
            helper.make_node("Round", ["moved"], ["whole"]),
            helper.make_node("Clip", ["whole", "low", "high"], ["clipped"]),
            helper.make_node("Cast", ["clipped"], ["restored"], to=TensorProto.UINT8),
        ]
    else:
        nodes.append(helper.make_node("Identity", ["moved"], ["restored"]))
    values = {"gain": gain, "bias": bias * white, "low": 0.0, "high": 255.0}
    constants = {name: np.asarray(value, np.float32) for name, value in values.items()}
    constants["ramp"] = np.zeros((), np.float32)
    if ramp:
        constants["ramp"] = np.random.default_rng(4).random(shapes[1][1:], np.float32) * np.float32(0.25 * white)
    if scale > 1:
        constants["factors"] = np.array(factors, np.float32)
    if given != made:
        constants["copies"] = np.array(copies, np.int64)
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("image", kind, shapes[0])],
        [helper.make_tensor_value_info("restored", kind, shapes[1])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
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
    ramp: bool = False,
    **changes: Any,
) -> Artifact:
    """Write model and manifest; see :func:`make_model` and :func:`make_manifest`."""
    path = folder / f"{name}.onnx"
    network = changes.pop("network", PLAIN)
    free = most is not None
    make_model(path, io=io, tile=tile, batch=batch, free=free, gain=gain, bias=bias, network=network, ramp=ramp)
    sizes: dict[str, Any] = {"tile": tile, "overlap": overlap, "batch": batch, "most": most}
    manifest = make_manifest(io=io, name=name, network=network, **sizes, **changes)
    return write_artifact(manifest, path)


def small_network(**switches: Any) -> EchoIR:
    """The network of :data:`SMALL`, with random weights, in training mode."""
    from echoir.networks.echoir import EchoIR, EchoIRConfig

    return EchoIR(EchoIRConfig(**(SMALL | switches)))


def make_source(network: EchoIR | GRL) -> TorchSource:
    """A network as the export takes it."""
    from echoir.export.sources import TorchSource

    return TorchSource(network, network.describe("denoise", "tiny"))
