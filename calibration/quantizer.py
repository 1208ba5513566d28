"""Explicit Q/DQ that TensorRT takes, around the layers it is told to, by ONNX Runtime's quantizer.

Everything is symmetric with zero point 0: activations per tensor, weights per output channel.
Biases stay float. Q/DQ stands at the inputs of a quantized layer alone, so a kernel that ends in
it (normalization, GELU and product) writes INT8 directly, and nothing separates a convolution from
what is fused behind it. Operators of a network's own and their functions are left as they are.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from echoir.calibration.graph import Layer

Array = NDArray[Any]
OPERATORS = ["Conv", "Gemm", "MatMul"]
# TensorRT has no INT8 kernel for one channel per group: it pads every group to four, with zeros that
# lie in the engine as images of their own. Four real channels per group need no padding.
GROUP = 4


def quantize(
    model: onnx.ModelProto, layers: Collection[Layer], limits: Mapping[str, Sequence[float]]
) -> onnx.ModelProto:
    """A copy of the model in which these layers compute on INT8.

    Args:
        model: float32, with the shapes of all values inferred.
        layers: those to quantize, as :class:`echoir.calibration.graph.Graph` lists them.
        limits: by name of layer, the largest magnitude that INT8 holds of each of its inputs.
    """
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.calibrate import TensorData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    result = onnx.ModelProto()
    result.CopyFrom(model)
    if not layers:
        return result
    regroup(result, [layer for layer in layers if layer.kind == "depthwise"])
    ranges = {
        name: TensorData(lowest=np.float32(-limit), highest=np.float32(limit))
        for layer in layers
        for name, limit in zip(layer.inputs, limits[layer.name], strict=True)
    }
    quantizer = QDQQuantizer(
        result,
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QInt8,
        tensors_range=ranges,
        nodes_to_quantize=[layer.name for layer in layers],
        nodes_to_exclude=[],
        op_types_to_quantize=OPERATORS,
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "AddQDQPairToWeight": False,  # weights lie in the file as INT8
            "QuantizeBias": False,
            "DedicatedQDQPair": False,  # layers that read the same tensor share its INT8 copy
            "OpTypesToExcludeOutputQuantization": OPERATORS,
            "TensorQuantOverrides": {
                layer.weight: [{"axis": layer.axis, "symmetric": True}] for layer in layers if layer.weight is not None
            },
        },
    )
    quantizer.quantize_model()
    _spare_others(quantizer.model.model, {layer.name for layer in layers})
    quantizer.model.topological_sort()
    quantized: onnx.ModelProto = quantizer.model.model
    return onnx.shape_inference.infer_shapes(quantized, check_type=True, strict_mode=True, data_prop=True)


def regroup(model: onnx.ModelProto, layers: Collection[Layer]) -> None:
    """Give depthwise convolutions four channels per group, three of their weights being zero."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    names = {layer.name for layer in layers}
    for node in model.graph.node:
        if node.name not in names:
            continue
        tensor = weights[node.input[1]]
        depthwise = numpy_helper.to_array(tensor)  # [C, 1, kh, kw]
        channels = len(depthwise)
        if channels % GROUP:
            continue
        grouped = np.zeros((channels, GROUP, *depthwise.shape[2:]), depthwise.dtype)
        grouped[np.arange(channels), np.arange(channels) % GROUP] = depthwise[:, 0]
        tensor.CopyFrom(numpy_helper.from_array(grouped, tensor.name))
        attribute = next(entry for entry in node.attribute if entry.name == "group")
        attribute.CopyFrom(helper.make_attribute("group", channels // GROUP))


def _spare_others(model: onnx.ModelProto, quantized: Collection[str]) -> None:
    """Let nodes that are not quantized read the tensor itself, not its INT8 copy (residual sums above all)."""
    sources = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    copies = {
        node.output[0]: sources[node.input[0]]
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in sources
    }
    for node in model.graph.node:
        if node.name not in quantized:
            node.input[:] = [copies.get(name, name) for name in node.input]
