"""EchoUpsample as an ONNX function: what runs where no plugin takes the node over.

The exporter leaves one opaque node ``echoir::EchoUpsample`` per upsampler; the file carries this
function of the same name. ONNX Runtime and TensorRT's parser inline it; a TensorRT plugin may
replace it. The body is the block form of :mod:`echoir.networks.upsampler`, so it needs two batched matrix
products and a dozen element-wise nodes, whatever the radius, without a node per tap or phase.

Node inputs: down [N, C, h, w], guide [N, K, 2h, 2w], sigma_spatial [1], sigma_range [1], where h
and w are multiples of 2 * max(radius, 1). Output: [N, C, 2h, 2w].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from echoir.networks.upsampler import Combine

DOMAIN = "echoir"
NAME = "EchoUpsample"
ATTRIBUTES = ("radius", "combine", "plugin_namespace", "aot")  # what every node carries
COMBINES: tuple[Combine, ...] = ("sum", "product")  # by the number that a node carries
_END = np.iinfo(np.int64).max


def node_attributes(radius: int, combine: Combine = "sum") -> dict[str, int | str]:
    """Attributes of a node, as TensorRT's parser wants them to let an ahead-of-time plugin take over."""
    return {"radius": radius, "combine": COMBINES.index(combine), "plugin_namespace": DOMAIN, "aot": 1}


def macs(node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Multiply-accumulates of a node's taps: squared distances over the guide's channels, sums over the values'."""
    radius = next(entry.i for entry in node.attribute if entry.name == "radius")
    _, channels, height, width = shapes[node.output[0]]
    return (2 * radius + 1) ** 2 * (channels + shapes[node.input[1]][1]) * height * width


def echo_function(radius: int, combine: Combine, opset: int, compute: int = TensorProto.FLOAT) -> onnx.FunctionProto:
    """Build the function for one radius and one way to combine the kernels.

    Args:
        radius: neighbourhood radius in cells, >= 0.
        combine: ``"sum"`` or ``"product"``; see :func:`echoir.networks.upsampler.echo_upsample`.
        opset: version of the default domain that the body is written in, >= 18.
        compute: type of distances, weights and sums; inputs of any floating type are cast to it,
            and the output has the type of ``down``.
    """
    from echoir.networks.upsampler import block_tables  # here, since an engine is built without PyTorch

    body = FunctionBody()
    block = 2 * max(radius, 1)
    cells = 4 * block * block  # of a window, and pixels of a block
    halo = block // 2
    dtype = helper.tensor_dtype_to_np_dtype(compute)
    distance, inside = (table.numpy().astype(dtype) for table in block_tables(radius))

    def rows(blocks: str, name: str, shape: str) -> str:
        """[N, X, a, b] -> [N, a * b, *shape], in the type to compute in."""
        flat = body("Reshape", blocks, body.constant("flat", [0, 0, -1]), out=f"{name}_flat")
        result = body(
            "Reshape", body("Transpose", flat, out=f"{name}_rows", perm=[0, 2, 1]), shape, out=f"{name}_matrix"
        )
        return body("Cast", result, out=f"{name}_cast", to=compute)

    def padded(plane: str, name: str) -> str:
        pads = body.constant("pads", [0, 0, halo, halo, 0, 0, halo, halo])
        return body("Pad", plane, pads, out=f"{name}_padded", mode="edge")

    def windows(plane: str, name: str) -> str:
        """[N, X, h, w] -> [N, cells * X, a, b]: each block's cells and those around it, cells outermost."""
        blocks = body("SpaceToDepth", plane, out=f"{name}_blocks", blocksize=block)
        corners = []
        for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
            starts = body.constant(f"from{i}{j}", [i, j])
            ends = body.constant(f"to{i}{j}", [_END if i else -1, _END if j else -1])
            axes = body.constant("height_width", [2, 3])
            corners.append(body("Slice", blocks, starts, ends, axes, out=f"{name}_corner{i}{j}"))
        return body("Concat", *corners, out=f"{name}_windows", axis=1)

    def exponent(numerator: str, sigma: str, name: str) -> str:
        """-numerator / (2 sigma^2)"""
        sigma = body("Cast", sigma, out=f"{name}_sigma", to=compute)
        variance = body("Mul", sigma, sigma, out=f"{name}_variance")
        scale = body("Div", body.constant("minus_half", np.asarray(-0.5, dtype)), variance, out=f"{name}_scale")
        return body("Mul", numerator, scale, out=f"{name}_exponent")

    by_cell = body.constant("by_cell", [0, 0, cells, -1])
    values = rows(windows(padded("down", "value"), "value"), "value", by_cell)  # [N, blocks, cells, C]
    pixel_blocks = body("SpaceToDepth", "guide", out="pixel_blocks", blocksize=2 * block)
    pixels = rows(pixel_blocks, "pixel", by_cell)  # [N, blocks, pixels, K]

    # The means are wanted as columns, [N, blocks, K, cells]. With every channel an image of its own,
    # the windows come out channels outermost and no matrix is transposed.
    mean = body("AveragePool", "guide", out="mean", kernel_shape=[2, 2], strides=[2, 2])
    planes = body("Reshape", padded(mean, "mean"), body.constant("planes", [-1, 1, 0, 0]), out="mean_planes")
    batch = body("Shape", "guide", out="batch", start=0, end=1)
    by_image = body("Concat", batch, body.constant("channels", [-1, 0, 0]), out="by_image", axis=0)
    regrouped = body("Reshape", windows(planes, "mean"), by_image, out="mean_by_image")
    means = rows(regrouped, "mean", body.constant("by_channel", [0, 0, -1, cells]))

    # |a - b|^2 = |b|^2 - 2 a.b + |a|^2, for every pixel and cell of a window: [N, blocks, pixels, cells]
    pixel_squares = body("Mul", pixels, pixels, out="pixel_squares")
    pixel_norms = body("ReduceSum", pixel_squares, body.constant("last", [-1]), out="pixel_norms", keepdims=1)
    mean_squares = body("Mul", means, means, out="mean_squares")
    mean_norms = body("ReduceSum", mean_squares, body.constant("rows", [2]), out="mean_norms", keepdims=1)
    products = body("MatMul", pixels, means, out="products")
    # A sum, not a difference: OpenVINO rewrites a difference, and forgets that it must not round it.
    twice = body("Mul", products, body.constant("minus_two", np.asarray(-2, dtype)), out="products2")
    partial = body("Add", mean_norms, twice, out="partial_distances")
    distances = body("Add", partial, pixel_norms, out="distances")
    range_exponent = exponent(distances, "sigma_range", "range")
    spatial_exponent = exponent(body.constant("spatial", distance), "sigma_spatial", "spatial")
    mask = body.constant("inside", inside)
    if combine == "sum":
        range_kernel = body("Mul", body("Exp", range_exponent, out="range_all"), mask, out="range_kernel")
        spatial_kernel = body("Mul", body("Exp", spatial_exponent, out="spatial_all"), mask, out="spatial_kernel")
        weights = body("Add", range_kernel, spatial_kernel, out="weights")
    else:
        both = body("Add", range_exponent, spatial_exponent, out="exponents")
        weights = body("Mul", body("Exp", both, out="weights_all"), mask, out="weights")
    total = body("ReduceSum", weights, body.constant("last", [-1]), out="total", keepdims=1)
    sums = body("MatMul", weights, values, out="sums")
    result = body("Div", sums, total, out="averages")
    result = body("CastLike", result, "down", out="averages_cast")

    matrix = body("Reshape", result, body.constant("flat", [0, 0, -1]), out="output_rows")
    flat = body("Transpose", matrix, out="output_flat", perm=[0, 2, 1])
    grid = body("Shape", pixel_blocks, out="grid", start=2)  # constant once the tile is fixed
    shape = body("Concat", body.constant("keep", [0, -1]), grid, out="output_shape", axis=0)
    blocks = body("Reshape", flat, shape, out="output_blocks")
    body("DepthToSpace", blocks, out="output", blocksize=2 * block, mode="DCR")
    return helper.make_function(
        DOMAIN,
        NAME,
        inputs=["down", "guide", "sigma_spatial", "sigma_range"],
        outputs=["output"],
        nodes=body.nodes,
        opset_imports=[helper.make_opsetid("", opset)],
        attributes=list(ATTRIBUTES),
        doc_string=f"EchoUpsample, radius {radius}, combine {combine}",
    )


class FunctionBody:
    """Collects nodes; calling it appends one and returns its output's name."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self._constants: set[str] = set()

    def __call__(self, op_type: str, *inputs: str, out: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op_type, list(inputs), [out], name=out, **attributes))
        return out

    def constant(self, name: str, value: NDArray[Any] | np.generic | list[int]) -> str:
        """A constant of the body, shared by name; lists become int64."""
        name = f"const_{name}"
        if name not in self._constants:
            self._constants.add(name)
            tensor = numpy_helper.from_array(np.asarray(value, np.int64 if isinstance(value, list) else None), name)
            self.nodes.append(helper.make_node("Constant", [], [name], name=name, value=tensor))
        return name
