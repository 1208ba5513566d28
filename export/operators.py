"""Operators of networks that ONNX does not have: what runs them, and what they cost. A literal table.

A rewritten network holds one opaque node per use (:mod:`echoir.export.lowering`). The file carries the operator
as an ONNX function, which runs anywhere; for TensorRT there is a function that its compiler makes more of,
and a plugin that takes the place of either.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import onnx

from echoir.calibration.graph import Shapes
from echoir.export.echo import function as echo
from echoir.export.echo import registration
from echoir.export.echo.taps import tap_function

Attributes = dict[str, Any]


@dataclass(frozen=True)
class Operator:
    """One operator.

    Attributes:
        domain, name: of its nodes.
        function: (attributes of a node, version of the default operator set) -> its body for ONNX Runtime.
        compiled: the same for TensorRT's compiler.
        float32_inputs: inputs that stay float32 in a float16 graph, by position.
        macs: (node, shapes of all values) -> multiply-accumulates.
        register: (the TensorRT library, compute capability, whether the kernel shall lie in the engine) registers
            the plugin; ImportError or EchoIRError where it cannot be made.
    """

    domain: str
    name: str
    function: Callable[[Attributes, int], onnx.FunctionProto]
    compiled: Callable[[Attributes, int], onnx.FunctionProto]
    float32_inputs: Collection[int]
    macs: Callable[[onnx.NodeProto, Shapes], int]
    register: Callable[[Any, str, bool], None]


OPERATORS = (
    Operator(
        echo.DOMAIN,
        echo.NAME,
        lambda node, opset: echo.echo_function(node["radius"], echo.COMBINES[node["combine"]], opset),
        lambda node, opset: tap_function(node["radius"], echo.COMBINES[node["combine"]], opset),
        float32_inputs=(2, 3),  # the sigmas
        macs=echo.macs,
        register=registration.register,
    ),
)


def operator_of(node: onnx.NodeProto) -> Operator | None:
    """The operator that a node calls; None for ONNX's own."""
    return next((one for one in OPERATORS if (one.domain, one.name) == (node.domain, node.op_type)), None)


def operators_in(model: onnx.ModelProto) -> dict[Operator, list[Attributes]]:
    """The operators that a model calls, each with the different attributes of its nodes."""
    found: dict[Operator, list[Attributes]] = {}
    for node in model.graph.node:
        if (operator := operator_of(node)) is not None:
            kinds, attributes = found.setdefault(operator, []), attributes_of(node)
            if attributes not in kinds:
                kinds.append(attributes)
    return found


def attributes_of(node: onnx.NodeProto) -> Attributes:
    """A node's attributes as Python values."""
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
