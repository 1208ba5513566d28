"""Motion blur that changes over the picture: what a shutter sees while camera and things move.

A picture is the mean of what it was at many moments, in linear light. At each moment every pixel is
displaced: by the camera's path and its turning, more where the scene is near, and where something moves by
itself, by that.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from echoir.degradations.camera import linear, tone
from echoir.degradations.chroma import rounded
from echoir.degradations.draw import Draw
from echoir.degradations.jpeg import jpeg
from echoir.degradations.noise import Pair

LONGEST = 32  # pixels along the camera's path
MOMENTS = 21
TURN = 0.03  # radians, at most


def motion_blur(clean: Tensor, draw: Draw) -> Pair:
    """A random path of camera or things, blown-out highlights, a little noise, 8-bit rounding, JPEG for some.

    One crop in ten stays sharp: sharp pictures must come back as they were.
    """
    n, _, height, width = clean.shape
    # A saturated pixel was brighter than white: its smear must be, too.
    bright = torch.where(clean.amin(1, keepdim=True) > 0.97, draw.each(n, 1, 3), 1.0)
    light = linear(clean) * bright
    length = draw.each(n, 1, LONGEST) * ~draw.chance(n, 0.1)
    camera, thing = _path(n, draw) * length[:, 0], _path(n, draw) * draw.each(n, 0, LONGEST)[:, 0]
    turn = _path(n, draw)[..., :1] * draw.each(n, 0, TURN)[:, 0] * draw.chance(n, 0.5)[:, 0] * (length[:, 0] > 0)
    near = 1 + draw.each(n, 0, 0.8) * _field(n, height, width, draw)
    moving = torch.sigmoid(12 * (_field(n, height, width, draw) - draw.each(n, 0.1, 1.0)))
    moving = moving * draw.chance(n, 0.3) * (length > 0)
    y, x = torch.meshgrid(
        *(torch.arange(s, device=clean.device, dtype=torch.float32) for s in (height, width)), indexing="ij"
    )
    middle = torch.stack([(x - (width - 1) / 2), (y - (height - 1) / 2)])  # [2, H, W], in pixels
    across = torch.stack([-middle[1], middle[0]])
    scale = torch.tensor([2 / width, 2 / height], device=clean.device)
    total = torch.zeros_like(light)
    for moment in range(MOMENTS):
        shift = camera[:, moment, :, None, None] * near * (1 - moving) + thing[:, moment, :, None, None] * moving
        shift = shift + turn[:, moment, :, None, None] * across
        grid = (middle + shift).permute(0, 2, 3, 1) * scale
        total += F.grid_sample(light, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    blurred = tone(total / MOMENTS)
    blurred = torch.where(length > 0, blurred, clean)
    noisy = rounded(blurred + draw.normal(*clean.shape) * draw.each(n, 0, 2) / 255)
    count = n // 4
    if count:
        noisy = torch.cat([jpeg(noisy[:count], draw.each(count, 75, 98), draw.one(["420", "444"])), noisy[count:]])
    return noisy, clean


def _path(count: int, draw: Draw) -> Tensor:
    """Positions of a point with inertia that is pushed at random, of total length 1 and mean 0: [N, MOMENTS, 2].

    The idea of Boracchi and Foi, "Modeling the performance of image restoration from motion blur", 2012.
    """
    push = draw.uniform(0.0, 0.3, count, 1)  # 0 draws a straight line
    steps = 8 * MOMENTS
    turn = torch.cumsum(draw.normal(count, steps), 1) * push / math.sqrt(8 / 256 * steps)
    angle = draw.uniform(0, 2 * math.pi, count, 1) + turn
    speed = torch.exp(0.5 * torch.cumsum(draw.normal(count, steps), 1) / math.sqrt(steps))
    speed = speed / speed.sum(1, keepdim=True)
    path = torch.cumsum(torch.stack([speed * angle.cos(), speed * angle.sin()], -1), 1)
    path = path[:, 4::8]
    return path - path.mean(1, keepdim=True)


def _field(count: int, height: int, width: int, draw: Draw) -> Tensor:
    """A smooth random picture between -1 and 1: [N, 1, H, W]."""
    coarse = draw.uniform(-1, 1, count, 1, 4, 4)
    return F.interpolate(coarse, (height, width), mode="bicubic", align_corners=True).clamp(-1, 1)
