"""The form of GRL that is exported, against GRL itself."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from builders import make_source
from naive_grl import random_state
from numpy.typing import NDArray

from echoir.export.grl import PARTS, lean
from echoir.export.lowering import lowering_of
from echoir.export.precision import to_fp16
from echoir.metrics import psnr
from echoir.networks.grl import GRL, GRLConfig
from echoir.networks.grl_official import from_official

HEAVY = pytest.mark.skipif(not os.environ.get("ECHOIR_HEAVY"), reason="minutes of exporting; set ECHOIR_HEAVY=1")


def lively(size: str, task: str, **switches: Any) -> GRL:
    """A network of one stage with weights that leave no part of it idle."""
    config = GRLConfig.from_preset(size, task=task, **{"depths": (4,)} | switches)
    network = GRL(config).eval().requires_grad_(False)
    network.load_state_dict(from_official(random_state(config)))
    return network


def exported(network: GRL, height: int, width: int) -> onnx.ModelProto:
    return make_source(network).graph(tile=(height, width), batch=1, io="float")


def run(model: onnx.ModelProto, image: torch.Tensor) -> NDArray[np.float32]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    restored: NDArray[np.float32] = session.run(None, {"input": image.numpy()})[0]
    return restored


@pytest.mark.parametrize(
    ("size", "task", "switches", "picture"),
    [
        ("t", "demosaic", {"width": 24, "heads": 3}, (64, 32)),
        ("t", "demosaic", {"width": 12, "anchor": 2, "inputs": 6}, (32, 64)),
        ("t", "demosaic", {"width": 12, "heads": 1, "stripe": (16, 32)}, (32, 64)),
        pytest.param("b", "realsr", {"width": 36}, (64, 64), marks=pytest.mark.slow),
        pytest.param("t", "sr", {"width": 12, "scale": 2}, (64, 64), marks=pytest.mark.slow),
    ],
)
def test_the_lean_form_computes_the_same(
    size: str, task: str, switches: dict[str, Any], picture: tuple[int, int]
) -> None:
    network = lively(size, task, **switches).double()
    images = torch.rand(2, network.config.inputs, *picture, dtype=torch.float64)
    expected = network(images)
    assert expected.std() > 0.05
    # The table of biases is the only thing made beforehand; float32 coordinates of the masks are exact.
    torch.testing.assert_close(lean(network)(images), expected, atol=1e-9, rtol=0)


def test_the_network_itself_is_left_as_it_is() -> None:
    network = lively("t", "demosaic", width=12)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    lean(network)
    assert network.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_onnx_runtime_agrees_with_pytorch_in_both_precisions() -> None:
    network = lively("t", "demosaic", width=24, stripe=(16, 32))
    image = torch.rand(1, 3, 64, 96)
    model = exported(network, 64, 96)
    half, kept = to_fp16(model, lowering_of("GRL"))
    expected = network(image).numpy()
    assert psnr(run(model, image), expected) > 90
    assert psnr(run(half, image), expected) > 55
    attention = "stages/0/blocks/2/attention"
    for part in PARTS:
        nodes = [node.name for node in model.graph.node if node.name.startswith(f"{attention}/{part}/")]
        logits = [name for name in nodes if "/weights/" in name]
        values = [name for name in nodes if "MatMul" in name and name not in logits]
        assert len(values) == len([name for name in logits if "Softmax" in name]) == 1
        assert set(logits) <= set(kept)
        assert not set(values) & set(kept)


@HEAVY
def test_the_file_does_not_grow_with_the_tile() -> None:
    network = lively("t", "demosaic", width=12, depths=(3,))  # its third block shifts windows and stripes
    small, large = exported(network, 32, 32), exported(network, 128, 96)
    assert abs(large.ByteSize() - small.ByteSize()) < 20_000
    folded = max(np.prod(tensor.dims) for tensor in large.graph.initializer)
    assert folded < 64 * 1024  # a bias of one stripe would have 1024 x 64 numbers


@HEAVY
def test_denoising_at_256_fits_in_12_megabytes() -> None:
    model = exported(GRL.from_preset("t").eval(), 256, 256)
    assert model.ByteSize() < 12e6
    onnx.checker.check_model(model, full_check=True)
