"""The kernels against the reference, on a GPU or in Triton's interpreter.

Not collected by itself: ``test_kernel.py`` runs it in a process with ``TRITON_INTERPRET=1``, which
Triton reads when it is imported, and as it is where there is a GPU.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from echoir.networks.kernel import Tiling, forward
from echoir.networks.kernel_backward import backward
from echoir.networks.upsampler import _in_blocks

INTERPRETED = bool(os.environ.get("TRITON_INTERPRET"))
DEVICE = "cpu" if INTERPRETED else "cuda"

# Largest error, relative to the largest value: sums in float32, then one rounding to the storage type.
# The interpreter cuts bfloat16 off where a GPU rounds.
TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 3e-6,
    torch.bfloat16: 2**-7 if INTERPRETED else 2**-8,
    torch.float16: 2**-11,
}


@st.composite
def cases(draw: Callable[..., Any]) -> dict[str, Any]:
    """Shapes with one or two programs along each axis, full or not, and lanes that do or do not divide C and K."""
    rows, columns, *rest = draw(
        st.sampled_from([(4, 8, 1, 1, 1), (8, 8, 1, 2, 1), (4, 4, 4, 2, 2), (1, 2, 16, 1, 1), (2, 8, 2, 1, 2)])
    )
    return {
        "n": draw(st.integers(1, 2)),
        "c": draw(st.integers(1, 5)),
        "k": draw(st.integers(1, 5)),
        "h": draw(st.integers(1, rows + 1)),
        "w": draw(st.integers(1, columns + 1)),
        "radius": draw(st.sampled_from([1, 1, 1, 0, 2, 3])),
        "combine": draw(st.sampled_from(["sum", "product"])),
        "dtype": draw(st.sampled_from(list(TOLERANCE))),
        "tiling": Tiling(rows, columns, *rest),
        "seed": draw(st.integers(0, 1000)),
    }


def tensors(case: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """down, guide and sigmas, on the device, of the case's dtype."""
    torch.manual_seed(case["seed"])
    n, c, k, h, w = (case[name] for name in "nckhw")
    down, guide = torch.randn(n, c, h, w), torch.randn(n, k, 2 * h, 2 * w)
    sigmas = (0.5 + torch.rand(1), (0.5 + torch.rand(1)) * math.sqrt(k))
    return tuple(t.to(DEVICE, case["dtype"]) for t in (down, guide, *sigmas))  # type: ignore[return-value]


def assert_close(got: Tensor, exact: Tensor, tolerance: float, scale: float | None = None) -> None:
    error = (got.double() - exact).abs().max().item()
    assert error <= tolerance * max(scale or 0, exact.abs().max().item())


@settings(deadline=None, max_examples=12 if INTERPRETED else 200, suppress_health_check=list(HealthCheck))
@given(cases())
def test_forward(case: dict[str, Any]) -> None:
    down, guide, *sigmas = tensors(case)
    exact = _in_blocks(down.double(), guide.double(), *(s.double() for s in sigmas), case["radius"], case["combine"])
    out = forward(down, guide, *sigmas, case["radius"], case["combine"], case["tiling"])
    assert out.dtype == case["dtype"]
    assert_close(out, exact, TOLERANCE[case["dtype"]])


@settings(deadline=None, max_examples=5 if INTERPRETED else 100, suppress_health_check=list(HealthCheck))
@given(cases())
def test_backward(case: dict[str, Any]) -> None:
    if INTERPRETED:  # which takes seconds per program for more
        case["radius"] = min(case["radius"], 1)
    inputs = tensors(case)
    leaves = [tensor.double().requires_grad_() for tensor in inputs]
    exact = _in_blocks(*leaves, case["radius"], case["combine"])
    gradient = torch.randn_like(exact).to(case["dtype"])
    wanted = torch.autograd.grad(exact, leaves, gradient.double())
    got = backward(gradient, *inputs, case["radius"], case["combine"], case["tiling"])
    # Where all of a gradient cancels (radius 0, one cell), what is left is measured against its terms.
    for name, slope, exact in zip(("down", "guide", "sigma", "sigma"), got, wanted, strict=True):
        assert slope.dtype == case["dtype"]
        assert_close(slope, exact, 4 * TOLERANCE[case["dtype"]], scale=0 if name == "down" else 1)


def test_float64_gradients_agree_with_finite_differences() -> None:
    class Operator(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Tensor) -> Tensor:
            ctx.save_for_backward(*inputs)
            return forward(*inputs, 1, "sum", Tiling(2, 4, 4))

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
            return backward(*gradients, *ctx.saved_tensors, 1, "sum", Tiling(2, 4, 4))

    case = {"n": 1, "c": 2, "k": 3, "h": 2, "w": 3, "dtype": torch.float64, "seed": 0}
    leaves = [tensor.requires_grad_() for tensor in tensors(case)]
    assert torch.autograd.gradcheck(Operator.apply, leaves, fast_mode=True)


def test_a_guide_far_from_zero_keeps_its_distances() -> None:
    case = {"n": 1, "c": 2, "k": 4, "h": 3, "w": 3, "dtype": torch.float32, "seed": 1}
    down, guide, *sigmas = tensors(case)
    guide += 100
    exact = _in_blocks(down.double(), guide.double(), *(s.double() for s in sigmas), 1, "sum")
    assert_close(forward(down, guide, *sigmas, 1, "sum", Tiling(4, 8, 1)), exact, 1e-5)


@pytest.mark.parametrize("plane", [(1, 1, 1), (1, 32, 32), (1, 540, 960), (16, 7, 1000)])
@pytest.mark.parametrize("radius", [1, 2])
def test_tilings_cover_the_plane_with_whole_warps(plane: tuple[int, int, int], radius: int) -> None:
    tiling = Tiling.for_plane(*plane, radius)
    across, down, images = tiling.grid(*plane)
    assert images == plane[0]
    assert (down - 1) * tiling.rows < plane[1] <= down * tiling.rows
    assert (across - 1) * tiling.columns < plane[2] <= across * tiling.columns
    assert tiling.rows // tiling.stack * tiling.columns * tiling.lanes == 32 * tiling.num_warps
