"""The fp32 or fp16 artifact's file: a source's graph, typed for its precision."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from echoir.export.lowering import lowering_of
from echoir.export.overflow import as_input, overflowing
from echoir.export.precision import to_fp16
from echoir.export.reference import IO
from echoir.export.sources import Source
from echoir.runtime.files import atomic_write

Precision = Literal["fp32", "fp16"]


def export_onnx(
    source: Source,
    path: str | Path,
    *,
    tile: tuple[int, int],
    batch: int | None = 1,
    io: IO = "float",
    precision: Precision = "fp32",
    free: bool = False,
    tried: Sequence[NDArray[np.float32]] = (),
) -> tuple[str, ...]:
    """Write a network as one ONNX file.

    Args:
        source: the network.
        path: the file to write; it appears whole or not at all.
        tile: (height, width) of every input in pixels, multiples of the network's.
        batch: images per run, or None for any number.
        io: ``"float"``: float32 NCHW in [0, 1] in, the same out, not clipped. ``"uint8"``: uint8
            NHWC in [0, 255] in and out; scaling, clipping and rounding happen inside.
        precision: ``"fp32"``, or ``"fp16"``: weights and most activations in float16, with
            float32 kept where :mod:`echoir.export.precision` says.
        free: inputs of other sizes too, as long as their sides are multiples of the network's.
        tried: real tiles, [1, C, height, width] in [0, 1]: nodes that leave float16's range on them keep float32.

    Returns:
        Names of the nodes that compute in float32 in an fp16 model; none for fp32.

    Raises:
        ValueError: a tile that does not fit the network, or a batch below 1.
        BackendError: the exporter or the checker refuses the graph, or a weight does not fit float16.
        ImageError: the file cannot be written.
    """
    model = source.graph(tile=tile, batch=batch, io=io, free=free)
    float32_nodes: tuple[str, ...] = ()
    if precision == "fp16":
        beyond = overflowing(model, [as_input(one, batch, io) for one in tried])
        model, float32_nodes = to_fp16(model, lowering_of(source.descriptor.architecture), overflowing=beyond)
    onnx.checker.check_model(model, full_check=True)
    with atomic_write(path) as temporary:
        temporary.write_bytes(model.SerializeToString())
    return float32_nodes
