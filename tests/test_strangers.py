"""FP16 and INT8 of networks that nobody here wrote: what leaves float16's range, layers of all kinds, odd tiles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from PIL import Image
from running import Result, echoir
from test_foreign import onnx_file
from torch import Tensor, nn

from echoir.calibration.calibrate import Calibrated, calibrate
from echoir.calibration.equalize import equalize, spots
from echoir.calibration.graph import Graph
from echoir.calibration.ranges import open_model
from echoir.calibration.sampler import Tile, Tiles
from echoir.calibration.sensitivity import groups
from echoir.export.overflow import overflowing
from echoir.export.precision import to_fp16
from echoir.export.quantized import calibration_tile
from echoir.export.sources import TorchSource
from echoir.runtime.descriptor import Descriptor

SIDE = 32
rng = np.random.default_rng(0)
TILES = [rng.random((1, 3, SIDE, SIDE), np.float32) for _ in range(3)]


class Loud(nn.Module):
    """A residual stream that passes float16's range on the way, as SwinIR's does."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.last = (nn.Conv2d(*sides, 3, padding=1) for sides in ((3, 8), (8, 8), (8, 3)))

    def forward(self, x: Tensor) -> Tensor:
        stream = 1e5 * self.first(x)
        stream = stream + torch.relu(self.second(stream))
        made: Tensor = x + 1e-7 * self.last(stream)
        return made


class Several(nn.Module):
    """Layers that EchoIR has none of: linear ones, a one-dimensional convolution, a depthwise one that makes more
    channels than it takes, a convolution that two places share, and one enlarging."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Conv2d(3, 8, 3, padding=1)
        self.norm, self.grow, self.shrink = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)
        self.gate = nn.Conv1d(1, 1, 3, padding=1)
        self.twice = nn.Conv2d(8, 16, 3, padding=1, groups=8)
        self.shared, self.depth = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.larger, self.out = nn.ConvTranspose2d(16, 8, 2, stride=2), nn.Conv2d(8, 3, 3, padding=1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        y = self.embed(x)
        tokens = y.flatten(2).transpose(1, 2)
        tokens = tokens + self.shrink(torch.relu(self.grow(self.norm(tokens))))
        y = tokens.transpose(1, 2).reshape(n, 8, h, w)
        y = y * torch.sigmoid(self.gate(y.mean(dim=(2, 3))[:, None])).reshape(n, 8, 1, 1)
        y = self.twice(y)
        y = self.depth(self.shared(y)) + self.shared(torch.relu(y))
        made: Tensor = x + 0.1 * self.out(torch.relu(self.larger(y)))
        return made


def graph_of(module: nn.Module) -> onnx.ModelProto:
    source = TorchSource(module, Descriptor("Stranger", "restore", 0, tile=(SIDE, SIDE)))
    return source.graph(tile=(SIDE, SIDE), batch=1, io="float")


def run(model: onnx.ModelProto, tile: Any) -> Any:
    session = open_model(model, 1)
    return session.run(None, {session.get_inputs()[0].name: tile})[0]


def rounded(model: onnx.ModelProto, tile: Any) -> Any:
    """In NumPy, which really rounds to float16 between nodes; ONNX Runtime computes on in float32."""
    with np.errstate(all="ignore"):
        return ReferenceEvaluator(model).run(None, {model.graph.input[0].name: tile})[0]


def psnr(a: Any, b: Any) -> float:
    return float(-10 * np.log10(np.square(a - b, dtype=np.float64).mean()))


@pytest.fixture(scope="module")
def loud() -> onnx.ModelProto:
    return graph_of(Loud())


def test_nodes_that_leave_float16_on_real_tiles_are_found_and_keep_float32(loud: onnx.ModelProto) -> None:
    found = overflowing(loud, TILES, threads=1)
    kinds = {node.name: node.op_type for node in loud.graph.node}
    assert {kinds[name] for name in found} >= {"Conv", "Add"}
    assert max(found.values()) > 65504
    spoilt, _ = to_fp16(loud)
    assert not np.isfinite(rounded(spoilt, TILES[0])).all()  # what the search is there for
    kept, float32 = to_fp16(loud, overflowing=found)
    assert set(found) <= set(float32)
    assert psnr(rounded(kept, TILES[0]), run(loud, TILES[0])) > 60


def test_nothing_is_found_in_a_quiet_network() -> None:
    assert overflowing(graph_of(Several()), TILES, threads=1) == {}
    assert overflowing(graph_of(Several()), [], threads=1) == {}


def calibrated(model: onnx.ModelProto) -> Calibrated:
    tiles = tuple(Tile(str(index), tile, tile) for index, tile in enumerate(TILES))
    return calibrate(model, Tiles(tiles, tiles, "", 3, "none"), threads=1)


def test_an_int8_graph_above_float16_keeps_what_leaves_its_range(loud: onnx.ModelProto) -> None:
    known = calibrated(loud)
    (first, *_) = known.graph.layers
    layers = [layer for layer in known.graph.layers if layer is not first]  # whose input leaves the range: Q/DQ too
    quantized = known.quantized(layers, loud)
    spoilt, _ = to_fp16(quantized)
    assert not np.isfinite(rounded(spoilt, TILES[0])).all()
    model, _ = to_fp16(quantized, overflowing=overflowing(quantized, TILES, threads=1))
    assert psnr(rounded(model, TILES[0]), run(quantized, TILES[0])) > 55
    onnx.checker.check_model(model, full_check=True)


def test_layers_of_all_kinds_go_to_int8_or_are_left_alone() -> None:
    model = graph_of(Several())
    known = calibrated(model)
    kinds = {layer.name: layer.kind for layer in known.graph.layers}
    assert kinds == {
        "embed/Conv": "convolution",
        "Gemm_1": "linear",
        "Gemm_2": "linear",
        "twice/Conv": "convolution",
        "shared/Conv": "pointwise",
        "depth/Conv": "depthwise",
        "shared/Conv_1": "pointwise",
        "out/Conv": "convolution",
    }
    quantized = known.quantized(known.graph.layers, model)
    assert psnr(run(quantized, TILES[0]), run(model, TILES[0])) > 35
    weights = {tensor.name: tensor for tensor in quantized.graph.initializer}
    makers = {node.output[0]: node for node in quantized.graph.node}
    (linear, *_) = [node for node in quantized.graph.node if node.op_type == "Gemm"]
    marker = makers[linear.input[1]]
    assert weights[marker.input[0]].data_type == TensorProto.INT8
    assert numpy_helper.to_array(weights[marker.input[1]]).shape == (16,)  # a scale for every output
    assert next(entry.i for entry in marker.attribute if entry.name == "axis") == 1


def test_equalizing_a_stranger_changes_nothing_but_rounding() -> None:
    model = graph_of(Several())
    known = calibrated(model)
    assert spots(known.graph)
    assert psnr(run(equalize(model, known.peaks), TILES[0]), run(model, TILES[0])) > 110


def test_groups_come_from_the_graph_where_nobody_says_what_belongs_together() -> None:
    graph = Graph(graph_of(Several()))
    found = groups(graph)
    assert sorted(layer.name for group in found for layer in group.layers) == sorted(
        layer.name for layer in graph.layers
    )
    assert all(len({layer.kind for layer in group.layers}) == 1 for group in found)


def test_calibration_tiles_are_what_the_network_takes() -> None:
    of = lambda multiple, tile: calibration_tile(Descriptor("S", "sr", 0, multiple=multiple), tile)  # noqa: E731
    assert of((8, 8), (256, 256)) == (128, 128)
    assert of((48, 48), (96, 240)) == (96, 96)
    assert of((224, 224), (224, 224)) == (224, 224)
    assert of((64, 80), (64, 80)) == (64, 80)
    sides = [calibration_tile(Descriptor("S", "sr", 0, scale=scale), (128, 128)) for scale in (1, 2, 3, 4)]
    assert sides == [(128, 128), (128, 128), (64, 64), (64, 64)]  # at most 256 pixels behind it


def scenes(folder: Path, count: int) -> Path:
    folder.mkdir()
    for seed in range(count):
        draw = np.random.default_rng(seed)
        y, x = np.mgrid[:200, :200] / 200
        waves = [np.sin(2 * np.pi * (draw.uniform(-4, 4) * x + draw.uniform(-4, 4) * y + draw.random())) for _ in "RGB"]
        pixels = 0.5 + 0.3 * np.stack(waves, axis=2) + 0.02 * draw.standard_normal((200, 200, 3))
        Image.fromarray((255 * pixels.clip(0, 1)).astype(np.uint8)).save(folder / f"{count}-{seed:02}.png")
    return folder


def test_an_onnx_of_one_size_that_is_no_square_goes_to_int8(tmp_path: Path) -> None:
    weights = onnx_file(tmp_path, batch=1, size=(64, 80))
    fixed: tuple[Any, ...] = ("--weights", weights, "--target", "onnx", "--threads", 1, "-o", tmp_path / "out")
    pictures: tuple[Any, ...] = ("--data", scenes(tmp_path / "gate", 1), "--calibration", scenes(tmp_path / "c", 10))
    made: Result = echoir("export", *fixed, *pictures, "--precision", "int8", "--max-drop", 3, "--min-psnr", 20)
    assert made.code == 0
    manifest = json.loads((tmp_path / "out" / "theirs-int8.json").read_text())
    assert (manifest["tile"]["height"], manifest["tile"]["width"]) == (64, 80)
    assert len(manifest["precision"]["int8"]) == 1
