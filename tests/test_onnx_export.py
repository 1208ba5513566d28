"""The exported file against PyTorch, the ONNX function against the operator, the deployed form in float64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from builders import make_source, small_network
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from echoir.export.echo.function import echo_function, node_attributes
from echoir.export.echo.lowering import Block, deployed
from echoir.export.graph import OPSET
from echoir.export.reference import IO
from echoir.export.sources import TorchSource
from echoir.export.typed import export_onnx
from echoir.networks.echoir import EchoIR
from echoir.networks.upsampler import EchoUpsampler, echo_upsample
from echoir.runtime.descriptor import Descriptor

TILE = (32, 48)
Export = Callable[..., tuple[EchoIR, Path, tuple[str, ...]]]


def lively(**switches: Any) -> EchoIR:
    """A tiny network in which every parameter matters: no bias is zero, no scale is one."""
    torch.manual_seed(3)
    network = small_network(**switches).eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    return network


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Export once per set of arguments."""
    done: dict[str, tuple[EchoIR, Path, tuple[str, ...]]] = {}

    def get(switches: dict[str, Any] | None = None, **arguments: Any) -> tuple[EchoIR, Path, tuple[str, ...]]:
        key = repr((switches, sorted(arguments.items())))
        if key not in done:
            network, path = lively(**(switches or {})), tmp_path_factory.mktemp("onnx") / "model.onnx"
            done[key] = network, path, export_onnx(make_source(network), path, tile=TILE, **arguments)
        return done[key]

    return get


def run(model: Path | onnx.ModelProto, *inputs: NDArray[Any]) -> NDArray[Any]:
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = ort.InferenceSession(source, providers=["CPUExecutionProvider"])
    names = [tensor.name for tensor in session.get_inputs()]
    output: NDArray[Any] = session.run(None, dict(zip(names, inputs, strict=True)))[0]
    return output


@pytest.mark.parametrize("batch", [1, 3])
def test_any_batch_gives_what_pytorch_gives(export: Export, batch: int, rng: np.random.Generator) -> None:
    network, path, _ = export(batch=None)
    image = rng.random((batch, 3, *TILE), dtype=np.float32)
    expected = network(torch.from_numpy(image)).numpy()
    assert np.std(expected) > 0.05
    np.testing.assert_allclose(run(path, image), expected, atol=2e-5)


class Small(nn.Module):
    """A network with what sizes go into: half resolution, attention over channels, a mean over all pixels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.out = nn.Conv2d(12, 8, 3, padding=1), nn.Conv2d(8, 12, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.embed(nn.functional.pixel_unshuffle(image, 2))
        n, c, height, width = x.shape
        flat = x.reshape(n, 2, c // 2, height * width)
        attention = (nn.functional.normalize(flat, dim=-1) @ flat.transpose(-2, -1)).softmax(-1)
        x = (attention @ flat).reshape(n, c, height, width) * x.mean((2, 3), keepdim=True).sigmoid()
        return nn.functional.pixel_shuffle(self.out(x), 2) + image


@pytest.mark.parametrize(("batch", "io"), [(1, "float"), (None, "uint8")])
def test_a_small_network_of_free_sides_gives_what_pytorch_gives(
    tmp_path: Path, batch: int | None, io: IO, rng: np.random.Generator
) -> None:
    network, path = Small().eval(), tmp_path / "small.onnx"
    source = TorchSource(network, Descriptor("Small", "denoise", 1, multiple=(2, 4), phase=(2, 4)))
    export_onnx(source, path, tile=(16, 16), batch=batch, io=io, free=True)
    for sides in ((2, 4), (6, 32), (16, 16), (30, 8)):
        pixels = rng.integers(0, 256, (batch or 2, *sides, 3), np.uint8)
        image = pixels.transpose(0, 3, 1, 2).astype(np.float32) / 255
        with torch.inference_mode():
            expected = network(torch.from_numpy(image)).numpy()
        if io == "float":
            np.testing.assert_allclose(run(path, image), expected, atol=1e-5)
        else:
            codes = expected.clip(0, 1).transpose(0, 2, 3, 1) * 255
            np.testing.assert_allclose(run(path, pixels), codes, atol=0.501)


@pytest.mark.slow  # PyTorch takes a while over symbolic sizes
@pytest.mark.parametrize(
    ("precision", "io", "least"), [("fp32", "float", 100.0), ("fp32", "uint8", 55.0), ("fp16", "float", 55.0)]
)
def test_free_sides_give_what_pytorch_gives_at_every_size(
    export: Export, precision: str, io: str, least: float, rng: np.random.Generator
) -> None:
    network, path, _ = export(batch=1, free=True, precision=precision, io=io)
    for sides in ((16, 16), (64, 16), (48, 112), TILE):
        image = rng.random((1, 3, *sides), dtype=np.float32)
        if io == "uint8":
            pixels = np.rint(image.transpose(0, 2, 3, 1) * 255).astype(np.uint8)
            made = run(path, pixels).transpose(0, 3, 1, 2) / np.float32(255)
            expected = network(torch.from_numpy(pixels.transpose(0, 3, 1, 2)) / 255).clamp(0, 1).numpy()
        else:
            made, expected = run(path, image), network(torch.from_numpy(image)).numpy()
        assert made.shape == expected.shape
        assert -10 * np.log10(np.mean(np.square(made - expected))) > least


def test_a_network_at_half_resolution_gives_what_pytorch_gives(tmp_path: Path, rng: np.random.Generator) -> None:
    network, path = lively(stem=2, refinement=0), tmp_path / "half.onnx"
    export_onnx(make_source(network), path, tile=(64, 32), batch=1)
    image = rng.random((1, 3, 64, 32), dtype=np.float32)
    np.testing.assert_allclose(run(path, image), network(torch.from_numpy(image)).numpy(), atol=5e-5)
    with pytest.raises(ValueError, match="multiples of 32, got 48 x 32"):
        export_onnx(make_source(network), path, tile=(48, 32), batch=1)


def test_a_fixed_batch_is_in_the_file(export: Export, rng: np.random.Generator) -> None:
    network, path, _ = export({"reference": "image", "channel_attention": False}, batch=2)
    graph = onnx.load(path).graph
    for value in (*graph.input, *graph.output):
        assert [dim.dim_value for dim in value.type.tensor_type.shape.dim] == [2, 3, *TILE]
    image = rng.random((2, 3, *TILE), dtype=np.float32)
    np.testing.assert_allclose(run(path, image), network(torch.from_numpy(image)).numpy(), atol=2e-5)


def test_uint8_converts_clips_and_rounds_inside(export: Export, rng: np.random.Generator) -> None:
    network, path, _ = export(batch=1, io="uint8")
    pixels = rng.integers(0, 256, (1, *TILE, 3), dtype=np.uint8)
    restored = network(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255)
    expected = (restored.clamp(0, 1) * 255).round().permute(0, 2, 3, 1).numpy()
    assert expected.min() == 0  # something was clipped
    assert expected.max() == 255
    output = run(path, pixels)
    assert output.dtype == np.uint8
    assert np.abs(output - expected).max() <= 1  # a value within 1e-5 of a half may round the other way
    assert np.mean(output != expected) < 1e-3


def test_the_file_holds_three_opaque_nodes_and_their_function(export: Export) -> None:
    _, path, _ = export(batch=1)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    nodes = [node for node in model.graph.node if node.op_type == "EchoUpsample"]
    assert [node.name for node in nodes] == ["up3/EchoUpsample", "up2/EchoUpsample", "up1/EchoUpsample"]
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in nodes:
        assert node.domain == "echoir"
        found = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        assert found == {"radius": 1, "combine": 0, "plugin_namespace": b"echoir", "aot": 1}
        assert all(list(weights[sigma].dims) == [1] for sigma in node.input[2:])
    assert [(function.domain, function.name) for function in model.functions] == [("echoir", "EchoUpsample")]
    assert {opset.domain: opset.version for opset in model.opset_import} == {"": OPSET, "echoir": 1}


def test_a_fixed_tile_leaves_no_arithmetic_on_shapes_and_no_large_rank(export: Export) -> None:
    _, path, _ = export(batch=1)
    graph = onnx.load(path).graph
    assert not {"Shape", "Gather", "Range", "Expand", "Loop", "If"} & {node.op_type for node in graph.node}
    assert max(len(value.type.tensor_type.shape.dim) for value in graph.value_info) <= 4


def test_names_tell_the_module_and_nothing_of_this_machine(export: Export) -> None:
    _, path, _ = export(batch=1)
    names = [node.name for node in onnx.load(path).graph.node]
    assert len(set(names)) == len(names)
    assert "encoder1/0/attention/query/0/Conv" in names
    for level in ("up1", "up2", "up3"):
        assert {f"{level}/reduce/Conv", f"{level}/out/Conv", f"{level}/mlp/1/Gelu"} <= set(names)
    content = path.read_bytes()
    for note in (b"network.py", b"site-packages", b"aten."):
        assert note not in content


@pytest.mark.parametrize("tile", [(24, 32), (32, 40), (0, 16), (8, 8)])
def test_a_tile_off_the_alignment_is_refused(tile: tuple[int, int], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"multiples of 16, got {tile[0]} x {tile[1]}"):
        export_onnx(make_source(lively()), tmp_path / "model.onnx", tile=tile)
    assert list(tmp_path.iterdir()) == []


def test_alignment_follows_the_radius() -> None:
    network = lively()
    assert network.multiple == 16
    network.up2.radius = 3
    assert network.multiple == 48
    assert lively(upsampler="transpose").multiple == 8
    assert lively(stem=2).multiple == 32
    assert lively(radius=2).multiple == 32


def test_a_batch_below_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        export_onnx(make_source(lively()), tmp_path / "model.onnx", tile=TILE, batch=0)


def test_an_export_leaves_the_network_as_it_is(export: Export) -> None:
    network, _, _ = export(batch=1)
    assert type(network.up1) is EchoUpsampler
    assert not isinstance(network.encoder1[0], Block)
    image = torch.rand(1, 3, *TILE)
    torch.testing.assert_close(network(image), lively()(image))


@pytest.mark.parametrize(
    "switches",
    [
        {},
        {"channel_attention": False},
        {"feed_forward": "mlp"},
        {"upsampler": "pixelshuffle"},
        {"upsampler": "transpose"},
        {"reference": "image"},
        {"width": 24, "heads": (1, 2, 3, 4)},
        {"stem": 2},
        {"stem": 2, "reference": "image", "refinement": 0},
    ],
    ids=str,
)
def test_the_deployed_form_is_the_same_function(switches: dict[str, Any]) -> None:
    network = lively(**switches).double()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    image = torch.rand(2, 3, 32, 16, dtype=torch.float64)
    torch.testing.assert_close(deployed(network)(image), network(image), rtol=1e-10, atol=1e-10)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


@settings(max_examples=25, deadline=None)
@given(
    radius=st.sampled_from([0, 1, 2]),
    combine=st.sampled_from(["sum", "product"]),
    n=st.integers(1, 2),
    c=st.integers(1, 5),
    k=st.integers(1, 5),
    blocks=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    sigmas=st.tuples(st.floats(0.4, 3), st.floats(0.4, 3)),
    seed=st.integers(0, 99),
)
def test_the_function_is_the_operator(
    radius: int,
    combine: Any,
    n: int,
    c: int,
    k: int,
    blocks: tuple[int, int],
    sigmas: tuple[float, float],
    seed: int,
) -> None:
    h, w = (count * 2 * max(radius, 1) for count in blocks)
    generator = torch.Generator().manual_seed(seed)
    down = torch.randn(n, c, h, w, generator=generator)
    guide = torch.randn(n, k, 2 * h, 2 * w, generator=generator)
    expected = echo_upsample(down.double(), guide.double(), *sigmas, radius, combine).numpy()
    model = operator(down, guide, sigmas, radius, combine)
    onnx.checker.check_model(model, full_check=True)
    np.testing.assert_allclose(run(model, down.numpy(), guide.numpy()), expected, atol=1e-5, rtol=1e-5)


def operator(
    down: torch.Tensor, guide: torch.Tensor, sigmas: tuple[float, float], radius: int, combine: Any
) -> onnx.ModelProto:
    """A model of one EchoUpsample node."""
    inputs = {"down": list(down.shape), "guide": list(guide.shape)}
    output = [*down.shape[:2], *guide.shape[2:]]
    node = helper.make_node(
        "EchoUpsample", ["down", "guide", "s", "r"], ["up"], domain="echoir", **node_attributes(radius)
    )
    graph = helper.make_graph(
        [node],
        "operator",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info("up", TensorProto.FLOAT, output)],
        [
            numpy_helper.from_array(np.array([sigma], np.float32), name)
            for sigma, name in zip(sigmas, "sr", strict=True)
        ],
    )
    return helper.make_model(
        graph,
        functions=[echo_function(radius, combine, OPSET)],
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid("echoir", 1)],
        ir_version=10,
    )
