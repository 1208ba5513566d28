"""Image quality as the restoration field computes it. NumPy; SSIM comes from scikit-image, LPIPS from lpips."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from echoir.runtime.errors import BackendError, MissingExtraError


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


def perceptual_distance(a: NDArray[Any], b: NDArray[Any]) -> float:
    """LPIPS 0.1 with AlexNet (Zhang et al. 2018), by its authors' package: 0 for equal pictures, less is better.

    Args:
        a, b: [H, W, 3] RGB in [0, 1].

    Raises:
        BackendError: the package ``lpips`` is not installed, or the weights of AlexNet, which torchvision fetches
            once, cannot be had.
    """
    import torch

    pair = [torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1), np.float32))[None] for image in (a, b)]
    with torch.inference_mode():
        return float(_lpips()(*pair, normalize=True))


@cache
def _lpips() -> Any:
    try:
        from lpips import LPIPS
    except ImportError:
        raise BackendError("lpips is not installed; run: pip install lpips") from None
    try:
        return LPIPS(net="alex", verbose=False).eval()
    except OSError as error:
        raise BackendError(f"lpips: the weights of AlexNet cannot be had ({error})") from None


def luma(rgb: NDArray[Any]) -> NDArray[np.float64]:
    """Y of BT.601 in studio range, as MATLAB's ``rgb2ycbcr``: [..., 3] in [0, 1] to [...] in [16, 235] / 255."""
    weights: NDArray[np.float64] = np.array([65.481, 128.553, 24.966]) / 255
    return rgb.astype(np.float64) @ weights + 16 / 255


def to_8bit(image: NDArray[Any]) -> NDArray[np.uint8]:
    """[0, 1] floats clipped and rounded to the nearest 8-bit code."""
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
