"""What keeps float32 where OpenVINO computes in bfloat16.

bfloat16 has eight bits. It rounds pixels above half of white by up to half a code, and terms of an exponent of 8 by
up to 1/64, of which the exponential makes 1.6 %; a squared distance is a small sum of large terms, a product of two
activations among them. Each costs more dB than anything else (``docs/speed.md``), and keeping them in float32 takes
next to no time. OpenVINO itself keeps what follows the last product.

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
TERMS = {
    "Add",
    "Convert",
    "ReduceSum",
    "Clamp",
    "Divide",
    "Maximum",
    "Minimum",
    "Multiply",
    "Negative",
    "Power",
    "Subtract",
}
MARK = {"name": "DisablePrecisionConversion", "version": "0", "value": "dynamic:f16,bf16"}


def keeping_float32(openvino: Any, core: Any, model: Any, names: Collection[str] | None = None) -> Any:
    """The same model, with the nodes marked that keep float32.

    Args:
        openvino: the library.
        core: that reads the model anew.
        model: an ``openvino.Model`` in float32.
        names: of the nodes; None for those of :func:`kept`.
    """
    if names is None:
        factors_first(openvino, model)
        names = kept(model)
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
    """Exponentials and the terms that they are made of, products of two activations among them."""
    found: set[str] = set()
    waiting = [node for node in model.get_ops() if node.get_type_name() in EXPONENTIALS]
    while waiting:
        node = waiting.pop()
        if node.get_friendly_name() not in found:
            found.add(node.get_friendly_name())
            waiting += [source for source in _sources(node) if source.get_type_name() in TERMS or _is_product(source)]
    return found


def factors_first(openvino: Any, model: Any) -> None:
    """Move constant factors of an exponent's products before them: ``c * (a @ b)`` to ``(c * a) @ b``.

    OpenVINO does so by itself, and the product that it makes has no mark. (Of all that costs ``denoise`` its dB in
    bfloat16, this is nine tenths: its guides' squared distances.)
    """
    within = exponents(model)
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Multiply" or node.get_friendly_name() not in within:
            continue
        product, factor = _sources(node)
        if not _is_product(product) or factor.get_type_name() != "Constant" or factor.get_data().size != 1:
            continue
        a, b = product.input_value(0), product.input_value(1)
        number = openvino.op.Constant(factor.get_data().reshape(()))
        scaled = openvino.opset13.multiply(a, number, name=f"{node.get_friendly_name()}/factor")
        sides = product.get_attributes()
        made = openvino.opset13.matmul(scaled, b, sides["transpose_a"], sides["transpose_b"])
        made.set_friendly_name(f"{node.get_friendly_name()}/product")
        for use in node.output(0).get_target_inputs():
            use.replace_source_output(made.output(0))


def _is_product(node: Any) -> bool:
    """Whether it multiplies two matrices that depend on the picture."""
    return node.get_type_name() == "MatMul" and all(source.get_type_name() != "Constant" for source in _sources(node))


def _sources(node: Any) -> list[Any]:
    return [value.get_source_output().get_node() for value in node.inputs()]
