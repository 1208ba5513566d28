"""The kernels against the reference, on a GPU or in Triton's interpreter.

Not collected by itself: ``test_kernel.py`` runs it in a process with ``TRITON_INTERPRET=1``, which
Triton reads when it is imported, and as it is where there is a GPU.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from echoir.networks import upsampler
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


# Compiling takes seconds per choice of these, minutes from radius 2 on: a GPU gets a few choices and many sizes.
# C, K, radius, combine, and how cells are dealt out to programs.
COMPILED = (
    (16, 16, 1, "sum", Tiling(8, 32, 1, 2)),
    (3, 5, 1, "product", Tiling(4, 4, 4, 2, 2)),
    (5, 2, 1, "sum", Tiling(1, 2, 16)),
    (2, 3, 0, "sum", Tiling(4, 8, 1)),
)


def name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# Looking for a smaller case that fails as well takes minutes where each is compiled.
PHASES = tuple(Phase) if INTERPRETED else (Phase.explicit, Phase.generate)
EVERYWHERE = settings(deadline=None, suppress_health_check=list(HealthCheck), phases=PHASES, database=None)


@st.composite
def choices(draw: Callable[..., Any]) -> tuple[int, int, int, str, Tiling]:
    """What is compiled: channels, lanes that do or do not divide them, radii, combinations, tilings."""
    if not INTERPRETED:
        return draw(st.sampled_from(COMPILED))
    tilings = [(4, 8, 1, 1, 1), (8, 8, 1, 2, 1), (4, 4, 4, 2, 2), (1, 2, 16, 1, 1), (2, 8, 2, 1, 2)]
    c, k, radius = draw(st.integers(1, 5)), draw(st.integers(1, 5)), draw(st.sampled_from([1, 1, 1, 0, 2, 3]))
    return c, k, radius, draw(st.sampled_from(["sum", "product"])), Tiling(*draw(st.sampled_from(tilings)))


@st.composite
def cases(draw: Callable[..., Any]) -> dict[str, Any]:
    """Planes of one or two programs along each axis, full or not; on a GPU of many."""
    c, k, radius, combine, tiling = draw(choices())
    most = (tiling.rows + 1, tiling.columns + 1) if INTERPRETED else (70, 130)
    return {
        "n": draw(st.integers(1, 2)),
        "c": c,
        "k": k,
        "h": draw(st.integers(1, most[0])),
        "w": draw(st.integers(1, most[1])),
        "radius": radius,
        "combine": combine,
        "tiling": tiling,
        "seed": draw(st.integers(0, 1000)),
    }


def tensors(case: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """down, guide and sigmas, on the device, of the case's dtype."""
    torch.manual_seed(case["seed"])
    n, c, k, h, w = (case[name] for name in "nckhw")
    down, guide = torch.randn(n, c, h, w), torch.randn(n, k, 2 * h, 2 * w)
    sigmas = (0.5 + torch.rand(1), (0.5 + torch.rand(1)) * math.sqrt(k))
    return tuple(t.to(DEVICE, case["dtype"]) for t in (down, guide, *sigmas))  # type: ignore[return-value]


@contextmanager
def poisoned() -> Iterator[None]:
    """New memory holds NaN, so that an element which nobody writes shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def assert_close(got: Tensor, exact: Tensor, tolerance: float, scale: float | None = None) -> None:
    error = (got.double() - exact).abs().max().item()
    assert error <= tolerance * max(scale or 0, exact.abs().max().item())  # a NaN is never


@pytest.mark.parametrize("dtype", TOLERANCE, ids=name)
@settings(EVERYWHERE, max_examples=3 if INTERPRETED else 100)
@given(case=cases())
def test_forward(case: dict[str, Any], dtype: torch.dtype) -> None:
    check_forward({**case, "dtype": dtype})


def check_forward(case: dict[str, Any]) -> None:
    down, guide, *sigmas = tensors(case)
    exact = _in_blocks(down.double(), guide.double(), *(s.double() for s in sigmas), case["radius"], case["combine"])
    with poisoned():
        out = forward(down, guide, *sigmas, case["radius"], case["combine"], case["tiling"])
    assert out.dtype == case["dtype"]
    assert_close(out, exact, TOLERANCE[case["dtype"]])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=name)
@settings(EVERYWHERE, max_examples=2 if INTERPRETED else 100)
@given(case=cases())
def test_backward(case: dict[str, Any], dtype: torch.dtype) -> None:
    if INTERPRETED:  # which takes seconds per program for more
        case = {**case, "radius": min(case["radius"], 1)}
    check_backward({**case, "dtype": dtype})


def check_backward(case: dict[str, Any]) -> None:
    inputs = tensors(case)
    leaves = [tensor.double().requires_grad_() for tensor in inputs]
    exact = _in_blocks(*leaves, case["radius"], case["combine"])
    gradient = torch.randn_like(exact).to(case["dtype"])
    wanted = torch.autograd.grad(exact, leaves, gradient.double())
    with poisoned():
        got = backward(gradient, *inputs, case["radius"], case["combine"], case["tiling"])
    if not INTERPRETED:  # no atomics, no race
        again = backward(gradient, *inputs, case["radius"], case["combine"], case["tiling"])
        assert all(torch.equal(*pair) for pair in zip(got, again, strict=True))
    # Where all of a gradient cancels (radius 0, one cell), what is left is measured against its terms.
    for name, slope, exact in zip(("down", "guide", "sigma", "sigma"), got, wanted, strict=True):
        assert slope.dtype == case["dtype"]
        assert_close(slope, exact, 4 * TOLERANCE[case["dtype"]], scale=0 if name == "down" else 1)


@pytest.mark.skipif(INTERPRETED, reason="the interpreter's cases have wide neighbourhoods too")
@pytest.mark.parametrize("check", [check_forward, check_backward])
def test_a_wide_neighbourhood(check: Callable[[dict[str, Any]], None]) -> None:
    case = {"n": 2, "c": 3, "k": 5, "h": 9, "w": 14, "radius": 2, "combine": "sum", "seed": 0}
    check({**case, "tiling": Tiling(2, 16, 2), "dtype": torch.float32})


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


def test_the_operators_run_the_kernels_as_pytorch_wants_it() -> None:
    if INTERPRETED:  # what is registered for CUDA alone
        upsampler._operator.register_kernel("cpu")(upsampler._on_cuda)
        upsampler._gradients.register_kernel("cpu")(upsampler._gradients._init_fn)
    tensors_ = tensors({"n": 1, "c": 2, "k": 2, "h": 3, "w": 3, "dtype": torch.float32, "seed": 0})
    leaves = [tensor.requires_grad_() for tensor in tensors_]
    out = torch.ops.echoir.echo_upsample(*leaves, 1, "sum")
    gradient = torch.randn_like(out)
    exact_leaves = [tensor.detach().double().requires_grad_() for tensor in leaves]
    exact = _in_blocks(*exact_leaves, 1, "sum")
    wanted = torch.autograd.grad(exact, exact_leaves, gradient.double())
    for slope, other in zip(torch.autograd.grad(out, leaves, gradient), wanted, strict=True):
        assert_close(slope, other, 1e-5)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_static")
    torch.library.opcheck(torch.ops.echoir.echo_upsample, (*leaves, 1, "sum"), test_utils=checks)
    with torch.no_grad():
        arguments = (gradient, *leaves, 1, "sum")
        torch.library.opcheck(torch.ops.echoir.echo_upsample_backward, arguments, test_utils=checks)


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
