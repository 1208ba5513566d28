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
# Why elementwise nodes around a norm stay float32: what they pass on, and where it ends.
_ELEMENTWISE = {"Abs", "Add", "Clip", "Div", "Expand", "Identity", "Max", "Min", "Mul", "Neg", "Pow", "Sub"}
_SHAPING = {"Expand", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
_REDUCING = {"ReduceL1", "ReduceL2", "ReduceMean", "ReduceSum", "ReduceSumSquare", "GlobalAveragePool"}
_ROOTS = {"Sqrt", "Reciprocal"}
# From a root back: an epsilon and a count; a square; what shapes the mean of a difference; nothing.
_STAGES = ({"Add", "Clip", "Div", "Max", "Mul", *_SHAPING}, {"Abs", "Mul", "Pow", *_SHAPING}, _SHAPING, set[str]())
# Of a pixel each, between the picture and the network: conversions, and the sum with the picture.
_LIGHT = {"Add", "Cast", "Clip", "Div", "Identity", "Mul", "Round", "Sub", "Transpose"}


def choices(graph: onnx.GraphProto, lowering: Lowering = PLAIN) -> dict[str, set[str]]:
    """The nodes that keep float32, by name, for every reason there is to keep them."""
    found = {name: {node.name for node in graph.node if node.op_type == kind} for name, kind in TYPES.items()}
    for name, test in lowering.float32.items():
        found[name] = {node.name for node in graph.node if test(node)}
    if lowering is PLAIN:  # an own lowering says itself what was found to matter, by measurement
        links = _Links(graph)
        found |= {"norm from primitives": links.norms(), "constants that vanish": links.vanishing()}
    return found | {"border of the graph": _border(graph)}


def to_fp16(
    model: onnx.ModelProto,
    lowering: Lowering = PLAIN,
    without: Collection[str] = (),
    overflowing: Collection[str] = (),
) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Retype a float32 graph of :mod:`echoir.export.graph`.

    Inputs and outputs keep their types.

    Args:
        model: float32, with the type of every value inferred; it is left as it is.
        lowering: of the network.
        without: names of :func:`choices` to give up, for the ablation.
        overflowing: nodes that leave float16's range on real tiles (:mod:`echoir.export.overflow`).

    Returns:
        The float16 model, and the names of the nodes in it that compute in float32.

    Raises:
        BackendError: a weight does not fit float16.
    """
    graph = model.graph
    exact = set(overflowing).union(*(nodes for name, nodes in choices(graph, lowering).items() if name not in without))
    beyond = set(overflowing)
    takers: dict[str, set[str]] = {}
    for node in graph.node:
        for name in node.input:
            takers.setdefault(name, set()).add(node.name)
    # Weights of what leaves the range are small where its values are large: their scale would vanish in half.
    beyond |= {
        node.name
        for node in graph.node
        if node.op_type == "DequantizeLinear" and takers.get(node.output[0], {""}) <= set(overflowing)
    }
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
        kind = FLOAT if node.name in (beyond if marker else exact) else HALF
        if kind == FLOAT:
            kept.append(node.name)
        if (cast := _target(node)) is not None and cast.i == FLOAT:  # the graph's own: it follows its neighbours
            cast.i = kind
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


class _Links:
    """Who makes and who takes every value of a graph."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self._makers = {output: node for node in graph.node for output in node.output}
        self._takers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self._takers.setdefault(name, []).append(node)
        self._constants = {tensor.name: tensor for tensor in graph.initializer}

    def norms(self) -> set[str]:
        """Nodes of norms that are written out: differences from a mean, squares, their mean, root and quotient.

        From every root back to the mean under it, the square and the difference under that, and the mean that it is
        a difference from; and forward to the division.
        """
        found: set[str] = set()
        for root in self._graph.node:
            power = root.op_type == "Pow" and abs(self._scalar(root, 1) or 1.0) == 0.5
            if (root.op_type == "Sqrt" or power) and (behind := self._behind(root)):
                found |= {root.name} | behind | self._ahead(root)
        return found

    def vanishing(self) -> set[str]:
        """Elementwise nodes with a constant that float16 cannot hold, such as the 1e-12 under a division, and what
        they guard: through shapes and roots to the division itself."""
        found: set[str] = set()
        for node in self._graph.node:
            if node.op_type in _ELEMENTWISE and any(self._lost(name) for name in node.input):
                found |= {node.name} | self._ahead(node)
        return found

    def _lost(self, name: str) -> bool:
        tensor = self._constants.get(name)
        if tensor is None or tensor.data_type != FLOAT or int(np.prod(tensor.dims)) != 1:
            return False
        value = float(numpy_helper.to_array(tensor).reshape(-1)[0])
        limit = float(np.finfo(np.float16).max)
        # Bounds that never bind (the largest float32) say nothing.
        return (value != 0 and np.float16(value) == 0) or limit < abs(value) < 1e30

    def _scalar(self, node: onnx.NodeProto, index: int) -> float | None:
        tensor = self._constants.get(node.input[index]) if index < len(node.input) else None
        if tensor is None or int(np.prod(tensor.dims)) != 1:
            return None
        return float(numpy_helper.to_array(tensor).reshape(-1)[0])

    def _behind(self, root: onnx.NodeProto) -> set[str]:
        """What leads to a root, if it is that of a mean."""
        found: set[str] = set()
        waiting, averaged = [(root, 0)], False
        while waiting:
            node, stage = waiting.pop()
            for maker in (self._makers[name] for name in node.input if name in self._makers):
                kind = maker.op_type
                if kind in _REDUCING and stage != 1:  # of squares, or of values
                    following = 1 if stage == 0 else 3
                    averaged = True
                elif kind == "Sub" and stage == 1:
                    following = 2
                elif kind in _STAGES[stage]:
                    following = stage
                else:
                    continue
                if maker.name not in found:
                    found.add(maker.name)
                    waiting.append((maker, following))
        return found if averaged else set()

    def _ahead(self, node: onnx.NodeProto) -> set[str]:
        """From a guarded value through shapes and roots to the divisions that take it, inclusive."""
        found: set[str] = set()
        waiting = [node]
        while waiting:
            for output in waiting.pop().output:
                for taker in self._takers.get(output, []):
                    if taker.op_type == "Div":
                        found.add(taker.name)
                    elif taker.op_type in _SHAPING | _ROOTS and taker.name not in found:
                        found.add(taker.name)
                        waiting.append(taker)
        return found


def _target(node: onnx.NodeProto) -> onnx.AttributeProto | None:
    """What a cast casts to."""
    if node.op_type != "Cast":
        return None
    return next((attribute for attribute in node.attribute if attribute.name == "to"), None)


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
