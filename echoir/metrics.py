"""Image quality as the restoration field computes it. NumPy only; SSIM comes from scikit-image."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from echoir.runtime.errors import MissingExtraError


def psnr(a: NDArray[Any], b: NDArray[Any], peak: float = 1.0) -> float:
    """Peak signal-to-noise ratio in dB over all elements; ``inf`` for equal arrays.

    Args:
        a, b: arrays of one shape, on one scale.
        peak: the largest value of that scale (1.0, 255, 65535).

    Raises:
        ValueError: shapes differ.
    """
    if a.shape != b.shape:
        raise ValueError(f"psnr needs equal shapes, got {a.shape} and {b.shape}")
    mse = float(np.mean(np.square(a.astype(np.float64) - b.astype(np.float64))))
    return math.inf if mse == 0 else 10 * math.log10(peak**2 / mse)


def ssim(a: NDArray[Any], b: NDArray[Any], peak: float = 1.0) -> float:
    """Structural similarity (Wang et al. 2004: Gaussian window, sigma 1.5), mean over colour channels.

    Args:
        a, b: [H, W] or [H, W, 3], both sides at least 11 pixels.
        peak: the largest value of the scale.

    Raises:
        MissingExtraError: scikit-image is not installed.
    """
    try:
        from skimage.metrics import structural_similarity
    except ImportError:
        raise MissingExtraError("scikit-image", "train") from None
    return float(
        structural_similarity(
            a.astype(np.float64),
            b.astype(np.float64),
            data_range=peak,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            channel_axis=2 if a.ndim == 3 else None,
        )
    )


def luma(rgb: NDArray[Any]) -> NDArray[np.float64]:
    """Y of BT.601 in studio range, as MATLAB's ``rgb2ycbcr``: [..., 3] in [0, 1] to [...] in [16, 235] / 255."""
    weights: NDArray[np.float64] = np.array([65.481, 128.553, 24.966]) / 255
    return rgb.astype(np.float64) @ weights + 16 / 255


def to_8bit(image: NDArray[Any]) -> NDArray[np.uint8]:
    """[0, 1] floats clipped and rounded to the nearest 8-bit code."""
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
