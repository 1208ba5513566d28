"""Rain: layers of real streaks where there are pairs, synthetic ones else."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from echoir.degradations.chroma import rounded
from echoir.degradations.draw import Draw
from echoir.degradations.noise import Pair

REACH = 22  # half the side of a streak's square


def rain(clean: Tensor, draw: Draw) -> Pair:
    """Bright streaks of one direction and up to three widths; one crop in ten is dry."""
    n, _, height, width = clean.shape
    layer = torch.zeros(n, 1, height, width, device=clean.device)
    angle = draw.normal(n, 1, 1, 1) * 0.25  # from the vertical
    for index in range(3):
        size = (n, 1, height, width)
        drops = (draw.uniform(0, 1, *size) < draw.each(n, 1e-4, 1.5e-3)) * draw.uniform(0.5, 1, *size)
        streak = _streak(draw.each(n, 8, 40), draw.each(n, 0.5, 1.2), angle)
        layer = layer + _convolved(drops, streak) * (True if index == 0 else draw.chance(n, 0.5))
    strength = draw.each(n, 0.15, 0.8) * ~draw.chance(n, 0.1)
    return rounded(clean + strength * layer.clamp(0, 1)), clean


def rained_on(clean: Tensor, layer: Tensor, draw: Draw) -> Pair:
    """A real layer (degraded - clean of a pair) on another picture: mirrored, stronger or weaker, tilted, stretched."""
    n = len(layer)
    layer = torch.where(draw.chance(n, 0.5), layer.flip(-1), layer)
    tilt, tall = draw.each(n, -0.3, 0.3).view(n), draw.each(n, 0.8, 1.25).view(n)
    zero = torch.zeros_like(tilt)
    grid = F.affine_grid(
        torch.stack([torch.stack([tall, tilt, zero], 1), torch.stack([zero, tall, zero], 1)], 1),
        list(layer.shape),
        align_corners=False,
    )
    tilted = F.grid_sample(layer, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    layer = torch.where(draw.chance(n, 0.5), tilted, layer)
    strength = torch.where(draw.chance(n, 0.5), draw.each(n, 0.5, 1.6), 1.0) * ~draw.chance(n, 0.05)
    return rounded(clean + layer * strength), clean


def _streak(length: Tensor, thickness: Tensor, angle: Tensor) -> Tensor:
    """Soft lines of peak 1 around the centre of an odd square: [N, 1, side, side]."""
    along = torch.arange(-REACH, REACH + 1, device=length.device, dtype=torch.float32)
    y, x = along[:, None], along[None, :]
    down, across = y * angle.cos() + x * angle.sin(), x * angle.cos() - y * angle.sin()
    return torch.exp(-((across / thickness) ** 2) / 2) * (down.abs() <= length / 2)


def _convolved(image: Tensor, kernel: Tensor) -> Tensor:
    """Each picture with its own kernel of odd side, by FFT; zeros outside: [N, 1, H, W]."""
    size = [image.shape[axis] + kernel.shape[axis] - 1 for axis in (-2, -1)]
    product = torch.fft.rfft2(image, s=size) * torch.fft.rfft2(kernel, s=size)
    top, left = (kernel.shape[axis] // 2 for axis in (-2, -1))
    return torch.fft.irfft2(product, s=size)[..., top : top + image.shape[-2], left : left + image.shape[-1]]
