"""What the pictures of a set become for one network: reduced, gray, a mosaic; and the truth beside them."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from echoir.metrics import to_8bit
from echoir.resize import resize
from echoir.runtime.channels import route
from echoir.runtime.descriptor import Descriptor
from echoir.runtime.errors import ImageError

Floats = NDArray[np.float32]


def mosaic(network: Descriptor) -> int:
    """Pixels of a picture for each that the network takes, each side."""
    return 2 if network.input == "RGGB" else 1


def enlargement(network: Descriptor) -> int:
    """Pixels of the result for each of the picture, each side.

    Raises:
        ImageError: the result is smaller than the picture.
    """
    factor, rest = divmod(network.scale, mosaic(network))
    if rest or not factor:
        raise ImageError(
            f"{network.name} gives less than a pixel for each of a mosaic; there is no truth to compare with"
        )
    return factor


def fitted(degraded: Floats, truth: Floats, network: Descriptor) -> tuple[Floats, Floats]:
    """A picture as a network takes it, and the truth as it gives it.

    Args:
        degraded: [H, W, 3] RGB in [0, 1]. Where it has the size of ``truth`` and the network enlarges, it is reduced
            as the field does: bicubic with its kernel stretched, rounded to 8 bits.
        truth: [H, W, 3].
        network: what it is for.

    Returns:
        The picture, [h, w, 3], [h, w] or [h, w, 6], as :class:`echoir.runtime.Restorer` takes it; and the truth of the
        size that comes out, [H, W, 3], gray in all three.

    Raises:
        ImageError: sizes that do not belong together.
    """
    factor, cell = enlargement(network), mosaic(network)
    if degraded.shape == truth.shape:
        step = factor * cell
        height, width = (size // step * step for size in truth.shape[:2])
        degraded, truth = degraded[:height, :width], truth[:height, :width]
        if factor > 1 and degraded.size:
            degraded = (to_8bit(resize(degraded, Fraction(1, factor))) / np.float32(255)).astype(np.float32)
    needed = tuple(factor * size for size in degraded.shape[:2])
    if truth.shape[:2] != needed:
        found = " x ".join(map(str, truth.shape[1::-1]))
        raise ImageError(f"the truth is {found}, and {network.name} makes {needed[1]} x {needed[0]} of this input")
    if network.output == "gray" and network.input != "gray":
        truth = np.repeat(truth.mean(axis=2, keepdims=True), 3, axis=2)
    return _picture(degraded, network), truth


def planes(picture: Floats, network: Descriptor) -> Floats:
    """What :func:`fitted` gave as the tensor of one run, [1, C, h, w]."""
    if network.input == "gray" and picture.ndim == 3:
        picture = picture.mean(axis=2)
    packed = route(network, 1 if picture.ndim == 2 else picture.shape[2]).packed(picture)
    packed = packed[..., None] if packed.ndim == 2 else packed
    return np.ascontiguousarray(packed.transpose(2, 0, 1)[None], np.float32)


def _picture(degraded: Floats, network: Descriptor) -> Floats:
    if network.input == "RGB pair":
        return np.concatenate([degraded, degraded], axis=2)
    if network.input == "gray" and network.output != "gray":
        return np.ascontiguousarray(degraded.mean(axis=2))
    if network.input == "RGGB":
        sensor = degraded[..., 1].copy()
        sensor[0::2, 0::2], sensor[1::2, 1::2] = degraded[0::2, 0::2, 0], degraded[1::2, 1::2, 2]
        return sensor
    return degraded
