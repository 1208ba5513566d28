"""Float16 in the graph itself: TensorRT runs what the types say, and so does ONNX Runtime.

Weights and image-sized activations become float16. Some nodes keep float32 between explicit casts:
those that sum over many values, and those that have no pixels and so cost nothing. What each
choice is worth in dB is measured by ``benchmarks/fp16_ablation.py``; see ``docs/export.md``.

The body of EchoUpsample casts to float32 and back by itself, so one function serves both precisions.
Converters in libraries retype such constants and inputs without looking into the function that uses
them, and the result does not load; hence a pass of our own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from echoir.export.echo.function import DOMAIN, NAME
from echoir.runtime.errors import BackendError

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16

# Why a node keeps float32: the name of the choice (as in the ablation) and its test.
CHOICES: dict[str, Callable[[onnx.NodeProto], bool]] = {
    "layer norm": lambda node: node.op_type == "LayerNormalization",
    "lengths of q and k": lambda node: node.op_type == "ReduceL2",
    "global mean": lambda node: node.op_type == "ReduceMean",
    "attention matrix": lambda node: "/attention/mix/" in node.name,
    "final addition": lambda node: "/" not in node.name and node.op_type != "Concat",
}


def to_fp16(model: onnx.ModelProto, without: Collection[str] = ()) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Retype a float32 graph of :mod:`echoir.export.graph`.

    Inputs and outputs keep their types.

    Args:
        model: float32, with the type of every value inferred; it is left as it is.
        without: names in ``CHOICES`` to give up, for the ablation.

    Returns:
        The float16 model, and the names of the nodes in it that compute in float32.

    Raises:
        BackendError: a weight does not fit float16.
    """
    choices = [test for name, test in CHOICES.items() if name not in without]
    graph = model.graph
    values = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.value_info, *graph.output)}
    weights = {tensor.name: tensor for tensor in graph.initializer}
    values |= {name: tensor.data_type for name, tensor in weights.items()}
    floats = {name for name, kind in values.items() if kind == FLOAT}
    types = {v.name: FLOAT for v in graph.input}  # of float values as they now are
    nodes: list[onnx.NodeProto] = []
    initializers: dict[str, onnx.TensorProto] = {n: t for n, t in weights.items() if n not in floats}
    casts: dict[tuple[str, int], str] = {}

    def typed(name: str, kind: int) -> str:
        """The value in that type: itself, a converted weight, or the output of a cast shared by all users."""
        if name not in floats or types.get(name) == kind:
            return name
        key = (name, kind)
        if key not in casts:
            suffix = "float16" if kind == HALF else "float32"
            if name in weights:
                casts[key] = name if kind == FLOAT else f"{name}.{suffix}"
                tensor = weights[name] if kind == FLOAT else _half(weights[name], casts[key])
                initializers[casts[key]] = tensor
            else:
                casts[key] = f"{name}/{suffix}"
                nodes.append(helper.make_node("Cast", [name], [casts[key]], name=casts[key], to=kind))
        return casts[key]

    kept = []
    for original in graph.node:
        node = onnx.NodeProto()
        node.CopyFrom(original)
        echo = node.op_type == NAME and node.domain == DOMAIN
        marker = node.op_type in ("QuantizeLinear", "DequantizeLinear")  # named after what they quantize
        kind = FLOAT if not marker and any(test(node) for test in choices) else HALF
        if kind == FLOAT:
            kept.append(node.name)
        for index, name in enumerate(node.input):
            node.input[index] = typed(name, FLOAT if echo and index >= 2 else kind)  # sigmas stay float32
        types.update((name, kind) for name in node.output if name in floats)
        nodes.append(node)
    for output in graph.output:
        if types.get(output.name) == HALF:
            _rename_output(nodes, output.name, f"{output.name}/float16")
            nodes.append(
                helper.make_node("Cast", [f"{output.name}/float16"], [output.name], name=output.name, to=FLOAT)
            )

    result = onnx.ModelProto()
    result.CopyFrom(model)
    for field, content in (("node", nodes), ("initializer", initializers.values()), ("value_info", [])):
        repeated = getattr(result.graph, field)
        del repeated[:]
        repeated.extend(content)
    return onnx.shape_inference.infer_shapes(result, check_type=True, strict_mode=True, data_prop=True), tuple(kept)


def _half(tensor: onnx.TensorProto, name: str) -> onnx.TensorProto:
    weight = numpy_helper.to_array(tensor)
    largest = float(np.abs(weight).max(initial=0.0))
    if not largest <= float(np.finfo(np.float16).max):
        raise BackendError(f"weight {tensor.name} reaches {largest:g}, beyond float16; export it with --precision fp32")
    return numpy_helper.from_array(weight.astype(np.float16), name)


def _rename_output(nodes: list[onnx.NodeProto], old: str, new: str) -> None:
    for node in nodes:
        for names in (node.input, node.output):
            names[:] = [new if name == old else name for name in names]
