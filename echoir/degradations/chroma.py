"""Luma and chroma in batches: what JPEG and video make of a picture before they compress it.

All tensors are float32 [N, 3, H, W], RGB or YCbCr of BT.601 in full range; RGB in [0, 1], luma in [0, 1],
chroma around 0. Codes are 8-bit steps.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Siting = Literal["center", "left"]
Interpolation = Literal["linear", "bicubic", "nearest"]

RED, BLUE = 0.299, 0.114  # BT.601's shares of luma
_TO_YCC = torch.tensor(
    [
        [RED, 1 - RED - BLUE, BLUE],
        [-0.5 * RED / (1 - BLUE), -0.5 * (1 - RED - BLUE) / (1 - BLUE), 0.5],
        [0.5, -0.5 * (1 - RED - BLUE) / (1 - RED), -0.5 * BLUE / (1 - RED)],
    ]
)


def to_ycc(rgb: Tensor) -> Tensor:
    """RGB to YCbCr: JFIF's matrix."""
    return torch.einsum("dc,nchw->ndhw", _TO_YCC.to(rgb), rgb)


def to_rgb(ycc: Tensor) -> Tensor:
    """YCbCr to RGB, not clipped."""
    return torch.einsum("dc,nchw->ndhw", torch.linalg.inv(_TO_YCC).to(ycc), ycc)


def gray(rgb: Tensor) -> Tensor:
    """The luma of a picture in three equal channels."""
    return to_ycc(rgb)[:, :1].expand_as(rgb).contiguous()


def rounded(image: Tensor) -> Tensor:
    """Clipped to [0, 1] and rounded to 8-bit codes."""
    return (image.clamp(0, 1) * 255).round() / 255


def halve(plane: Tensor, axis: int, siting: Siting) -> Tensor:
    """Half the samples along an axis of even length.

    Args:
        plane: [..., H, W].
        axis: -2 or -1.
        siting: ``"center"``: the mean of two (JPEG); ``"left"``: (1, 2, 1)/4 around the even ones (MPEG-2, H.264).
    """
    even, odd = _take(plane, axis, 0), _take(plane, axis, 1)
    if siting == "center":
        return (even + odd) / 2
    return (_shifted(odd, axis, -1) + 2 * even + odd) / 4


def double(plane: Tensor, axis: int, siting: Siting, interpolation: Interpolation = "linear") -> Tensor:
    """Twice the samples along an axis.

    Args:
        plane: [N, C, H, W].
        axis: -2 or -1.
        siting: where the samples lie among those that are made.
        interpolation: ``"linear"`` is libjpeg's triangle filter and this project's pixel code for video;
            ``"bicubic"`` what swscale does unless told otherwise; ``"nearest"`` what quick decoders do.
    """
    if interpolation == "nearest":
        return plane.repeat_interleave(2, dim=axis)
    if siting == "center" and interpolation == "bicubic":
        height, width = plane.shape[-2:]
        size = (2 * height, width) if axis == -2 else (height, 2 * width)
        return F.interpolate(plane, size=size, mode="bicubic", align_corners=False)
    before, after = _shifted(plane, axis, -1), _shifted(plane, axis, 1)
    if siting == "center":
        return _interleave(0.75 * plane + 0.25 * before, 0.75 * plane + 0.25 * after, axis)
    half_way = (plane + after) / 2
    if interpolation == "bicubic":
        half_way = (9 * (plane + after) - before - _shifted(plane, axis, 2)) / 16
    return _interleave(plane, half_way, axis)


def subsample(
    ycc: Tensor,
    vertical: bool,
    siting: Siting,
    interpolation: Interpolation = "linear",
    noise: Tensor | None = None,
    steps: float | None = None,
) -> Tensor:
    """Chroma at half the columns, and half the rows if ``vertical``, and back.

    Args:
        ycc: sides even.
        vertical: 4:2:0; else 4:2:2.
        siting: across; down, samples lie between rows, as H.264's and JPEG's do.
        interpolation: of the way back.
        noise: added to the small planes, [N, 2, h, w].
        steps: the small planes are rounded to multiples of 1 / ``steps``.
    """
    luma, chroma = ycc[:, :1], halve(ycc[:, 1:], -1, siting)
    if vertical:
        chroma = halve(chroma, -2, "center")
    if noise is not None:
        chroma = chroma + noise
    if steps is not None:
        chroma = (chroma * steps).round() / steps
    if vertical:
        chroma = double(chroma, -2, "center", interpolation)
    return torch.cat([luma, double(chroma, -1, siting, interpolation)], 1)


def _take(plane: Tensor, axis: int, first: int) -> Tensor:
    return plane[..., first::2, :] if axis == -2 else plane[..., first::2]


def _shifted(plane: Tensor, axis: int, by: int) -> Tensor:
    """The sample ``by`` further along; past the border, the border's."""
    index = torch.arange(by, plane.shape[axis] + by, device=plane.device)
    return plane.index_select(axis, index.clamp(0, plane.shape[axis] - 1))


def _interleave(even: Tensor, odd: Tensor, axis: int) -> Tensor:
    return torch.stack([even, odd], -1).flatten(-2) if axis == -1 else torch.stack([even, odd], -2).flatten(-3, -2)
