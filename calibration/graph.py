"""The quantizable layers of an exported graph, and what each costs in multiply-accumulates."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import onnx

Shapes = Mapping[str, tuple[int, ...]]
Kind = Literal["pointwise", "depthwise", "convolution", "linear", "product"]


@dataclass(frozen=True)
class Layer:
    """A convolution, a linear layer, or a product of two activations, that can run in INT8.

    Attributes:
        name: of its node.
        kind: ``"pointwise"`` 1x1, ``"depthwise"``, other ``"convolution"``, ``"linear"`` (a matrix times constant
            weights), or matrix ``"product"`` of two activations.
        macs: multiply-accumulates for one image.
        inputs: the activations it takes.
        weight: name of the initializer, or None for a product.
        axis: of the weight's output channels.
    """

    name: str
    kind: Kind
    macs: int
    inputs: tuple[str, ...]
    weight: str | None = None
    axis: int = 0


@dataclass(frozen=True)
class Structure:
    """What a network brings along for INT8; the default is for graphs of which nothing is known.

    Attributes:
        macs: multiply-accumulates of operators beyond ONNX's own, by type.
        exact: whether a node, by name, never goes to INT8.
        stage: the name of the group that a layer belongs to; None makes groups of neighbours.
        cancels: whether a factor on a channel of a convolution's output, by the node's name, cancels later.
    """

    macs: Mapping[str, Callable[[onnx.NodeProto, Shapes], int]] = field(default_factory=dict)
    exact: Callable[[str], bool] = lambda name: False
    stage: Callable[[Layer], str] | None = None
    cancels: Callable[[str], bool] = lambda name: False


UNKNOWN = Structure()


class Graph:
    """Look-ups in a model whose values all have inferred shapes; edits to the model are not seen.

    Args:
        model: float32, as :func:`echoir.export.graph.build_model` makes it, for one image.
        structure: of the network.
    """

    def __init__(self, model: onnx.ModelProto, structure: Structure = UNKNOWN) -> None:
        graph = model.graph
        self.model, self.structure = model, structure
        self.weights = {tensor.name: tensor for tensor in graph.initializer}
        self.shapes = {
            value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
            for value in (*graph.input, *graph.value_info, *graph.output)
        } | {name: tuple(tensor.dims) for name, tensor in self.weights.items()}
        self.producers = {output: node for node in graph.node for output in node.output}
        self.consumers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in graph.node:
            for name in dict.fromkeys(node.input):
                self.consumers[name].append(node)
        self.layers = tuple(layer for node in graph.node if (layer := self._layer(node)) is not None)
        self.macs = sum(self._macs(node) for node in graph.node)

    def _layer(self, node: onnx.NodeProto) -> Layer | None:
        if self.structure.exact(node.name) or node.op_type not in ("Conv", "Gemm", "MatMul"):
            return None
        if node.op_type != "Conv":
            return self._matrix(node)
        if node.input[1] not in self.weights or len(self.shapes[node.input[1]]) != 4:
            return None  # weights that are computed, or a convolution of another kind
        made, per_group, height, width = self.shapes[node.input[1]]
        kind: Kind = "pointwise" if height == width == 1 else "convolution"
        if per_group == 1 and 1 < group(node) == made:
            kind = "depthwise"
        return Layer(node.name, kind, self._macs(node), (node.input[0],), node.input[1])

    def _matrix(self, node: onnx.NodeProto) -> Layer | None:
        """A product of matrices; None where both are constant, or the weights are more than one matrix."""
        left, right = node.input[:2]
        activations = tuple(name for name in (left, right) if name not in self.weights)
        if len(activations) == 2:
            return Layer(node.name, "product", self._macs(node), activations)
        weight = right if right in self.weights else left
        if not activations or len(self.shapes[weight]) != 2:
            return None
        turned = attribute(node, "transB" if weight == right else "transA", 0)  # a MatMul has neither
        axis = int(weight == right) ^ turned
        return Layer(node.name, "linear", self._macs(node), activations, weight, axis)

    def _macs(self, node: onnx.NodeProto) -> int:
        if node.op_type == "Conv":
            return math.prod(self.shapes[node.output[0]]) * math.prod(self.shapes[node.input[1]][1:])
        if node.op_type in ("Gemm", "MatMul"):
            summed = -2 if attribute(node, "transA", 0) else -1
            return math.prod(self.shapes[node.output[0]]) * self.shapes[node.input[0]][summed]
        if node.op_type == "ConvTranspose":
            return math.prod(self.shapes[node.input[0]]) * math.prod(self.shapes[node.input[1]][1:])
        own = self.structure.macs.get(node.op_type)
        return 0 if own is None else own(node, self.shapes)


def group(node: onnx.NodeProto) -> int:
    """The groups of a convolution."""
    return attribute(node, "group", 1)


def attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    """A whole-number attribute."""
    return next((int(entry.i) for entry in node.attribute if entry.name == name), default)
