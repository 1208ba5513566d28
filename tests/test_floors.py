"""Floors under logits are left out where they cost and change nothing, and nothing else is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from echoir.runtime.floors import without_floors

openvino = pytest.importorskip("openvino", reason="pip install 'echoir[openvino]'")

Array = np.ndarray[Any, np.dtype[Any]]


def model(step: float, *, floor_first: bool = False, of: str = "x") -> bytes:
    """``softmax(max(x, reduce_max(of) - step))`` of [4, 32] floats ``x`` and ``y``."""
    between = ["floor", "x"] if floor_first else ["x", "floor"]
    nodes = [
        helper.make_node("ReduceMax", [of], ["largest"], axes=[-1], keepdims=1),
        helper.make_node("Sub", ["largest", "step"], ["floor"]),
        helper.make_node("Max", between, ["lifted"]),
        helper.make_node("Softmax", ["lifted"], ["z"], axis=-1),
        helper.make_node("Add", ["z", "y"], ["out"]),
    ]
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, 32]) for name in "xy"]
    output = [helper.make_tensor_value_info("out", TensorProto.FLOAT, [4, 32])]
    constant = numpy_helper.from_array(np.array(step, np.float32), "step")
    graph = helper.make_graph(nodes, "floored", inputs, output, [constant])
    return bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    )


def run(graph: Any, *inputs: Array) -> Array:
    made: Array = openvino.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(list(inputs))[0]
    return made


@pytest.mark.parametrize("floor_first", [False, True])
def test_a_floor_that_lifts_nothing_worth_counting_is_taken_out(floor_first: bool, rng: np.random.Generator) -> None:
    x: Array = rng.normal(0, 5, (4, 32)).astype(np.float32)
    x[:, ::3] -= 100  # masked
    graph = openvino.Core().read_model(model(64.0, floor_first=floor_first), b"")
    assert without_floors(graph) == 1
    assert not {node.get_type_name() for node in graph.get_ops()} & {"Maximum", "ReduceMax", "Subtract"}
    exact = np.exp(x.astype(np.float64) - x.max(-1, keepdims=True))
    np.testing.assert_allclose(run(graph, x, np.zeros_like(x)), exact / exact.sum(-1, keepdims=True), rtol=0, atol=1e-6)


@pytest.mark.parametrize("changes", [{"step": 8.0}, {"step": 64.0, "of": "y"}], ids=["near", "of another tensor"])
def test_a_floor_that_means_something_stays(changes: dict[str, Any], rng: np.random.Generator) -> None:
    x, y = rng.normal(0, 20, (2, 4, 32)).astype(np.float32)
    graph = openvino.Core().read_model(model(**changes), b"")
    assert without_floors(graph) == 0
    floor = (y if "of" in changes else x).max(-1, keepdims=True) - changes["step"]
    lifted = np.exp(np.maximum(x, floor).astype(np.float64))
    np.testing.assert_allclose(run(graph, x, y), lifted / lifted.sum(-1, keepdims=True) + y, rtol=1e-5, atol=1e-5)


def test_every_floor_of_an_exported_grl_is_found() -> None:
    import torch

    from echoir.export.grl import FLOOR
    from echoir.export.sources import TorchSource
    from echoir.networks.grl import GRL
    from echoir.runtime.floors import LEAST

    torch.manual_seed(0)
    switches: dict[str, Any] = {"width": 8, "depths": (4,), "window": 8, "stripe": (16, 16), "heads": 1}
    network = GRL.from_preset("t", task="denoise", **switches).eval()
    exported = TorchSource(network, network.describe("denoise", "t")).graph(tile=(32, 32), batch=1, io="float")
    floors = sum(node.op_type == "Max" for node in exported.graph.node)
    graph = openvino.Core().read_model(exported.SerializeToString(), b"")
    assert without_floors(graph) == floors > 0
    assert FLOOR >= LEAST
