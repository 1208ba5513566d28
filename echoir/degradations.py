"""What the tasks undo: clean pixels in, degraded pixels out. NumPy only.

Every function takes float32 [H, W, 3] RGB in [0, 1] and a generator, so a degradation is
reproducible from a seed alone.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Degradation = Callable[[NDArray[np.float32], np.random.Generator], NDArray[np.float32]]

BLIND_SIGMA = (0.0, 55.0)


def gaussian_noise(clean: NDArray[np.float32], sigma: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Add white Gaussian noise; the result is not clipped, as the denoising literature does it.

    Args:
        sigma: standard deviation in 8-bit codes.
    """
    return clean + rng.standard_normal(clean.shape, dtype=np.float32) * np.float32(sigma / 255)


def blind_gaussian_noise(clean: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Gaussian noise of a level drawn uniformly from 0 to 55 codes."""
    return gaussian_noise(clean, rng.uniform(*BLIND_SIGMA), rng)


TASKS: dict[str, Degradation] = {"denoise": blind_gaussian_noise}
