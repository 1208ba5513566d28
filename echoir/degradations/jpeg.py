"""What JPEG does to a batch of pictures, without the bytes: colour, chroma, blocks, quantization (ITU-T T.81).

A stand-in for training, where every crop needs its own quality; evaluation goes through libjpeg itself.
``tests/test_degradations.py`` holds the two together.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from echoir.degradations.chroma import Interpolation, double, halve, rounded, to_rgb, to_ycc
from echoir.degradations.draw import Draw

Sampling = Literal["444", "422", "420"]
QUALITY = (10.0, 95.0)
SHARES: dict[Sampling, float] = {"420": 2.0, "422": 1.0, "444": 1.0}  # what cameras and sites write

# T.81, tables K.1 and K.2: what libjpeg scales by its quality.
_LUMA = """16 11 10 16 24 40 51 61      12 12 14 19 26 58 60 55
           14 13 16 24 40 57 69 56      14 17 22 29 51 87 80 62
           18 22 37 56 68 109 103 77    24 35 55 64 81 104 113 92
           49 64 78 87 103 121 120 101  72 92 95 98 112 100 103 99"""
_CHROMA = """17 18 24 47 99 99 99 99  18 21 26 66 99 99 99 99
             24 26 56 99 99 99 99 99  47 66 99 99 99 99 99 99
             99 99 99 99 99 99 99 99  99 99 99 99 99 99 99 99
             99 99 99 99 99 99 99 99  99 99 99 99 99 99 99 99"""


def compressed(clean: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
    """JPEG of a quality of its own for every crop. Half of the grids of blocks begin at the crop's corner, as in a
    file; the others anywhere, as in a part of one."""
    degraded = []
    for sampling, crops in zip(SHARES, clean.split(draw.parts(len(clean), list(SHARES.values()))), strict=True):
        for place, part in enumerate(crops.split([len(crops) // 2, len(crops) - len(crops) // 2])):
            if len(part):
                down, across = (int(draw.host.integers(16)) * place for _ in range(2))
                grown = F.pad(part, (across, 0, down, 0), mode="replicate")
                degraded.append(jpeg(grown, draw.each(len(part), *QUALITY), sampling)[..., down:, across:])
    return torch.cat(degraded), clean


def jpeg(image: Tensor, quality: Tensor, sampling: Sampling, interpolation: Interpolation = "linear") -> Tensor:
    """A picture after JPEG.

    Args:
        image: float32 [N, 3, H, W] RGB in [0, 1]; it is clipped and rounded to 8 bits first.
        quality: [N, 1, 1, 1], 1 to 100, as libjpeg counts it.
        sampling: of chroma.
        interpolation: how the decoder brings chroma back; libjpeg's is linear.

    Returns:
        [N, 3, H, W] in [0, 1], 8-bit codes.
    """
    height, width = image.shape[-2:]
    grown = F.pad(image, (0, -width % 16, 0, -height % 16), mode="replicate")
    ycc = (to_ycc(rounded(grown)) * 255).round()
    luma, chroma = ycc[:, :1] - 128, ycc[:, 1:]
    if sampling != "444":
        chroma = halve(chroma, -1, "center")
    if sampling == "420":
        chroma = halve(chroma, -2, "center")
    luma = _quantized(luma, _table(_LUMA, quality)) + 128
    chroma = _quantized(chroma.round(), _table(_CHROMA, quality))
    luma, chroma = luma.round().clamp(0, 255), chroma.round().clamp(-128, 127)
    if sampling == "420":
        chroma = double(chroma, -2, "center", interpolation)
    if sampling != "444":
        chroma = double(chroma, -1, "center", interpolation).round()
    return rounded(to_rgb(torch.cat([luma, chroma], 1) / 255))[..., :height, :width]


def _table(text: str, quality: Tensor) -> Tensor:
    """The quantization table of each picture: [N, 1, 1, 8, 1, 8]."""
    table = torch.tensor([float(entry) for entry in text.split()], device=quality.device).view(1, 1, 1, 8, 1, 8)
    quality = quality.round().view(-1, 1, 1, 1, 1, 1)
    scale = torch.where(quality < 50, 5000 / quality, 200 - 2 * quality)
    return ((table * scale + 50) / 100).floor().clamp(1, 255)


def _quantized(plane: Tensor, table: Tensor) -> Tensor:
    """The plane from its rounded coefficients, 8 x 8 at a time."""
    n, c, height, width = plane.shape
    k = torch.arange(8, device=plane.device, dtype=plane.dtype)
    cosines = torch.cos((2 * k + 1) * k[:, None] * (math.pi / 16)) / 2
    cosines[0] /= math.sqrt(2)
    blocks = plane.reshape(n, c, height // 8, 8, width // 8, 8)
    coefficients = torch.einsum("ui,vj,ncyixj->ncyuxv", cosines, cosines, blocks)
    coefficients = (coefficients / table).round() * table
    return torch.einsum("ui,vj,ncyuxv->ncyixj", cosines, cosines, coefficients).reshape(plane.shape)
