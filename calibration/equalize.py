"""Channels brought to one size before they share one INT8 scale: exact algebra on neighbouring weights.

A quantized activation has one scale for all its channels, so a channel a tenth as large as the
largest has a tenth of the levels. Where the nodes before it can make a channel smaller by s and
those behind it larger by s, the network computes the same function and the channels can be made
alike. Convolution weights have a scale per output channel, so the factor costs nothing there; as a
factor of an *input* channel it does, unless the convolution is depthwise.

The idea of moving scale between layers is that of cross-layer equalization (Nagel et al. 2019) and
SmoothQuant (Xiao et al. 2022). Places are found by the graph's structure:

- layer normalization's scale, ahead of the 1x1 convolutions that read it;
- a 1x1 convolution ahead of a depthwise one: nothing lies between;
- queries and keys whose channels are divided by their own length later, so that any factor cancels (this also
  keeps the scales of their small weights within float16); the network says which;
- the gate of a feed-forward, ahead of its last convolution: the product is linear in it.

What a guided upsampling averages is as exact a place, and gained nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from echoir.calibration.graph import UNKNOWN, Graph, Layer, Structure, group

Place = Literal["normalization", "depthwise input", "query and key", "gated product"]
PLACES: tuple[Place, ...] = ("normalization", "depthwise input", "query and key", "gated product")
# How much of the difference between channels moves into weights that have to bear it (SmoothQuant's alpha).
BALANCE = 0.75

Array = NDArray[Any]


@dataclass(frozen=True)
class Spot:
    """An activation whose channels can be made alike.

    Attributes:
        place: what stands ahead of it.
        tensor: the activation.
        before: initializers to divide by the factors, along their first axis.
        readers: convolutions behind it, to multiply; none where the factor cancels.
        free: the readers' weights bear any factor without loss.
    """

    place: Place
    tensor: str
    before: tuple[str, ...]
    readers: tuple[Layer, ...]
    free: bool


def equalize(
    model: onnx.ModelProto,
    peaks: Mapping[str, Array],
    places: Collection[Place] = PLACES,
    balance: float = BALANCE,
    structure: Structure = UNKNOWN,
) -> onnx.ModelProto:
    """A copy of the model with its channels equalized; the same function up to rounding.

    Args:
        model: float32 in deployed form.
        peaks: the largest magnitude of each channel, [C], of every tensor in :func:`spots`.
        places: where to do it.
        structure: of the network.
        balance: 0 leaves the weights alike, 1 the activations, where both have to share.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = Graph(result, structure)
    for spot in spots(graph):
        if spot.place not in places:
            continue
        factors = _factors(peaks[spot.tensor], _columns(graph, spot), 1.0 if spot.free else balance)
        for name in spot.before:
            _scale(_own(graph, name, spot), 1 / factors, 0)
        for layer in spot.readers:
            assert layer.weight is not None
            _scale(graph.weights[layer.weight], factors, 0 if layer.kind == "depthwise" else 1)
    return result


def spots(graph: Graph) -> list[Spot]:
    """Everywhere a graph can be equalized."""
    return [spot for spot in _found(graph) if _exact(graph, spot)]


def _exact(graph: Graph, spot: Spot) -> bool:
    """Whether channels can be scaled there and back: of graphs that nobody here wrote, not every one can."""
    channels = graph.shapes[spot.tensor][1]
    scaled = all(name in graph.weights and graph.shapes[name][0] == channels for name in spot.before)
    return scaled and all(
        layer.weight is not None
        and len(graph.consumers[layer.weight]) == 1  # a weight of two layers is scaled for one and spoils the other
        and graph.shapes[layer.weight][0 if layer.kind == "depthwise" else 1] == channels
        for layer in spot.readers
    )


def _found(graph: Graph) -> list[Spot]:
    by_name = {layer.name: layer for layer in graph.layers}
    found: list[Spot] = []
    for node in graph.model.graph.node:
        if node.op_type == "LayerNormalization":
            behind = graph.consumers[node.output[0]]
            if len(behind) != 1 or behind[0].op_type != "Transpose":
                continue
            (transpose,) = behind
            if list(transpose.attribute[0].ints)[:2] != [0, 3]:  # the channels, which came last
                continue
            readers = [by_name.get(one.name) for one in graph.consumers[transpose.output[0]]]
            if readers and all(reader is not None and reader.kind == "pointwise" for reader in readers):
                layers = tuple(reader for reader in readers if reader is not None)
                found.append(Spot("normalization", transpose.output[0], tuple(node.input[1:]), layers, False))
        elif node.op_type == "Conv" and node.name in by_name:
            spot = _behind_convolution(graph, by_name, node)
            found += [spot] if spot else []
    return found


def _behind_convolution(graph: Graph, by_name: Mapping[str, Layer], node: onnx.NodeProto) -> Spot | None:
    output, before = node.output[0], tuple(node.input[1:])
    behind = graph.consumers[output]
    if len(behind) != 1:
        return None
    reader = by_name.get(behind[0].name)
    if reader is not None and reader.kind == "depthwise":
        return Spot("depthwise input", output, before, (reader,), True)
    if graph.structure.cancels(node.name):
        return Spot("query and key", output, before, (), True)
    if behind[0].op_type != "Mul" or group(node) == 1:
        return None
    last = graph.consumers[behind[0].output[0]]
    layer = by_name.get(last[0].name) if len(last) == 1 else None
    if layer is None or layer.kind != "pointwise":
        return None
    return Spot("gated product", behind[0].output[0], before, (layer,), False)


def _columns(graph: Graph, spot: Spot) -> Array:
    """The largest weight on each input channel among the readers, [C]."""
    arrays = [numpy_helper.to_array(graph.weights[layer.weight]) for layer in spot.readers if layer.weight]
    if spot.free:
        return np.ones(1, np.float32)
    return np.max([np.abs(array).max(axis=(0, 2, 3)) for array in arrays], axis=0)


def _factors(peaks: Array, columns: Array, balance: float) -> Array:
    """What to divide each channel by; powers of two would round nothing, but these are finer."""
    activation, weight = (np.maximum(values, 1e-6 * max(float(values.max()), 1e-12)) for values in (peaks, columns))
    factors = activation**balance / weight ** (1 - balance)
    alive = peaks > 0
    if not alive.any():
        return np.ones_like(peaks)
    mean = np.exp(np.log(factors[alive]).mean())  # sizes stay what they were on the whole
    return np.where(alive, factors / mean, 1).astype(np.float32)


def _own(graph: Graph, name: str, spot: Spot) -> onnx.TensorProto:
    """The initializer, copied first if others use it too (normalizations share their scale of ones)."""
    users = graph.consumers[name]
    tensor = graph.weights[name]
    if len(users) == 1:
        return tensor
    copy = graph.model.graph.initializer.add()
    copy.CopyFrom(tensor)
    copy.name = f"{spot.tensor}/scale" if f"{spot.tensor}/scale" not in graph.consumers else f"{spot.tensor}/offset"
    node = _producer(graph, spot, users)
    node.input[:] = [copy.name if given == name else given for given in node.input]
    users.remove(node)
    graph.consumers[copy.name].append(node)
    return copy


def _producer(graph: Graph, spot: Spot, users: list[onnx.NodeProto]) -> onnx.NodeProto:
    node = graph.producers[spot.tensor]
    while node not in users:
        node = graph.producers[node.input[0]]
    return node


def _scale(tensor: onnx.TensorProto, factors: Array, axis: int) -> None:
    value = numpy_helper.to_array(tensor)
    shape = [1] * value.ndim
    shape[axis] = -1
    tensor.CopyFrom(numpy_helper.from_array(value * factors.reshape(shape).astype(value.dtype), tensor.name))
