"""Float16 in the graph itself: TensorRT runs what the types say, and so does ONNX Runtime.

Weights and image-sized activations become float16. Some nodes keep float32 between explicit casts:
those that sum over many values, and those that have no pixels and so cost nothing. What each
choice is worth in dB is measured by ``benchmarks/fp16_ablation.py``; see ``docs/export.md``.

The body of an operator's function casts to float32 and back by itself, so one function serves both precisions.
Converters in libraries retype such constants and inputs without looking into the function that uses
them, and the result does not load; hence a pass of our own.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import cache

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from echoir.export.lowering import PLAIN, Lowering
from echoir.export.operators import operator_of
from echoir.runtime.errors import BackendError

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16

# Why a node keeps float32 in any graph, by the name of the choice (as in the ablation).
TYPES = {
    "layer norm": "LayerNormalization",
    "lengths of q and k": "ReduceL2",
    "global mean": "ReduceMean",
}
# Of a pixel each, between the picture and the network: conversions, and the sum with the picture.
_LIGHT = {"Add", "Cast", "Clip", "Div", "Identity", "Mul", "Round", "Sub", "Transpose"}


def choices(graph: onnx.GraphProto, lowering: Lowering = PLAIN) -> dict[str, set[str]]:
    """The nodes that keep float32, by name, for every reason there is to keep them."""
    found = {name: {node.name for node in graph.node if node.op_type == kind} for name, kind in TYPES.items()}
    for name, test in lowering.float32.items():
        found[name] = {node.name for node in graph.node if test(node)}
    return found | {"border of the graph": _border(graph)}


def to_fp16(
    model: onnx.ModelProto, lowering: Lowering = PLAIN, without: Collection[str] = ()
) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Retype a float32 graph of :mod:`echoir.export.graph`.

    Inputs and outputs keep their types.

    Args:
        model: float32, with the type of every value inferred; it is left as it is.
        lowering: of the network.
        without: names of :func:`choices` to give up, for the ablation.

    Returns:
        The float16 model, and the names of the nodes in it that compute in float32.

    Raises:
        BackendError: a weight does not fit float16.
    """
    graph = model.graph
    exact = set().union(*(nodes for name, nodes in choices(graph, lowering).items() if name not in without))
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
        operator = operator_of(node)
        stays = _float32_inputs(node) if operator is None else operator.float32_inputs
        marker = node.op_type in ("QuantizeLinear", "DequantizeLinear")  # named after what they quantize
        kind = FLOAT if node.name in exact and not marker else HALF
        if kind == FLOAT:
            kept.append(node.name)
        if node.op_type == "Cast" and node.attribute[0].i == FLOAT:
            node.attribute[0].i = kind
        elif not any(name in floats for name in node.input):
            kind = FLOAT  # what it makes has its type from an attribute
        for index, name in enumerate(node.input):
            node.input[index] = typed(name, FLOAT if index in stays else kind)
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


def _border(graph: onnx.GraphProto) -> set[str]:
    """Light nodes, by name, that stand between the picture and the network on either side of it."""
    producers = {output: node for node in graph.node for output in node.output}
    consumers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            consumers.setdefault(name, []).append(node)
    found: set[str] = set()

    def walk(names: list[str], ahead: bool) -> None:
        while names:
            name = names.pop()
            nodes = consumers.get(name, []) if ahead else [producers[name]] if name in producers else []
            for node in nodes:
                if node.op_type in _LIGHT and node.name not in found:
                    found.add(node.name)
                    names.extend(node.output if ahead else node.input)

    walk([value.name for value in graph.output], ahead=False)
    walk([value.name for value in graph.input], ahead=True)
    return found


def _float32_inputs(node: onnx.NodeProto) -> set[int]:
    """Inputs, by position, that ONNX has in float32 alone, such as the scales of a Resize."""
    schema = _schema(node.op_type, node.domain)
    if schema is None:
        return set()
    return {index for index, given in enumerate(schema.inputs) if given.types == {"tensor(float)"}}


@cache
def _schema(op_type: str, domain: str) -> onnx.defs.OpSchema | None:
    return onnx.defs.get_schema(op_type, domain) if onnx.defs.has(op_type, domain) else None


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
