"""Noise of real cameras: made on the sensor, then taken through what a camera does to it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from echoir.degradations.chroma import to_rgb, to_ycc
from echoir.degradations.draw import Draw
from echoir.degradations.filters import gaussians, separable
from echoir.degradations.jpeg import Sampling, jpeg
from echoir.degradations.noise import Pair, noise

# Ranges of white balance and of the noise's two parts follow Brooks et al., "Unprocessing images for
# learned raw denoising" (arXiv:1811.11127), section 3.
RED_GAIN, BLUE_GAIN = (1.9, 2.4), (1.5, 1.9)
SHOT = (1e-4, 1.2e-2)
# From camera to sRGB primaries: how a typical sensor's overlapping filters are set apart.
COLOUR_MATRIX = ((1.7, -0.6, -0.1), (-0.2, 1.5, -0.3), (0.0, -0.5, 1.5))
JPEG_QUALITY = (70.0, 99.0)
CAMERA_SHARE = 0.8
PROCESSED_SHARE = 0.5


def camera_noise(clean: Tensor, draw: Draw) -> Pair:
    """Poisson-Gaussian noise of a sensor, through demosaicking, white balance, colour matrix and tone curve.

    The picture is first taken back to the sensor (the inverse of those steps), as Brooks et al. do.
    What the camera makes of the noisy sensor is compared with what it makes of the noiseless one,
    and only the difference is added: the blur of demosaicking is no noise. Half of it is then processed as cameras
    process their pictures. Two thirds of the results go through JPEG, all are rounded to 8 bits.
    """
    n = len(clean)
    gains = torch.cat(
        [draw.each(n, *RED_GAIN), torch.ones(n, 1, 1, 1, device=clean.device), draw.each(n, *BLUE_GAIN)], 1
    )
    strength = draw.each(n, 0, 1).view(n, 1, 1)  # colour matrices differ between cameras: from none to COLOUR_MATRIX
    matrix = torch.lerp(torch.eye(3, device=clean.device), torch.tensor(COLOUR_MATRIX, device=clean.device), strength)
    sensor = (_mixed(torch.linalg.inv(matrix), linear(clean)) / gains).clamp(0, 1)
    shot = draw.log_each(n, *SHOT)
    read = torch.exp(2.18 * shot.log() + 1.2 + 0.26 * draw.normal(n, 1, 1, 1))
    noisy = (sensor + (shot * sensor + read).sqrt() * draw.normal(*sensor.shape)).clamp(0, 1)
    phase = int(draw.host.integers(2)), int(draw.host.integers(2))
    difference = _developed(noisy, phase, gains, matrix) - _developed(sensor, phase, gains, matrix)
    difference = torch.where(draw.chance(n, PROCESSED_SHARE), _processed(difference, draw), difference)
    degraded = (clean + difference).clamp(0, 1)
    count = round(n * 2 / 3)
    sampling: Sampling = draw.one(["420", "420", "422", "444"])
    if count:
        head = jpeg(degraded[:count], draw.each(count, *JPEG_QUALITY), sampling)
        degraded = torch.cat([head, degraded[count:]])
    return (degraded * 255).round() / 255, clean


def camera_and_other_noise(clean: Tensor, draw: Draw) -> Pair:
    """Mostly :func:`camera_noise`, the families of ``denoise`` for the rest: no model of a camera is every camera."""
    parts = draw.parts(len(clean), [CAMERA_SHARE, 1 - CAMERA_SHARE])
    made = [f(crops, draw) for f, crops in zip((camera_noise, noise), clean.split(parts), strict=True) if len(crops)]
    return torch.cat([degraded for degraded, _ in made]), torch.cat([truth for _, truth in made])


def _processed(noise: Tensor, draw: Draw) -> Tensor:
    """What a camera's own denoising and sharpening leave of noise: its fine part damped or lifted, colour damped more.

    A denoiser takes the fine part and leaves the coarse one, the blotches of camera pictures.
    """
    n, reach = len(noise), 8
    # A width of 0.1 pixels leaves all as it is.
    widths = torch.cat([draw.uniform(0.1, 1.6, n, 1, 1), draw.uniform(0.1, 3.0, n, 1, 1).expand(n, 2, 1)], 1)
    fine = torch.cat([draw.each(n, 0, 1.8), draw.each(n, 0, 1).expand(n, 2, 1, 1)], 1)
    kernel = gaussians(widths, reach)
    kernel = kernel / kernel.sum(-1, keepdim=True)
    ycc = to_ycc(noise)
    coarse = separable(F.pad(ycc, (reach,) * 4, mode="reflect"), kernel, kernel)
    return to_rgb(coarse + fine * (ycc - coarse))


def mosaicked(clean: Tensor, draw: Draw) -> Pair:
    """One colour per pixel, red at even rows and columns (RGGB), and the others from their neighbours, bilinear."""
    red_first = (0, 0)
    return _demosaicked(clean, red_first), clean


def linear(image: Tensor) -> Tensor:
    """sRGB to linear light (IEC 61966-2-1)."""
    return torch.where(image <= 0.04045, image / 12.92, ((image.clamp_min(0) + 0.055) / 1.055) ** 2.4)


def tone(light: Tensor) -> Tensor:
    """Linear light to sRGB, clipped to [0, 1]."""
    light = light.clamp(0, 1)
    return torch.where(light <= 0.0031308, 12.92 * light, 1.055 * light.clamp_min(1e-8) ** (1 / 2.4) - 0.055)


def _mixed(matrix: Tensor, image: Tensor) -> Tensor:
    return torch.einsum("ndc,nchw->ndhw", matrix, image)


def _developed(sensor: Tensor, phase: tuple[int, int], gains: Tensor, matrix: Tensor) -> Tensor:
    """What a camera makes of sensor values, of which it sees one colour per pixel."""
    return tone(_mixed(matrix, _demosaicked(sensor, phase) * gains))


def _demosaicked(sensor: Tensor, phase: tuple[int, int]) -> Tensor:
    """Bilinear, from one colour per pixel: red where row and column, counted from ``phase``, are even."""
    height, width = sensor.shape[-2:]
    row = (torch.arange(height, device=sensor.device)[:, None] + phase[0]) % 2
    column = (torch.arange(width, device=sensor.device) + phase[1]) % 2
    seen = torch.stack([(row + column) == 0, row != column, (row + column) == 2]).to(sensor.dtype)
    tent = (
        torch.tensor([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]], device=sensor.device).expand(3, 1, 3, 3) / 4
    )

    def near(values: Tensor) -> Tensor:
        return F.conv2d(F.pad(values, (1, 1, 1, 1), mode="reflect"), tent, groups=3)

    return torch.where(seen > 0, sensor, near(sensor * seen) / near(seen[None]))
