"""What keeps float32 where OpenVINO computes in bfloat16.

bfloat16 has eight bits. It rounds pixels above half of white by up to half a code, and terms of an exponent of 8 by
up to 1/64, of which the exponential makes 1.6 %; a squared distance is a small sum of such terms. Each costs more dB
than anything else (``docs/speed.md``), and keeping them in float32 takes next to no time. OpenVINO itself keeps what
follows the last product.

Its API has no precision for a node; its format has: ``DisablePrecisionConversion``, an attribute by which OpenVINO
marks nodes that must not be rounded, and which it reads from a model's XML (found in 2026.4; a version that does not
know it passes it by, and the gate of ``--device auto`` notices).
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

PRODUCTS = {"Convolution", "GroupConvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData", "MatMul"}
EXPONENTIALS = {"Exp"}  # not Softmax: it computes in float32 by itself, and is no better for a mark
ELEMENTWISE = {"Add", "Clamp", "Divide", "Maximum", "Minimum", "Multiply", "Negative", "Power", "Subtract"}
MARK = {"name": "DisablePrecisionConversion", "version": "0", "value": "dynamic:f16,bf16"}


def keeping_float32(openvino: Any, core: Any, model: Any, names: Collection[str] | None = None) -> Any:
    """The same model, with the nodes marked that keep float32.

    Args:
        openvino: the library.
        core: that reads the model anew.
        model: an ``openvino.Model`` in float32.
        names: of the nodes; None for those of :func:`kept`.
    """
    names = kept(model) if names is None else names
    with tempfile.TemporaryDirectory() as folder:
        xml, weights = Path(folder, "model.xml"), Path(folder, "model.bin")
        openvino.serialize(model, xml, weights)
        tree = ElementTree.parse(xml)
        for layer in tree.iterfind("layers/layer"):
            if layer.get("name") in names:
                information = layer.find("rt_info")
                if information is None:
                    information = ElementTree.SubElement(layer, "rt_info")
                ElementTree.SubElement(information, "attribute", MARK)
        return core.read_model(ElementTree.tostring(tree.getroot()), openvino.Tensor(np.fromfile(weights, np.uint8)))


def kept(model: Any) -> set[str]:
    """Names of the nodes that keep float32."""
    return pictured(model) | exponents(model)


def pictured(model: Any) -> set[str]:
    """What the picture goes through, as far as the first products and with them."""
    found: set[str] = set()
    constant: set[str] = set()
    carrying: set[str] = set()  # nothing but the picture
    for node in model.get_ordered_ops():
        name, kind = node.get_friendly_name(), node.get_type_name()
        sources = {source.get_friendly_name() for source in _sources(node)} - constant
        if kind == "Parameter":
            carrying.add(name)
        elif not sources or kind == "ShapeOf":  # a shape is not the picture
            constant.add(name)
        elif sources <= carrying and kind != "Result":
            found.add(name)
            if kind not in PRODUCTS:
                carrying.add(name)
    return found


def exponents(model: Any) -> set[str]:
    """Exponentials and the elementwise nodes before them: OpenVINO fuses those, and then asks the first."""
    found: set[str] = set()
    waiting = [node for node in model.get_ops() if node.get_type_name() in EXPONENTIALS]
    while waiting:
        node = waiting.pop()
        found.add(node.get_friendly_name())
        waiting += [source for source in _sources(node) if source.get_type_name() in ELEMENTWISE]
    return found


def _sources(node: Any) -> list[Any]:
    return [value.get_source_output().get_node() for value in node.inputs()]
