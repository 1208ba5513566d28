"""Filters of which every crop of a batch has its own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def gaussians(widths: Tensor, reach: int) -> Tensor:
    """Bells of peak 1: standard deviations in pixels, of any shape with a last axis of 1 -> [..., 2 reach + 1]."""
    places = torch.arange(-reach, reach + 1, device=widths.device, dtype=torch.float32)
    return torch.exp(-((places / widths) ** 2) / 2)


def separable(image: Tensor, across: Tensor, down: Tensor) -> Tensor:
    """Each plane filtered along rows, then columns, where the kernel fits: no padding.

    Args:
        image: [N, C, H, W].
        across: [N, C or 1, S], S odd.
        down: likewise.

    Returns:
        [N, C, H - S + 1, W - S + 1].
    """
    n, c, height, width = image.shape
    planes = image.reshape(1, n * c, height, width)
    across, down = (kernel.expand(n, c, -1).reshape(n * c, 1, -1) for kernel in (across, down))
    planes = F.conv2d(planes, across.unsqueeze(2), groups=n * c)
    planes = F.conv2d(planes, down.unsqueeze(3), groups=n * c)
    return planes.view(n, c, *planes.shape[-2:])
