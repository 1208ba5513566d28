"""The operator against a literal reading of the paper's Eq. 4-6, pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from echoir.networks.upsampler import EchoUpsampler, echo_upsample


def literal(
    down: NDArray[np.float64], guide: NDArray[np.float64], spatial: float, range_: float, radius: int, combine: str
) -> NDArray[np.float64]:
    n, c, h, w = down.shape
    mean = guide.reshape(n, -1, h, 2, w, 2).mean((3, 5))
    out = np.zeros((n, c, 2 * h, 2 * w))
    for y, x in np.ndindex(2 * h, 2 * w):
        total = np.zeros(n)
        for dy, dx in np.ndindex(2 * radius + 1, 2 * radius + 1):
            cy, cx = y // 2 + dy - radius, x // 2 + dx - radius
            iy, ix = min(max(cy, 0), h - 1), min(max(cx, 0), w - 1)
            f = np.exp(-((cy - (y - 0.5) / 2) ** 2 + (cx - (x - 0.5) / 2) ** 2) / (2 * spatial**2))
            g = np.exp(-((guide[:, :, y, x] - mean[:, :, iy, ix]) ** 2).sum(1) / (2 * range_**2))
            weight = f + g if combine == "sum" else f * g
            out[:, :, y, x] += weight[:, None] * down[:, :, iy, ix]
            total += weight
        out[:, :, y, x] /= total[:, None]
    return out


@settings(deadline=None, max_examples=30)
@given(
    n=st.integers(1, 2),
    c=st.integers(1, 3),
    k=st.integers(1, 3),
    h=st.integers(1, 6),
    w=st.integers(1, 6),
    radius=st.integers(0, 3),
    spatial=st.floats(0.3, 3),
    range_=st.floats(0.3, 3),
    combine=st.sampled_from(["sum", "product"]),
    seed=st.integers(0, 1000),
)
def test_matches_the_definition_for_any_shape_and_radius(
    n: int, c: int, k: int, h: int, w: int, radius: int, spatial: float, range_: float, combine: str, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    down, guide = rng.standard_normal((n, c, h, w)), rng.standard_normal((n, k, 2 * h, 2 * w))
    got = echo_upsample(torch.from_numpy(down), torch.from_numpy(guide), spatial, range_, radius, combine)  # type: ignore[arg-type]
    np.testing.assert_allclose(got.numpy(), literal(down, guide, spatial, range_, radius, combine), atol=1e-12)


def test_a_constant_stays_constant() -> None:
    out = echo_upsample(torch.full((1, 2, 5, 3), 0.7), torch.randn(1, 4, 10, 6), 1.0, 2.0)
    torch.testing.assert_close(out, torch.full((1, 2, 10, 6), 0.7))


def test_gradients_agree_with_finite_differences() -> None:
    torch.manual_seed(0)
    down = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    guide = torch.randn(1, 3, 6, 8, dtype=torch.float64, requires_grad=True)
    sigmas = [torch.tensor([value], dtype=torch.float64, requires_grad=True) for value in (0.9, 1.4)]
    assert torch.autograd.gradcheck(lambda *inputs: echo_upsample(*inputs), (down, guide, *sigmas))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_accumulated_in_float32(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    down, guide = torch.randn(1, 8, 6, 6, dtype=dtype), torch.randn(1, 8, 12, 12, dtype=dtype)
    out = echo_upsample(down, guide, 1.0, 2.8)
    exact = echo_upsample(down.double(), guide.double(), 1.0, 2.8)
    assert out.dtype == dtype
    # Only the final rounding to the storage type may differ.
    assert (out.double() - exact).abs().max() <= torch.finfo(dtype).eps * exact.abs().max()


def test_autocast_does_not_lower_the_operator() -> None:
    down, guide = torch.randn(1, 4, 4, 4), torch.randn(1, 4, 8, 8)
    plain = echo_upsample(down, guide, 1.0, 2.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(echo_upsample(down, guide, 1.0, 2.0), plain)


@pytest.mark.parametrize(
    ("guide", "options", "message"),
    [
        ((1, 2, 8, 7), {}, "guide must be"),
        ((2, 2, 8, 8), {}, "guide must be"),
        ((1, 2, 8, 8), {"radius": -1}, "radius must be >= 0"),
        ((1, 2, 8, 8), {"combine": "max"}, "combine must be"),
    ],
)
def test_refuses_what_does_not_fit(guide: tuple[int, ...], options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        echo_upsample(torch.zeros(1, 2, 4, 4), torch.zeros(guide), 1.0, 1.0, **options)  # type: ignore[arg-type]


def test_sigmas_start_where_the_design_puts_them_and_stay_positive() -> None:
    module = EchoUpsampler(16)
    assert module.log_sigma_spatial.exp().item() == pytest.approx(1.0)
    assert module.log_sigma_range.exp().item() == pytest.approx(4.0)  # sqrt(K), K = 16
    with torch.no_grad():
        module.log_sigma_range.fill_(-30)
    assert module.log_sigma_range.exp() > 0
