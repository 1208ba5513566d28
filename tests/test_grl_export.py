"""The form of GRL that is exported, against GRL itself."""

from __future__ import annotations

import os
import warnings
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import onnxsim
import pytest
import torch
from naive_grl import random_state

from echoir.export.grl import lean
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
    """Its lean form in ONNX, simplified as every exported graph is: what can be folded is."""
    example = torch.zeros(1, network.config.inputs, height, width)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        program = torch.onnx.export(lean(network), (example,), dynamo=True, opset_version=20, verbose=False)
    assert program is not None
    model, sound = onnxsim.simplify(program.model_proto)
    assert sound
    return model


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


def test_onnx_runtime_agrees_with_pytorch() -> None:
    network = lively("t", "demosaic", width=24, stripe=(16, 32))
    image = torch.rand(1, 3, 64, 96)
    model = exported(network, 64, 96)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (restored,) = session.run(None, {model.graph.input[0].name: image.numpy()})
    assert psnr(restored, network(image).numpy()) > 90


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
