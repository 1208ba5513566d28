"""The INT8 graph: exact before it rounds, Q/DQ as TensorRT wants it, EchoUpsample left alone."""

from __future__ import annotations

from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from builders import make_source
from onnx import TensorProto, numpy_helper
from torch.utils.flop_counter import FlopCounterMode

from echoir.calibration.calibrate import Calibrated, calibrate
from echoir.calibration.equalize import PLACES, equalize, spots
from echoir.calibration.graph import Graph
from echoir.calibration.quantizer import GROUP, quantize, regroup
from echoir.calibration.ranges import observe
from echoir.calibration.sampler import Tile, Tiles
from echoir.checkpoint import load_checkpoint
from echoir.export.echo.lowering import deployed
from echoir.export.lowering import lowering_of
from echoir.export.precision import to_fp16
from echoir.networks.echoir import EchoIR

SIDE = 32
ECHO = lowering_of("EchoIR")


@pytest.fixture(scope="module")
def network() -> EchoIR:
    return load_checkpoint("denoise").network


@pytest.fixture(scope="module")
def model(network: EchoIR) -> onnx.ModelProto:
    return make_source(network).graph(tile=(SIDE, SIDE), batch=1, io="float")


@pytest.fixture(scope="module")
def tiles() -> Tiles:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:SIDE, :SIDE] / 8
    shapes = 0.5 + 0.3 * np.stack([np.sin(x), np.cos(y), np.sin(x + y)])[None]
    several = tuple(
        Tile(str(i), (shapes + 0.05 * rng.standard_normal(shapes.shape)).astype(np.float32), shapes.astype(np.float32))
        for i in range(3)
    )
    return Tiles(several, several, "0" * 64, 3, "denoise")


@pytest.fixture(scope="module")
def calibrated(model: onnx.ModelProto, tiles: Tiles) -> Calibrated:
    return calibrate(model, tiles, structure=ECHO.int8, threads=1)


@pytest.fixture(scope="module")
def quantized(calibrated: Calibrated) -> onnx.ModelProto:
    return calibrated.quantized(calibrated.graph.layers)


def run(model: onnx.ModelProto, image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    output: np.ndarray[Any, Any] = session.run(None, {"input": image})[0]
    return output


def psnr(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    return float(-10 * np.log10(np.mean((a.astype(np.float64) - b) ** 2)))


# The graph


def test_multiply_accumulates_are_those_that_pytorch_counts(network: EchoIR, model: onnx.ModelProto) -> None:
    with FlopCounterMode(display=False) as counter:
        deployed(network)(torch.zeros(1, 3, SIDE, SIDE))
    graph = Graph(model, ECHO.int8)
    convolutions = sum(graph._macs(node) for node in model.graph.node if node.op_type == "Conv")
    assert 2 * convolutions == counter.get_flop_counts()["Global"][torch.ops.aten.convolution]
    share = sum(layer.macs for layer in graph.layers) / graph.macs
    assert share > 0.85  # 0.93 on large tiles: what has no pixels weighs more on one of 32


def test_layers_are_everything_with_pixels_that_multiplies(model: onnx.ModelProto) -> None:
    graph = Graph(model, ECHO.int8)
    kinds = Counter(layer.kind for layer in graph.layers)
    blocks = len([node for node in model.graph.node if node.op_type == "Softmax"])
    assert kinds["depthwise"] == 5 * blocks
    assert kinds["product"] == 2 * blocks
    assert kinds["convolution"] == 2 + 3 + 2 * 2  # the ends, the downsamplings, two residual blocks
    assert not [layer for layer in graph.layers if "/mix/" in layer.name]


# Equalization


@pytest.mark.parametrize("places", [(place,) for place in PLACES] + [PLACES])
def test_equalization_is_exact(model: onnx.ModelProto, tiles: Tiles, places: Any) -> None:
    rng = np.random.default_rng(1)
    graph = Graph(model, ECHO.int8)
    peaks = {
        spot.tensor: np.exp(rng.standard_normal(graph.shapes[spot.tensor][1])).astype(np.float32)
        for spot in spots(graph)
    }
    image = tiles.calibration[0].degraded
    changed = equalize(model, peaks, places, structure=ECHO.int8)
    assert changed.SerializeToString() != model.SerializeToString()
    assert psnr(run(changed, image), run(model, image)) > 100


def test_channels_are_alike_where_weights_bear_it_freely(model: onnx.ModelProto, tiles: Tiles) -> None:
    inputs = [tile.degraded for tile in tiles.calibration]
    found = spots(Graph(model, ECHO.int8))
    assert {spot.place for spot in found} == set(PLACES)
    before = observe(model, [spot.tensor for spot in found], inputs, threads=1)
    after = observe(
        equalize(model, {name: seen.peaks for name, seen in before.items()}, structure=ECHO.int8),
        [spot.tensor for spot in found],
        inputs,
        threads=1,
    )
    for spot in found:
        alive = before[spot.tensor].peaks > 0  # hidden channels that were added to fill a vector are zero
        sizes = [seen[spot.tensor].peaks[alive] for seen in (before, after)]
        spread = [float(size.max() / size.min()) for size in sizes]
        assert spread[1] < (1.01 if spot.free else spread[0]), (spot, spread)


def test_a_dead_channel_stays_finite(model: onnx.ModelProto, tiles: Tiles) -> None:
    graph = Graph(model, ECHO.int8)
    peaks = {spot.tensor: np.zeros(graph.shapes[spot.tensor][1], np.float32) for spot in spots(graph)}
    for spot in spots(graph)[1:]:
        peaks[spot.tensor][0] = 1
    assert np.isfinite(run(equalize(model, peaks, structure=ECHO.int8), tiles.calibration[0].degraded)).all()


# Q/DQ


def test_every_scale_is_symmetric_and_weights_are_int8_per_output_channel(
    quantized: onnx.ModelProto, calibrated: Calibrated
) -> None:
    onnx.checker.check_model(quantized, full_check=True)
    weights = {tensor.name: tensor for tensor in quantized.graph.initializer}
    makers = {output: node for node in quantized.graph.node for output in node.output}
    for node in quantized.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero = numpy_helper.to_array(weights[node.input[2]])
            assert zero.dtype == np.int8
            assert not zero.any()
            assert (numpy_helper.to_array(weights[node.input[1]]) > 0).all()
    nodes = {node.name: node for node in quantized.graph.node}
    for layer in calibrated.graph.layers:
        node = nodes[layer.name]
        for name in node.input[: 2 if layer.weight else None]:
            assert makers[name].op_type == "DequantizeLinear", layer.name
        if layer.weight:
            weight = makers[node.input[1]]
            assert weights[weight.input[0]].data_type == TensorProto.INT8
            assert next(entry.i for entry in weight.attribute if entry.name == "axis") == 0
            assert len(numpy_helper.to_array(weights[weight.input[1]])) == weights[weight.input[0]].dims[0]
            if len(node.input) == 3:
                assert weights[node.input[2]].data_type == TensorProto.FLOAT


def test_weights_are_within_half_a_step(calibrated: Calibrated) -> None:
    layer = next(layer for layer in calibrated.graph.layers if layer.kind == "pointwise")
    assert layer.weight is not None
    weights = {t.name: numpy_helper.to_array(t) for t in calibrated.quantized([layer]).graph.initializer}
    original = numpy_helper.to_array(calibrated.graph.weights[layer.weight])
    scale = weights[f"{layer.weight}_scale"].reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(scale.ravel(), np.abs(original).max(axis=(1, 2, 3)) / 127, rtol=1e-6)
    assert (np.abs(weights[f"{layer.weight}_quantized"] * scale - original) <= 0.5001 * scale).all()


def test_other_nodes_read_the_tensor_itself(quantized: onnx.ModelProto, calibrated: Calibrated) -> None:
    copies = {node.output[0] for node in quantized.graph.node if node.op_type == "DequantizeLinear"}
    names = {layer.name for layer in calibrated.graph.layers}
    assert not [node.name for node in quantized.graph.node if node.name not in names and copies & set(node.input)]


def test_layers_that_read_one_tensor_share_its_int8_copy(quantized: onnx.ModelProto) -> None:
    read = [node.input[0] for node in quantized.graph.node if node.op_type == "QuantizeLinear"]
    assert len(read) == len(set(read))


def test_echo_upsample_is_untouched(quantized: onnx.ModelProto, model: onnx.ModelProto) -> None:
    assert [function.SerializeToString() for function in quantized.functions] == [
        function.SerializeToString() for function in model.functions
    ]
    before, after = (
        [node.SerializeToString() for node in one.graph.node if node.op_type == "EchoUpsample"]
        for one in (model, quantized)
    )
    assert len(before) == 3
    assert before == after


def test_no_layers_is_the_same_model(model: onnx.ModelProto) -> None:
    assert quantize(model, [], {}).SerializeToString() == model.SerializeToString()


def test_int8_is_close_to_float(quantized: onnx.ModelProto, model: onnx.ModelProto, tiles: Tiles) -> None:
    image = tiles.calibration[0].degraded
    expected = run(model, image)
    assert psnr(image, expected) < 30  # the network does something
    assert psnr(run(quantized, image), expected) > 40
    assert psnr(run(to_fp16(quantized, ECHO)[0], image), run(quantized, image)) > 45


def test_ranges_serve_another_tile_and_format(network: EchoIR, calibrated: Calibrated) -> None:
    layers = calibrated.graph.layers
    made = calibrated.quantized(layers, make_source(network).graph(tile=(2 * SIDE, SIDE), batch=None, io="uint8"))
    onnx.checker.check_model(made, full_check=True)
    count = [
        len([node for node in one.graph.node if node.op_type == "QuantizeLinear"])
        for one in (made, calibrated.quantized(layers))
    ]
    assert count[0] == count[1]


def test_depthwise_groups_of_four_compute_the_same(model: onnx.ModelProto, tiles: Tiles) -> None:
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    regroup(changed, [layer for layer in Graph(model, ECHO.int8).layers if layer.kind == "depthwise"])
    shapes = [list(tensor.dims) for tensor in changed.graph.initializer if tensor.name.endswith("query.1.weight")]
    assert shapes
    assert all(shape[1] == GROUP for shape in shapes)
    image = tiles.calibration[0].degraded
    np.testing.assert_allclose(run(changed, image), run(model, image), atol=1e-5)


@pytest.mark.tensorrt
@pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="needs pip install '.[rtx]'")
def test_tensorrt_rtx_takes_it_and_runs_int8(quantized: onnx.ModelProto, tmp_path: Path) -> None:
    from echoir.export.engine import build_engine

    source = tmp_path / "int8.onnx"
    onnx.save(to_fp16(quantized, ECHO)[0], source)
    info = build_engine(source, tmp_path / "e", target="tensorrt-rtx", compute_capabilities=["8.9"])
    layers = Graph(quantized, ECHO.int8).layers
    convolutions = len([layer for layer in layers if layer.kind != "product"])
    assert info.details["precisions"]["convolution"]["int8"] >= convolutions
    assert info.details["precisions"]["matrix product"]["int8"] == len(layers) - convolutions


# Linear layers: constant weights on either side of a product, turned or not.


@pytest.fixture(scope="module")
def linear() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    weights = {"right": (8, 6), "turned": (10, 6), "left": (5, 9), "bias": (10,)}
    model = onnx.parser.parse_model("""<ir_version: 9, opset_import: ["": 20]>
        linear (float[9, 8] x) => (float[5, 5] y) {
            a = MatMul (x, right)
            b = Gemm <transB = 1> (a, turned, bias)
            c = MatMul (left, b)
            d = Transpose <perm = [1, 0]> (c)
            y = MatMul (c, d)
        }""")
    for node, name in zip(model.graph.node, "abcdy", strict=True):
        node.name = name
    for name, shape in weights.items():
        values = rng.standard_normal(shape, dtype=np.float32) / 3
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    return onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)


def test_linear_layers_have_weights_per_output_channel(linear: onnx.ModelProto) -> None:
    a, b, c, y = Graph(linear).layers
    assert (a.kind, b.kind, c.kind, y.kind) == ("linear", "linear", "linear", "product")
    assert (a.inputs, b.inputs, c.inputs, y.inputs) == (("x",), ("a",), ("b",), ("c", "d"))
    assert [layer.macs for layer in (a, b, c, y)] == [9 * 8 * 6, 9 * 6 * 10, 5 * 9 * 10, 5 * 10 * 5]
    assert Graph(linear).macs == sum(layer.macs for layer in (a, b, c, y))
    image = np.random.default_rng(1).standard_normal((9, 8), dtype=np.float32)
    seen = observe(linear, ["x", "a", "b", "c", "d"], [image], threads=1)
    peaks = {name: float(found.peaks.max()) for name, found in seen.items()}
    made = quantize(linear, [a, b, c, y], {one.name: tuple(peaks[name] for name in one.inputs) for one in (a, b, c, y)})
    onnx.checker.check_model(made, full_check=True)
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in made.graph.initializer}
    makers = {output: node for node in made.graph.node for output in node.output}
    for layer, count in ((a, 6), (b, 10), (c, 5)):
        assert layer.weight is not None
        scales = weights[f"{layer.weight}_scale"]
        assert len(scales) == count
        original = numpy_helper.to_array(next(t for t in linear.graph.initializer if t.name == layer.weight))
        np.testing.assert_allclose(scales, np.abs(original).max(axis=1 - layer.axis) / 127, rtol=1e-6)
    nodes = {node.name: node for node in made.graph.node}
    assert all(makers[name].op_type == "DequantizeLinear" for one in "abcy" for name in nodes[one].input[:2])
    assert nodes["b"].input[2] == "bias"
    expected = ort.InferenceSession(linear.SerializeToString()).run(None, {"x": image})[0]
    given = ort.InferenceSession(made.SerializeToString()).run(None, {"x": image})[0]
    assert 0 < np.abs(given - expected).max() < 0.03 * np.abs(expected).max()


def test_nothing_to_equalize_is_nothing_to_observe(linear: onnx.ModelProto) -> None:
    assert spots(Graph(linear)) == []
    assert observe(linear, [], [np.zeros((9, 8), np.float32)], threads=1) == {}


@pytest.mark.tensorrt
@pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="needs pip install '.[rtx]'")
def test_tensorrt_rtx_runs_linear_layers_in_int8(linear: onnx.ModelProto, tmp_path: Path) -> None:
    from echoir.export.engine import build_engine

    source = tmp_path / "linear.onnx"
    layers = Graph(linear).layers
    onnx.save(to_fp16(quantize(linear, layers, {one.name: (4.0,) * len(one.inputs) for one in layers}))[0], source)
    info = build_engine(source, tmp_path / "e", target="tensorrt-rtx", compute_capabilities=["8.9"])
    assert info.details["precisions"]["matrix product"]["int8"] == 4
