"""The float16 graph: what is typed how, and how far it strays from PyTorch float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from builders import make_source
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from echoir.checkpoint import load_checkpoint
from echoir.export.lowering import lowering_of
from echoir.export.precision import choices, to_fp16
from echoir.export.sources import TorchSource
from echoir.export.typed import export_onnx
from echoir.networks.echoir import EchoIR
from echoir.runtime.descriptor import Descriptor
from echoir.runtime.errors import BackendError

TILE = (64, 64)
HALF, FLOAT = TensorProto.FLOAT16, TensorProto.FLOAT


@pytest.fixture(scope="module")
def network() -> EchoIR:
    return load_checkpoint("denoise").network


@pytest.fixture(scope="module")
def full(network: EchoIR) -> onnx.ModelProto:
    return make_source(network).graph(tile=TILE, batch=1, io="float")


@pytest.fixture(scope="module")
def half(full: onnx.ModelProto) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    return to_fp16(full, lowering_of("EchoIR"))


def types(model: onnx.ModelProto) -> dict[str, int]:
    graph = model.graph
    found = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.value_info, *graph.output)}
    return found | {tensor.name: tensor.data_type for tensor in graph.initializer}


def psnr(output: np.ndarray, expected: np.ndarray) -> float:
    return float(-10 * np.log10(np.mean((output.astype(np.float64) - expected) ** 2)))


def picture(rng: np.random.Generator) -> np.ndarray:
    """Smooth shapes under noise, as the network was trained on: [1, 3, *TILE]."""
    y, x = np.mgrid[: TILE[0], : TILE[1]] / 16
    shapes = 0.5 + 0.3 * np.stack([np.sin(x), np.cos(y), np.sin(x + y)])
    return (shapes[None] + 0.1 * rng.standard_normal((1, 3, *TILE))).astype(np.float32)


@pytest.mark.parametrize(("precision", "floor"), [("fp32", 90.0), ("fp16", 55.0)])
def test_the_shipped_network_keeps_its_figures(
    network: EchoIR, precision: str, floor: float, rng: np.random.Generator, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    float32 = export_onnx(make_source(network), path, tile=TILE, precision=precision)  # type: ignore[arg-type]
    assert bool(float32) == (precision == "fp16")
    image = picture(rng)
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    output = session.run(None, {"input": image})[0]
    expected = network(torch.from_numpy(image)).detach().numpy()
    assert psnr(image, expected) < 30  # the network does something
    assert psnr(output, expected) >= floor


def test_weights_and_pixels_are_half_and_the_interface_is_not(half: tuple[onnx.ModelProto, tuple[str, ...]]) -> None:
    model, kept = half
    onnx.checker.check_model(model, full_check=True)
    found = types(model)
    assert found["input"] == found["output"] == FLOAT
    pixels = [node for node in model.graph.node if node.op_type == "Conv" and "/mix/" not in node.name]
    assert len(pixels) > 100
    for node in pixels:
        assert {found[name] for name in (*node.input, *node.output)} == {HALF}, node.name
        assert node.name not in kept


def test_every_choice_keeps_nodes_in_float32(
    full: onnx.ModelProto, half: tuple[onnx.ModelProto, tuple[str, ...]]
) -> None:
    model, kept = half
    found = types(model)
    reasons = choices(full.graph, lowering_of("EchoIR"))
    assert list(reasons) == [
        "layer norm",
        "lengths of q and k",
        "global mean",
        "attention matrix",
        "border of the graph",
    ]
    for reason, names in reasons.items():
        nodes = [node for node in model.graph.node if node.name in names]
        assert nodes, reason
        assert names <= set(kept)
        for node in nodes:
            assert HALF not in {found[name] for name in (*node.input, *node.output)}, node.name


def test_no_guard_vanishes(full: onnx.ModelProto, half: tuple[onnx.ModelProto, tuple[str, ...]]) -> None:
    """The least length of q and k, 1e-12 made smaller as q and k are, would be 0 in half: a black picture then NaN."""
    model, kept = half
    tiny = {
        tensor.name
        for tensor in full.graph.initializer
        if tensor.data_type == FLOAT and not tensor.dims and 0 < abs(float(numpy_helper.to_array(tensor))) < 6e-8
    }
    guards = [node for node in model.graph.node if tiny.intersection(node.input)]
    assert {node.op_type for node in guards} == {"Clip"}
    assert {node.name for node in guards} <= set(kept)
    found = types(model)
    assert all(found[name] == FLOAT for node in guards for name in (*node.input, *node.output) if name)
    ends = {name for node in guards for name in node.output}
    behind = [node for node in model.graph.node if node.op_type in ("Div", "Mul") and ends.intersection(node.input)]
    assert behind
    assert all(found[node.output[0]] == FLOAT for node in behind)


def test_a_choice_given_up_becomes_half(full: onnx.ModelProto) -> None:
    model, kept = to_fp16(full, without=["layer norm"])
    found = types(model)
    norms = [node for node in model.graph.node if node.op_type == "LayerNormalization"]
    assert norms
    assert all(found[node.output[0]] == HALF and node.name not in kept for node in norms)


def test_the_sigmas_of_the_upsamplers_stay_float32(half: tuple[onnx.ModelProto, tuple[str, ...]]) -> None:
    model, _ = half
    found = types(model)
    upsamplers = [node for node in model.graph.node if node.op_type == "EchoUpsample"]
    assert len(upsamplers) == 3
    for node in upsamplers:
        assert [found[name] for name in node.input] == [HALF, HALF, FLOAT, FLOAT]


def test_no_value_is_cast_twice(half: tuple[onnx.ModelProto, tuple[str, ...]]) -> None:
    casts = [node for node in half[0].graph.node if node.op_type == "Cast"]
    made = {node.output[0] for node in casts}
    assert not [node.name for node in casts if node.input[0] in made]
    assert len({(node.input[0], node.attribute[0].i) for node in casts}) == len(casts)


def test_a_black_image_has_no_nan(half: tuple[onnx.ModelProto, tuple[str, ...]], network: EchoIR) -> None:
    """Zero-length queries: an epsilon that underflows would divide zero by zero."""
    session = ort.InferenceSession(half[0].SerializeToString(), providers=["CPUExecutionProvider"])
    black = np.zeros((1, 3, *TILE), np.float32)
    output = session.run(None, {"input": black})[0]
    np.testing.assert_allclose(output, network(torch.from_numpy(black)).detach().numpy(), atol=2e-3)


def test_a_weight_beyond_float16_is_named(full: onnx.ModelProto) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(full)
    tensor = next(t for t in model.graph.initializer if t.name in model.graph.node[0].input)
    large = onnx.numpy_helper.to_array(tensor) * np.float32(1e6)
    tensor.CopyFrom(onnx.numpy_helper.from_array(large, tensor.name))
    with pytest.raises(BackendError, match=f"{tensor.name} reaches .* beyond float16"):
        to_fp16(model)


# Networks of others: norms written out, guards that vanish, streams beyond the range.


class WrittenOut(nn.Module):
    """A LayerNorm over channels by hand, and a unit length with the guard of F.normalize."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.out = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.embed(x) * 300  # whose squares leave the range
        mean = y.mean(1, keepdim=True)
        y = (y - mean) / ((y - mean).pow(2).mean(1, keepdim=True) + 1e-6).sqrt()
        length = (y * y).sum((2, 3), keepdim=True).sqrt()
        return x + self.out(y / length.clamp(min=1e-12) + y * 0.1)


def exported(module: nn.Module, tmp_path: Path, tried: list[Any] | None = None) -> tuple[float, tuple[str, ...]]:
    """PSNR of the fp16 artifact with every value really rounded, against PyTorch; and what kept float32."""
    source = TorchSource(module, Descriptor("Toy", "denoise", 1, multiple=(8, 8)))
    path = tmp_path / "toy.onnx"
    kept = export_onnx(source, path, tile=(32, 32), precision="fp16", tried=tried or [])
    image = np.random.default_rng(0).random((1, 3, 32, 32), np.float32)
    with np.errstate(all="ignore"):  # numpy rounds every value, where ONNX Runtime on a CPU skips some roundings
        made = ReferenceEvaluator(str(path)).run(None, {"input": image})[0]
    with torch.no_grad():
        error = float(np.square(made.astype(np.float64) - module(torch.from_numpy(image)).numpy()).mean())
    return (-10 * np.log10(error) if np.isfinite(error) else -np.inf), kept


def test_norms_that_are_written_out_and_their_guards_keep_float32(tmp_path: Path) -> None:
    psnr, kept = exported(WrittenOut(), tmp_path)
    assert psnr > 55
    kinds = {name.split("/")[-1].split("_")[0] for name in kept}
    assert {"Sqrt", "Div", "ReduceMean", "Clip"} <= kinds | {"Clip" if "Max" in kinds else ""}


class Stream(nn.Module):
    """A stream that passes 65,504 and comes back, as SwinIR's does."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.out = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.embed(x).abs() + 1
        large = y * y * 200
        return x + self.out((large * large).sqrt() * (1 / 200))


def test_what_leaves_the_range_on_real_tiles_keeps_float32(tmp_path: Path) -> None:
    tile = np.random.default_rng(1).random((1, 3, 32, 32), np.float32)
    assert exported(Stream(), tmp_path)[0] < 20
    psnr, kept = exported(Stream(), tmp_path, [tile])
    assert psnr > 55
    assert 0 < len(kept) < 8
