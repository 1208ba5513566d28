"""Images as callers have them: what :class:`~echoir.runtime.restorer.Restorer` takes, and what it says to the rest."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from echoir.runtime.channels import PEAKS, Route, enlarged, route
from echoir.runtime.contract import Array
from echoir.runtime.descriptor import CHANNELS, Descriptor
from echoir.runtime.errors import ImageError

Colour = Literal["RGB", "BGR"]
SHAPES = "an image is [H, W, 3], [H, W], [H, W, 1] or [H, W, 4], or several of one size [N, H, W, 1, 3 or 4]"
BRIGHTEST = 16.0  # where 1 is white; a noisy or a linear picture has less, one in 0 to 255 more unless it is black


@dataclass(frozen=True)
class Part:
    """One image of those given, without its alpha.

    Args:
        rows: ``rows(y0, y1)`` gives rows y0 to y1 - 1, [y1 - y0, W, channels], or [y1 - y0, W] of one channel.
        height, width: in pixels.
        channels: of the image; 3 are RGB.
        out: what comes out, [H', W', 3] RGB or [H', W'], a view of what the caller gets.
    """

    rows: Callable[[int, int], Array]
    height: int
    width: int
    channels: int
    out: Array


def check_array(image: object) -> Array:
    """The image if it is an array.

    Raises:
        ImageError: it is something else; the message says what to give.
    """
    if isinstance(image, np.ndarray):
        return image
    if image is None:
        raise ImageError("there is no image, None was given; cv2.imread gives None for a file that it cannot read")
    if isinstance(image, str | os.PathLike):
        raise ImageError(
            f"an image is an array, got the path {os.fspath(image)!r}; read it first (echoir.runtime.open_picture), "
            "or restore files with: echoir restore"
        )
    if isinstance(image, list | tuple):
        raise ImageError(
            f"an image is an array, got a {type(image).__name__} of {len(image)}; restore them one by one, or "
            "images of one size together: numpy.stack(images), [N, H, W, 3]"
        )
    raise ImageError(f"an image is a numpy array, got {type(image).__name__}; numpy.asarray(...) makes one of most")


def parts(image: object, out: Array | None, colour: Colour, network: Descriptor) -> tuple[Array, list[Part]]:
    """What is to be filled, and the images to fill it with; alpha is in it already.

    Args:
        image: [H, W, 3], [H, W], [H, W, 1], [H, W, 4] or [N, H, W, 1, 3 or 4], or with the planes that the network
            takes; uint8, uint16, float32 or float64.
        out: an array for the result to fill, or None for a new one.
        colour: the order of the colours in both.
        network: what the images go through.

    Raises:
        ImageError: no array, another shape, floats that are not in [0, 1], or an ``out`` that cannot take it.
    """
    array = check_array(image)
    if colour not in get_args(Colour):
        raise ImageError(f"colour is {' or '.join(map(repr, get_args(Colour)))}, got {colour!r}")
    known = {1, 3, 4, CHANNELS[network.input]}
    if array.ndim not in (2, 3, 4) or (array.ndim > 2 and array.shape[-1] not in known):
        channels_first = array.ndim > 2 and array.shape[-3] in known
        hint = "; this one has its channels first: numpy.moveaxis(image, -3, -1)" if channels_first else ""
        raise ImageError(f"{SHAPES}; got shape {array.shape}{hint}")
    if 0 in array.shape:
        raise ImageError(f"an image has at least one pixel, got shape {array.shape}")
    _check_type(array)
    way, alpha, shape = _result(array.shape, network)
    filled = np.empty(shape, array.dtype) if out is None else out
    if (filled.shape, filled.dtype) != (shape, array.dtype):
        raise ImageError(f"out must be {array.dtype} {shape} for this image, got {filled.dtype} {filled.shape}")
    if _overlap(array, filled):
        raise ImageError("out shares memory with the image, which is read again where tiles overlap")
    pairs = zip(array, filled, strict=True) if array.ndim == 4 else [(array, filled)]
    images = []
    for source, target in pairs:
        if alpha:
            target[..., -1] = enlarged(source[..., -1], way.scale)
        target = target[..., :-1] if alpha else target
        source = source[..., :-1] if alpha else source
        images.append(_part(_colours(source, colour), _colours(target, colour)))
    return filled, images


def _result(shape: tuple[int, ...], network: Descriptor) -> tuple[Route, bool, tuple[int, ...]]:
    """How an image of this shape goes through a network; whether it has alpha; the shape of what comes out.

    Raises:
        ImageError: the network does not take it.
    """
    *several, height, width, depth = shape if len(shape) > 2 else (*shape, 1)
    alpha = depth == 4 and network.input != "RGGB"
    way = route(network, depth - alpha)
    size = way.size(height, width)
    flat = len(shape) == 2 and way.result == 1
    return way, alpha, (*several, *size) if flat else (*several, *size, way.result + alpha)


def _check_type(array: Array) -> None:
    if array.dtype not in (*PEAKS, np.float64):
        remedy = {
            "b": "; image.astype('uint8') * 255",
            "f": "; image.astype('float32')",
            "i": "; image.astype('uint8') where the values are in 0 to 255",
        }.get(array.dtype.kind, "")
        raise ImageError(f"pixels must be uint8, uint16, float32 or float64, got {array.dtype}{remedy}")
    if array.dtype.kind == "f" and (brightest := float(array.max())) > BRIGHTEST and np.isfinite(brightest):
        raise ImageError(
            f"white is 1 where pixels are {array.dtype}, and this image goes up to {brightest:g}; "
            "divide it by its white (image / 255), or give it as uint8"
        )


def _colours(image: Array, colour: Colour) -> Array:
    """As RGB or gray, [H, W, 3] or [H, W], a view; the planes of other networks, [H, W, 4 or 6], as they need them."""
    if image.ndim == 2:
        return image
    if image.shape[2] == 1:
        return image[:, :, 0]
    if colour == "RGB" or image.shape[2] == 4:
        return image
    return image[:, :, ::-1] if image.shape[2] == 3 else image[:, :, [2, 1, 0, 5, 4, 3]]


def _part(source: Array, out: Array) -> Part:
    kind = np.float32 if source.dtype == np.float64 else source.dtype
    height, width = source.shape[:2]
    channels = 1 if source.ndim == 2 else source.shape[2]
    return Part(lambda y0, y1: np.asarray(source[y0:y1], kind), height, width, channels, out)


def _overlap(a: Array, b: Array) -> bool:
    """Whether two arrays have a byte in common; where that is hard to tell, they are taken to."""
    try:
        return np.shares_memory(a, b, max_work=10_000)  # type: ignore[arg-type]  # numpy's stub knows two values alone
    except RuntimeError:  # numpy's TooHardError, which has no name that all its versions know
        return True
