"""Noise as the world makes it: families of it, of which every training crop of ``denoise`` receives one.

What reaches a denoiser is seldom RGB with independent noise: files are clipped and rounded, JPEG and video
halve the chroma after the noise was there, mono cameras and scans give three equal channels, cameras
demosaic, programs resize, and people feed clean pictures, which must come back as they were.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from echoir.degradations.chroma import Interpolation, Siting, gray, rounded, subsample, to_rgb, to_ycc
from echoir.degradations.draw import Draw
from echoir.degradations.filters import gaussians, separable
from echoir.degradations.jpeg import Sampling, jpeg

STRONGEST = 55.0  # standard deviation in 8-bit codes
JPEG_QUALITY = (60.0, 98.0)
COMMON_QUALITIES = (75.0, 85.0, 90.0, 95.0)  # what programs save with unless told otherwise

Pair = tuple[Tensor, Tensor]
"""(degraded, clean), both [N, 3, H, W]; a family may change what is clean (a gray picture)."""


def gaussian(clean: Tensor, sigma: float, draw: Draw) -> Tensor:
    """White Gaussian noise, not clipped, as the denoising literature has it; ``sigma`` in 8-bit codes."""
    return clean + draw.normal(*clean.shape) * (sigma / 255)


def independent(clean: Tensor, draw: Draw) -> Pair:
    """Every channel its own noise."""
    return clean + _white(clean, draw), clean


def clipped(clean: Tensor, draw: Draw) -> Pair:
    """The same in a file of 8 bits."""
    return rounded(clean + _white(clean, draw)), clean


def equal(clean: Tensor, draw: Draw) -> Pair:
    """A colour picture with one noise in all channels: noise of the luma alone. Half is clipped."""
    return _half_clipped(clean + _white(clean[:, :1], draw), draw), clean


def grayscale(clean: Tensor, draw: Draw) -> Pair:
    """A gray picture in three equal channels: mono cameras, scans. Half is clipped."""
    clean = gray(clean)
    return _half_clipped(clean + _white(clean[:, :1], draw), draw).expand_as(clean), clean


def halved(clean: Tensor, draw: Draw) -> Pair:
    """Video's chroma: 4:2:0 or 4:2:2, both sitings, the usual ways back; noise before it or in its planes."""
    n = len(clean)
    noisy = to_ycc(clean)
    in_planes = bool(draw.host.random() < 0.5)
    small: Tensor | None = None
    vertical = bool(draw.host.random() < 0.7)
    if in_planes:
        sigma = _levels(n, draw) / 255
        noisy = torch.cat([noisy[:, :1] + draw.normal(n, 1, *clean.shape[2:]) * sigma, noisy[:, 1:]], 1)
        height, width = clean.shape[2] // (2 if vertical else 1), clean.shape[3] // 2
        small = draw.normal(n, 2, height, width) * sigma * draw.each(n, 0.3, 1.2)
    else:
        noisy = to_ycc(rounded(clean + _white(clean, draw)))
    siting: Siting = draw.one(["center", "left"])
    interpolation: Interpolation = draw.one(["linear", "linear", "bicubic", "nearest"])
    # A video's codes: 219 steps of luma, 224 of chroma.
    luma = (noisy[:, :1] * 219).round() / 219
    noisy = subsample(torch.cat([luma, noisy[:, 1:]], 1), vertical, siting, interpolation, small, 224.0)
    noisy = to_rgb(noisy)
    return (rounded(noisy) if draw.host.random() < 0.5 else noisy), clean


def compressed(clean: Tensor, draw: Draw) -> Pair:
    """JPEG after the noise, of any of its chroma samplings, at any place of its grid."""
    n = len(clean)
    quality = draw.each(n, *JPEG_QUALITY)
    common = torch.tensor(COMMON_QUALITIES, device=clean.device)[draw.integers(len(COMMON_QUALITIES), n, 1, 1, 1)]
    quality = torch.where(draw.chance(n, 0.5), common, quality)
    sampling: Sampling = draw.one(["420", "420", "422", "444"])
    interpolation: Interpolation = draw.one(["linear", "linear", "linear", "nearest"])
    if draw.host.random() < 0.15:
        clean = gray(clean)
    noisy = clean + _white(clean[:, : 1 if draw.host.random() < 0.2 else 3], draw)
    top, left = (int(v) for v in draw.host.integers(16, size=2))
    moved = jpeg(F.pad(noisy, (left, 0, top, 0), mode="replicate"), quality, sampling, interpolation)
    return moved[..., top:, left:], clean


def chrominance(clean: Tensor, draw: Draw) -> Pair:
    """Noise of different strength in luma and in each chroma: what processing in YCbCr leaves."""
    n = len(clean)
    strengths = torch.cat([_levels(n, draw) * draw.each(n, 0.0, 1.3) for _ in range(3)], 1) / 255
    return rounded(to_rgb(to_ycc(clean) + draw.normal(*clean.shape) * strengths)), clean


def correlated(clean: Tensor, draw: Draw) -> Pair:
    """Noise that was blurred: by demosaicking, by resizing, by a codec. Its level is that after the blur."""
    n, _, height, width = clean.shape
    white = draw.normal(n, 3, height + 8, width + 8)
    kernels = []
    for _ in range(2):  # across and down, each with its own width
        kernel = gaussians(draw.uniform(0.35, 1.4, n, 1, 1), 4)
        kernels.append(kernel / kernel.square().sum(-1, keepdim=True).sqrt())
    noise = separable(white, *kernels)
    # From independent channels to equal ones: demosaicking mixes them.
    share = draw.each(n, 0, 1)
    noise = (noise * (1 - share) + noise.mean(1, keepdim=True) * share) * (
        ((1 - share) ** 2 + (2 * share * (1 - share) + share**2) / 3).rsqrt()
    )
    return rounded(clean + noise * _levels(n, draw) / 255), clean


def brightness(clean: Tensor, draw: Draw) -> Pair:
    """Noise that follows brightness: of photons, or of a tone curve that lifts the shadows; channels differ."""
    n = len(clean)
    slope = draw.each(n, -0.8, 0.8)
    channels = torch.cat([draw.each(n, 0.6, 1.4) for _ in range(3)], 1)
    level = _levels(n, draw) / 255 * (1 + slope * (2 * clean - 1)) * channels
    return _half_clipped(clean + draw.normal(*clean.shape) * level, draw), clean


def untouched(clean: Tensor, draw: Draw) -> Pair:
    """Nothing at all; one in five in gray."""
    clean = torch.where(draw.chance(len(clean), 0.2), gray(clean), clean)
    return clean, clean


Family = Callable[[Tensor, Draw], Pair]
FAMILIES: dict[Family, float] = {
    independent: 0.42,
    clipped: 0.10,
    equal: 0.04,
    grayscale: 0.10,
    halved: 0.10,
    compressed: 0.11,
    chrominance: 0.03,
    correlated: 0.03,
    brightness: 0.02,
    untouched: 0.05,
}
"""Every family with its share of the crops."""


def noise(clean: Tensor, draw: Draw) -> Pair:
    """A family per crop, its strength drawn blindly from 0 to 55 codes."""
    counts = draw.parts(len(clean), list(FAMILIES.values()))
    parts = [family(crops, draw) for family, crops in zip(FAMILIES, clean.split(counts), strict=True) if len(crops)]
    return torch.cat([degraded for degraded, _ in parts]), torch.cat([truth for _, truth in parts])


def _levels(count: int, draw: Draw) -> Tensor:
    """Standard deviations in codes, [count, 1, 1, 1]: weak noise is as common as it is hard to see."""
    even, weak = draw.each(count, 0, STRONGEST), draw.each(count, 0, STRONGEST / 5)
    return torch.where(draw.chance(count, 0.2), weak, even)


def _white(like: Tensor, draw: Draw) -> Tensor:
    return draw.normal(*like.shape) * _levels(len(like), draw) / 255


def _half_clipped(image: Tensor, draw: Draw) -> Tensor:
    return torch.where(draw.chance(len(image), 0.5), rounded(image), image)
