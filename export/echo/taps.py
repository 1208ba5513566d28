"""EchoUpsample as an ONNX function for TensorRT's compiler: tap by tap, without a transposition.

Same node, same result as :mod:`echoir.export.echo.function`, whose block form is the faster one in ONNX
Runtime on a CPU. TensorRT fuses what stands between two reductions into one kernel, and here that is
nearly all there is: the mean of each cell, the differences to the cells of every tap summed over K, and
the weighted cells summed over the taps. The engine builder puts this function into the file that it
gives to the parser.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, helper

from echoir.export.echo.function import ATTRIBUTES, DOMAIN, NAME, FunctionBody

if TYPE_CHECKING:
    from echoir.networks.upsampler import Combine


def tap_function(radius: int, combine: Combine, opset: int) -> onnx.FunctionProto:
    """Build the function; arguments as for :func:`~echoir.export.echo.function.echo_function`, computing in float32."""
    body = FunctionBody()
    offsets = [(i, j) for i in range(-radius, radius + 1) for j in range(-radius, radius + 1)]
    place = np.array([-0.25, 0.25])  # of a pixel in its cell, along one axis
    along = [(offset - place) ** 2 for offset in range(-radius, radius + 1)]
    table = np.stack([np.add.outer(along[i + radius], along[j + radius]) for i, j in offsets])
    distance = table.reshape(1, len(offsets), 1, 1, 2, 1, 2).astype(np.float32)

    size = body("Shape", "down", out="size", start=2)
    height = body("Shape", "down", out="height", start=2, end=3)
    width = body("Shape", "down", out="width", start=3, end=4)
    one, two = body.constant("one", [1]), body.constant("two_whole", [2])

    def shifted(plane: str, name: str) -> str:
        """[N, X, h, w] -> [N, taps, X, h, 1, w, 1] in float32: the cells of every tap."""
        pads = body.constant("pads", [0, 0, radius, radius, 0, 0, radius, radius])
        padded = body("Pad", plane, pads, out=f"{name}_padded", mode="edge")
        parts = []
        for index, (i, j) in enumerate(offsets):
            starts = body.constant(f"from{index}", [i + radius, j + radius])
            ends = body("Add", starts, size, out=f"{name}_end{index}")
            axes = body.constant("height_width", [2, 3])
            parts.append(body("Slice", padded, starts, ends, axes, out=f"{name}_tap{index}"))
        taps = body("Concat", *parts, out=f"{name}_taps", axis=1) if len(parts) > 1 else parts[0]
        groups = body.constant("by_tap", [0, len(offsets), -1])
        shape = body("Concat", groups, height, one, width, one, out=f"{name}_shape", axis=0)
        return body("Cast", body("Reshape", taps, shape, out=f"{name}_cells"), out=name, to=TensorProto.FLOAT)

    def exponent(numerator: str, sigma: str, name: str) -> str:
        """-numerator / (2 sigma^2)"""
        sigma = body("Cast", sigma, out=f"{name}_sigma", to=TensorProto.FLOAT)
        variance = body("Mul", sigma, sigma, out=f"{name}_variance")
        scale = body("Div", body.constant("minus_half", np.float32(-0.5)), variance, out=f"{name}_scale")
        return body("Mul", numerator, scale, out=f"{name}_exponent")

    cells = body("Concat", body.constant("cells", [0, -1]), height, two, width, two, out="cell_shape", axis=0)
    grouped = body("Cast", body("Reshape", "guide", cells, out="grouped"), out="grouped_cast", to=TensorProto.FLOAT)
    mean = body("ReduceMean", grouped, body.constant("within", [3, 5]), out="mean", keepdims=0)
    fine = body.constant("pixels", [0, 1, -1])
    shape = body("Concat", fine, height, two, width, two, out="pixel_shape", axis=0)
    pixels = body("Cast", body("Reshape", "guide", shape, out="pixel_cells"), out="pixels", to=TensorProto.FLOAT)
    difference = body("Sub", pixels, shifted(mean, "means"), out="difference")  # [N, taps, K, h, 2, w, 2]
    square = body("Mul", difference, difference, out="square")
    distances = body("ReduceSum", square, two, out="distances", keepdims=1)
    range_exponent = exponent(distances, "sigma_range", "range")
    spatial_exponent = exponent(body.constant("spatial", distance), "sigma_spatial", "spatial")
    if combine == "sum":
        kernels = [body("Exp", range_exponent, out="range"), body("Exp", spatial_exponent, out="spatial")]
        weights = body("Add", *kernels, out="weights")
    else:
        weights = body("Exp", body("Add", range_exponent, spatial_exponent, out="exponents"), out="weights")
    total = body("ReduceSum", weights, one, out="total", keepdims=1)
    weighted = body("Mul", weights, shifted("down", "values"), out="weighted")  # [N, taps, C, h, 2, w, 2]
    sums = body("ReduceSum", weighted, one, out="sums", keepdims=1)
    averages = body("CastLike", body("Div", sums, total, out="averages"), "down", out="averages_cast")
    twice = body("Mul", size, two, out="output_size")
    final = body("Concat", body.constant("channels", [0, -1]), twice, out="output_shape", axis=0)
    body("Reshape", averages, final, out="output")
    return helper.make_function(
        DOMAIN,
        NAME,
        inputs=["down", "guide", "sigma_spatial", "sigma_range"],
        outputs=["output"],
        nodes=body.nodes,
        opset_imports=[helper.make_opsetid("", opset)],
        attributes=list(ATTRIBUTES),
        doc_string=f"EchoUpsample, radius {radius}, combine {combine}, tap by tap",
    )
