"""What an engine really computes, read back from its layers.

TensorRT's engine inspector describes every layer of an engine in one line; TensorRT-RTX writes the same
lines into its log while it builds, so they can be had without a GPU. A line names the ONNX nodes that a
layer came from, and the types of its inputs. A typed graph says what those types must be.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# The types in use, by the names that ONNX gives them. TensorRT 8 to 10.x write "Format/Datatype: Row major linear
# FP16", later versions and TensorRT-RTX "Datatype: Half".
_TYPES = {
    "float32": ("Float", "FP32"),
    "float16": ("Half", "FP16"),
    "bfloat16": ("BFloat16", "BF16"),
    "int8": ("Int8", "INT8"),
    "uint8": ("UInt8", "UINT8"),
    "int32": ("Int32", "INT32"),
    "int64": ("Int64", "INT64"),
    "bool": ("Bool", "BOOL"),
}
_NAMES = {name: kind for kind, names in _TYPES.items() for name in names}
_SILENT = ("signal", "wait", "NoOp")  # order the streams, compute nothing
_CONVOLUTION = re.compile(r"correlation|conv", re.IGNORECASE)
_PRODUCT = re.compile(r"gemm|matmul|matrixmultiply", re.IGNORECASE)


@dataclass(frozen=True)
class Layer:
    """One layer of an engine.

    Attributes:
        name: as the builder made it up.
        kind: the builder's word for it, e.g. ``correlation`` or ``CaskConvolution``.
        inputs: types of the tensors that it reads, constants left out, as numpy names them.
        nodes: names of the ONNX nodes that went into it.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    nodes: tuple[str, ...]

    @property
    def role(self) -> str:
        """``convolution``, ``matrix product`` or ``other``."""
        if _CONVOLUTION.search(self.kind):
            return "convolution"
        return "matrix product" if _PRODUCT.search(self.kind) else "other"


def read_layers(lines: Iterable[str]) -> list[Layer]:
    """Layers of an engine that run a kernel.

    Args:
        lines: the inspector's one-line format, or a log that holds such lines.
    """
    layers = []
    for line in lines:
        head = re.match(r"\s*(?:Layer:\s*)?Name: (?P<name>.*?), LayerType: (?P<kind>[^,]+), Inputs: (?P<rest>.*)", line)
        if head is None or head["kind"] in _SILENT:
            continue
        # Names of tensors may hold brackets: the list ends where the next field begins.
        inputs = re.split(r"\], (?:Constants|Outputs): \[", head["rest"], maxsplit=1)[0]
        nodes = tuple(dict.fromkeys(re.findall(r"\[ONNX Layer: (.*?)\]", line)))
        layers.append(Layer(head["name"], head["kind"].strip(), tuple(_types(inputs)), nodes))
    return layers


def _types(tensors: str) -> Iterable[str]:
    for words in re.findall(r"(?:Format/)?Datatype: ([^,}\]]+)", tensors):
        found = [_NAMES[word] for word in words.split() if word in _NAMES]
        yield found[0] if found else words.strip()


def precisions(layers: Iterable[Layer]) -> dict[str, dict[str, int]]:
    """How many layers of each role read what type first: ``{"convolution": {"float16": 120}, ...}``."""
    table: dict[str, Counter[str]] = {}
    for layer in layers:
        table.setdefault(layer.role, Counter())[layer.inputs[0] if layer.inputs else "none"] += 1
    return {role: dict(counts.most_common()) for role, counts in sorted(table.items())}


def expected_types(path: str | Path) -> dict[str, str]:
    """What type each convolution and matrix product of an ONNX file reads: ``{node name: "float16"}``.

    A node that reads what a DequantizeLinear gives is meant to run in the quantized type.
    """
    import onnx

    model = onnx.load(path, load_external_data=False)
    model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    graph = model.graph
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for value in (*graph.input, *graph.output, *graph.value_info):
        kinds[value.name] = value.type.tensor_type.elem_type
    makers = {output: node for node in graph.node for output in node.output}
    expected = {}
    for node in graph.node:
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            continue
        source = node.input[0]
        maker = makers.get(source)
        if maker is not None and maker.op_type == "DequantizeLinear":
            source = maker.input[0]
        if source in kinds:
            expected[node.name] = _numpy_name(kinds[source])
    return expected


def _numpy_name(kind: int) -> str:
    import onnx

    return "bfloat16" if kind == onnx.TensorProto.BFLOAT16 else str(onnx.helper.tensor_dtype_to_np_dtype(kind))


def fallen_back(layers: Iterable[Layer], expected: dict[str, str]) -> list[str]:
    """Convolutions and matrix products that run in another type than the graph says, in words."""
    found = []
    for layer in layers:
        if layer.role == "other" or not layer.inputs:
            continue
        for node in layer.nodes:
            needed = expected.get(node)
            if needed is not None and needed not in layer.inputs:
                found.append(f"{node} reads {layer.inputs[0]} instead of {needed}")
    return found


def describe(layers: list[Layer], expected: dict[str, str]) -> dict[str, Any]:
    """What the manifest records of an engine."""
    return {"layers": len(layers), "precisions": precisions(layers), "fallen_back": fallen_back(layers, expected)}
