"""What the tasks undo: clean pixels in, degraded pixels out. NumPy and SciPy, no PyTorch.

Every degradation takes float32 [H, W, 3] RGB in [0, 1] of any size and a generator, and returns
float32 of the same size, so a degradation is reproducible from a seed alone. Borders are reflected.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import convolve
from scipy.signal import fftconvolve

from echoir.metrics import to_8bit

Pixels = NDArray[np.float32]
Degradation = Callable[[Pixels, np.random.Generator], Pixels]

BLIND_SIGMA = (0.0, 55.0)
CLIPPED_SHARE = 0.25

# Camera noise. Ranges of white balance and of the noise's two parts follow Brooks et al.,
# "Unprocessing images for learned raw denoising" (arXiv:1811.11127), section 3.
RED_GAIN, BLUE_GAIN = (1.9, 2.4), (1.5, 1.9)
SHOT = (1e-4, 1.2e-2)
# From camera to sRGB primaries: how a typical sensor's overlapping filters are set apart.
COLOUR_MATRIX = np.array([[1.7, -0.6, -0.1], [-0.2, 1.5, -0.3], [0.0, -0.5, 1.5]])
JPEG_QUALITY = (70, 99)

LONGEST_BLUR = 32  # pixels along the camera's path


def gaussian_noise(clean: Pixels, sigma: float, rng: np.random.Generator) -> Pixels:
    """Add white Gaussian noise; the result is not clipped, as the denoising literature does it.

    Args:
        sigma: standard deviation in 8-bit codes.
    """
    return clean + rng.standard_normal(clean.shape, dtype=np.float32) * np.float32(sigma / 255)


def blind_gaussian_noise(clean: Pixels, rng: np.random.Generator) -> Pixels:
    """Gaussian noise of a level drawn uniformly from 0 to 55 codes; one crop in four is clipped, as a file would be."""
    noisy = gaussian_noise(clean, rng.uniform(*BLIND_SIGMA), rng)
    return noisy.clip(0, 1) if rng.random() < CLIPPED_SHARE else noisy


def camera_noise(clean: Pixels, rng: np.random.Generator) -> Pixels:
    """Poisson-Gaussian noise of a sensor, taken through demosaicking, white balance, colour matrix and tone curve.

    The picture is first taken back to the sensor (the inverse of those steps), as Brooks et al. do.
    What the camera makes of the noisy sensor is compared with what it makes of the noiseless one,
    and only the difference is added: the blur of demosaicking is no noise. Half of the results
    went through JPEG, all are rounded to 8 bits.
    """
    gains = np.array([rng.uniform(*RED_GAIN), 1.0, rng.uniform(*BLUE_GAIN)])
    strength = rng.uniform()  # colour matrices differ between cameras: from none to COLOUR_MATRIX
    matrix = (1 - strength) * np.eye(3) + strength * COLOUR_MATRIX
    sensor = (_linear(clean) @ np.linalg.inv(matrix).T / gains).clip(0, 1)
    log_shot = rng.uniform(*np.log(SHOT))
    read = np.exp(2.18 * log_shot + 1.2 + 0.26 * rng.standard_normal())
    deviation = np.sqrt(np.exp(log_shot) * sensor + read)
    noisy = (sensor + deviation * rng.standard_normal(sensor.shape)).clip(0, 1)
    phase = tuple(rng.integers(2, size=2))
    noise = _develop(noisy, phase, gains, matrix) - _develop(sensor, phase, gains, matrix)
    degraded = (clean + noise).clip(0, 1)
    if rng.random() < 0.5:
        return _jpeg(degraded, int(rng.integers(*JPEG_QUALITY)))
    return _rounded(degraded)


def camera_shake(clean: Pixels, rng: np.random.Generator) -> Pixels:
    """Motion blur along a random path, in linear light, with blown-out highlights, a little noise, 8-bit rounding."""
    kernel = shake_kernel(rng.uniform(1, LONGEST_BLUR), rng)
    radius = kernel.shape[0] // 2
    # A saturated pixel was brighter than white: its smear must be, too.
    light = _linear(clean) * np.where(clean.min(-1, keepdims=True) > 0.97, rng.uniform(1, 3), 1)
    padded = np.pad(light, [(radius, radius), (radius, radius), (0, 0)], mode="symmetric")
    blurred = fftconvolve(padded, kernel[..., None], mode="valid", axes=(0, 1))
    return _rounded(gaussian_noise(_tone(blurred), rng.uniform(0, 2), rng))


def shake_kernel(length: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """The path of a hand-held camera as a blur kernel: odd square, non-negative, sum 1, centred on its centroid.

    The path is a point with inertia that is pushed at random (the idea of Boracchi and Foi,
    "Modeling the performance of image restoration from motion blur", 2012).

    Args:
        length: of the path, in pixels.
    """
    steps = 256
    push = rng.uniform(0.0, 0.3)  # 0 draws a straight line
    turn = np.cumsum(rng.standard_normal(steps)) * push / np.sqrt(8)
    speed = np.exp(0.5 * np.cumsum(rng.standard_normal(steps)) / np.sqrt(steps))
    path = np.cumsum(speed * np.exp(1j * (rng.uniform(0, 2 * np.pi) + turn)))
    path *= length / speed.sum()
    path -= path.mean()
    radius = int(np.ceil(np.abs([path.real, path.imag]).max())) + 1
    kernel = np.zeros((2 * radius + 1,) * 2)
    x, y = path.real + radius, path.imag + radius
    left, top = x.astype(int), y.astype(int)
    for dy, wy in ((0, top + 1 - y), (1, y - top)):
        for dx, wx in ((0, left + 1 - x), (1, x - left)):
            np.add.at(kernel, (top + dy, left + dx), wy * wx)
    return kernel / kernel.sum()


def rain(clean: Pixels, rng: np.random.Generator) -> Pixels:
    """Synthetic rain: bright streaks of one direction and several widths, for want of real layers."""
    height, width = clean.shape[:2]
    streaks = np.zeros((height, width))
    angle = rng.normal(0, 0.25)  # from the vertical
    for _ in range(int(rng.integers(1, 4))):
        length, thickness = rng.uniform(8, 40), rng.uniform(0.5, 1.2)
        drops = (rng.random((height, width)) < rng.uniform(1e-4, 1e-3)) * rng.uniform(0.5, 1, (height, width))
        streaks += fftconvolve(drops, _streak(length, thickness, angle), mode="same")
    return _rounded(clean + np.float32(rng.uniform(0.2, 0.7)) * streaks[..., None].clip(0, 1).astype(np.float32))


@dataclass(frozen=True)
class Task:
    """How pictures are degraded for a task.

    Attributes:
        degrade: what training crops go through.
        margin: pixels around a crop that ``degrade`` draws on.
        turns: whether crops may be turned by 90 degrees; rain falls downwards.
        additive: the difference of a pair can be put on another clean picture.
        luma: figures are those of the Y channel.
        checks: degradations of fixed strength, by name, that the held-out pictures are watched with.
    """

    degrade: Degradation
    margin: int = 0
    turns: bool = True
    additive: bool = False
    luma: bool = False
    checks: Mapping[str, Degradation] = field(default_factory=dict)


TASKS: dict[str, Task] = {
    "denoise": Task(
        blind_gaussian_noise,
        checks={f"sigma{sigma}": partial(lambda c, r, s: gaussian_noise(c, s, r), s=sigma) for sigma in (15, 25, 50)},
    ),
    "realnoise": Task(camera_noise, margin=4),
    "derain": Task(rain, turns=False, additive=True, luma=True),
    "deblur": Task(camera_shake, margin=LONGEST_BLUR // 2 + 1),
}


def _linear(image: NDArray[np.floating]) -> NDArray[np.float64]:
    """sRGB to linear light (IEC 61966-2-1)."""
    values = image.astype(np.float64)
    return np.where(values <= 0.04045, values / 12.92, ((values.clip(0) + 0.055) / 1.055) ** 2.4)


def _tone(light: NDArray[np.float64]) -> Pixels:
    """Linear light to sRGB, clipped to [0, 1]."""
    light = light.clip(0, 1)
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055).astype(np.float32)


def _develop(
    sensor: NDArray[np.float64], phase: tuple[int, ...], gains: NDArray[np.float64], matrix: NDArray[np.float64]
) -> Pixels:
    """What a camera makes of sensor values [H, W, 3], of which it sees one colour per pixel."""
    y, x = np.mgrid[: sensor.shape[0], : sensor.shape[1]]
    row, column = (y + phase[0]) % 2, (x + phase[1]) % 2
    tent = np.array([[1, 2, 1], [2, 4, 2], [1, 2, 1]]) / 4
    planes = []
    for channel, seen in enumerate(((row == 0) & (column == 0), row != column, (row == 1) & (column == 1))):
        values = sensor[..., channel]
        near = convolve(values * seen, tent, mode="mirror") / convolve(seen.astype(float), tent, mode="mirror")
        planes.append(np.where(seen, values, near))
    return _tone(np.stack(planes, -1) * gains @ matrix.T)


def _streak(length: float, thickness: float, angle: float) -> NDArray[np.float64]:
    """A soft line of peak 1 around the centre of an odd square."""
    radius = int(length / 2) + 2
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    along, across = y * np.cos(angle) + x * np.sin(angle), x * np.cos(angle) - y * np.sin(angle)
    line: NDArray[np.float64] = np.exp(-((across / thickness) ** 2) / 2) * (np.abs(along) <= length / 2)
    return line


def _jpeg(image: Pixels, quality: int) -> Pixels:
    stream = io.BytesIO()
    Image.fromarray(to_8bit(image)).save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(stream), np.float32) / np.float32(255)


def _rounded(image: NDArray[np.floating]) -> Pixels:
    return to_8bit(image).astype(np.float32) / np.float32(255)
