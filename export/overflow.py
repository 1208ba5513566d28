"""Which nodes leave float16's range on real tiles: found by running them in float32, and kept there.

A residual stream may pass 65,504 where each layer adds to it, and then a whole picture turns black or NaN (SwinIR is
known for it). Nothing in the graph's structure tells; real tiles do.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from echoir.calibration.ranges import open_model
from echoir.export.reference import IO

LIMIT = float(np.finfo(np.float16).max)
ROOM = 2.0  # other pictures may go further than those that were tried
AT_ONCE = 64  # values that one run gives: their largest magnitudes alone, so that memory is that of a run


def overflowing(
    model: onnx.ModelProto, tiles: Iterable[NDArray[Any]], *, threads: int | None = None
) -> dict[str, float]:
    """Nodes that make or take a value near float16's limit, by name, with the largest magnitude.

    Args:
        model: float32, with the type of every value inferred.
        tiles: as the model takes them.
        threads: of ONNX Runtime.
    """
    graph = model.graph
    known = {value.name for value in (*graph.value_info, *graph.output) if _is_float(value)}
    names = [name for node in graph.node for name in node.output if name in known]
    peaks = dict.fromkeys(names, 0.0)
    given = list(tiles)
    if not given:
        return {}
    for start in range(0, len(names), AT_ONCE):
        some = names[start : start + AT_ONCE]
        session = open_model(_with_peaks(model, some), threads)
        for tile in given:
            found = session.run([f"{name}/peak" for name in some], {graph.input[0].name: tile})
            for name, peak in zip(some, found, strict=True):
                peaks[name] = max(peaks[name], float(peak))
    # What is not finite in float32 is no matter of float16.
    beyond = {name for name, peak in peaks.items() if LIMIT / ROOM < peak < np.inf}
    return {
        node.name: max(peaks.get(name, 0.0) for name in (*node.input, *node.output))
        for node in graph.node
        if beyond.intersection((*node.input, *node.output))
    }


def as_input(tile: NDArray[np.float32], batch: int | None, io: IO) -> NDArray[Any]:
    """A tile [1, C, h, w] in [0, 1] as an artifact takes it, as many times as its batch has tiles."""
    tiles = np.repeat(tile, batch or 1, axis=0)
    if io == "float":
        return tiles
    return np.ascontiguousarray(np.rint(tiles.clip(0, 1) * 255).astype(np.uint8).transpose(0, 2, 3, 1))


def _is_float(value: onnx.ValueInfoProto) -> bool:
    return bool(value.type.tensor_type.elem_type == TensorProto.FLOAT)


def _with_peaks(model: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    """A copy that gives the largest magnitudes of some values alone."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    del graph.output[:]
    for name in names:
        graph.node.append(helper.make_node("Abs", [name], [f"{name}/abs"], f"{name}/abs"))
        graph.node.append(helper.make_node("ReduceMax", [f"{name}/abs"], [f"{name}/peak"], f"{name}/peak", keepdims=0))
        graph.output.append(helper.make_tensor_value_info(f"{name}/peak", TensorProto.FLOAT, []))
    return result
