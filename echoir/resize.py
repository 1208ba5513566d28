"""Bicubic resizing as MATLAB's ``imresize``, which the literature on super-resolution reduces its pictures with.

Keys' cubic with a = -1/2 (Keys 1981); where a picture is reduced, the kernel is stretched by the factor, which keeps
finer detail from folding over; beyond the border the picture is mirrored, its first pixel repeated.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def resize(image: Floats, scale: Fraction | int) -> Floats:
    """A picture at another size.

    Args:
        image: [H, W] or [H, W, C].
        scale: output pixels per input pixel, each side; sizes round up.

    Returns:
        float32 of the new size, not clipped: a cubic overshoots at edges.
    """
    scale = Fraction(scale)
    rows, columns = (axis_weights(size, scale) for size in image.shape[:2])
    tall = np.tensordot(rows, image.astype(np.float64), axes=(1, 0))
    wide = np.tensordot(columns, tall, axes=(1, 1))
    return np.ascontiguousarray(np.moveaxis(wide, 0, 1), np.float32)


def axis_weights(size: int, scale: Fraction) -> NDArray[np.float64]:
    """[output size, size]: the share of every pixel of an axis in every new one."""
    stretch = min(float(scale), 1.0)
    length = -(-size * scale.numerator // scale.denominator)
    centre = (np.arange(length) + 0.5) / float(scale) - 0.5  # in pixels of the input
    reach = int(np.ceil(2 / stretch)) + 1
    index = np.floor(centre)[:, None].astype(int) + np.arange(-reach, reach + 1)
    share = _cubic((centre[:, None] - index) * stretch)
    share /= share.sum(axis=1, keepdims=True)
    mirrored = index % (2 * size)
    mirrored = np.minimum(mirrored, 2 * size - 1 - mirrored)
    weights = np.zeros((length, size))
    np.add.at(weights, (np.arange(length)[:, None], mirrored), share)
    return weights


def _cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))
