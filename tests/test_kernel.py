"""The operator ``torch.ops.echoir.echo_upsample`` and the kernels behind it."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from echoir.networks import upsampler
from echoir.networks.upsampler import EchoUpsampler, echo_upsample
from echoir.runtime.errors import MissingExtraError

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs pip install '.[kernel]'")
no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, no_gpu])]


def inputs(device: str, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    shapes = [(1, 2, 3, 3), (1, 2, 6, 6)]
    tensors = [torch.randn(shape) for shape in shapes] + [torch.tensor([value]) for value in (0.9, 1.3)]
    return tuple(tensor.to(device, dtype).requires_grad_() for tensor in tensors)  # type: ignore[return-value]


def run_checks(**environment: str) -> None:
    """``kernel_checks.py`` in a process of its own."""
    checks = Path(__file__).with_name("kernel_checks.py")
    settings = checks.parent.parent / "pyproject.toml"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-c", settings, checks]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_triton
def test_kernels_match_the_reference_in_the_interpreter() -> None:
    run_checks(TRITON_INTERPRET="1")


@pytest.mark.gpu
@no_gpu
def test_kernels_match_the_reference_on_a_gpu() -> None:
    run_checks()


@pytest.mark.parametrize(
    "check",
    [
        "test_schema",
        "test_autograd_registration",
        "test_faketensor",
        "test_aot_dispatch_static",
        pytest.param("test_aot_dispatch_dynamic", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("device", DEVICES)
def test_the_operator_is_registered_as_pytorch_wants_it(device: str, check: str) -> None:
    torch.library.opcheck(torch.ops.echoir.echo_upsample, (*inputs(device, torch.float32), 1, "sum"), test_utils=check)


@pytest.mark.gpu
@no_gpu
def test_the_backward_operator_is_registered_as_pytorch_wants_it() -> None:
    with torch.no_grad():
        arguments = (torch.randn(1, 2, 6, 6, device="cuda"), *inputs("cuda", torch.float32), 1, "sum")
        torch.library.opcheck(torch.ops.echoir.echo_upsample_backward, arguments)


@pytest.mark.parametrize("combine", ["sum", "product"])
@pytest.mark.parametrize("device", DEVICES)
def test_the_operators_gradients_agree_with_finite_differences(device: str, combine: str) -> None:
    def operator(*tensors: Tensor) -> Tensor:
        return torch.ops.echoir.echo_upsample(*tensors, 1, combine)

    assert torch.autograd.gradcheck(operator, inputs(device))


def test_on_a_cpu_the_function_is_traced_through_and_equals_the_operator() -> None:
    tensors = inputs("cpu", torch.float32)
    assert torch.equal(echo_upsample(*tensors), torch.ops.echoir.echo_upsample(*tensors, 1, "sum"))
    names = {str(node.target) for node in make_fx(lambda *tensors: echo_upsample(*tensors))(*tensors).graph.nodes}
    assert not [name for name in names if "echoir" in name]
    assert "aten.baddbmm.default" in names


def test_cuda_tensors_without_triton_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("echoir.networks.kernel", "echoir.networks.kernel_backward"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'echoir\[kernel\]'"):
        upsampler._on_cuda(*inputs("cpu"), 1, "sum")


@pytest.mark.gpu
@no_gpu
def test_a_module_trains_on_a_gpu_as_on_a_cpu_eager_compiled_and_in_channels_last() -> None:
    torch.manual_seed(0)
    module = EchoUpsampler(8)
    x, reference = torch.randn(2, 16, 9, 7), torch.randn(2, 8, 18, 14)

    def gradients(device: str, compiled: bool, layout: torch.memory_format) -> list[Tensor]:
        module.to(device).zero_grad()
        call = torch.compile(module) if compiled else module
        call(*(t.to(device, memory_format=layout) for t in (x, reference))).square().sum().backward()
        return [p.grad.cpu().clone() for p in module.parameters() if p.grad is not None]  # moving it moves these

    wanted = gradients("cpu", False, torch.contiguous_format)
    scale = max(exact.abs().max().item() for exact in wanted)  # a constant added to the guide changes nothing
    for compiled in (False, True):
        for layout in (torch.contiguous_format, torch.channels_last):
            for got, exact in zip(gradients("cuda", compiled, layout), wanted, strict=True):
                torch.testing.assert_close(got, exact, rtol=1e-3, atol=1e-3 * scale)
