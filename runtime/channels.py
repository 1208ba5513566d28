"""How pixels of a picture and values of a network meet: this module alone knows.

A network takes gray, RGB, a mosaic's four planes or two pictures, and gives gray or RGB. Pictures go through it as
they are where that fits. Gray goes through a network for RGB as three equal channels, and comes back as their mean;
RGB goes through a network for gray plane by plane; a mosaic is packed into its four planes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from echoir.runtime.descriptor import CHANNELS, Descriptor, Planes
from echoir.runtime.errors import ImageError

Array = np.ndarray[Any, np.dtype[Any]]
Floats = np.ndarray[Any, np.dtype[np.float32]]
PEAKS = {np.dtype(np.uint8): 255, np.dtype(np.uint16): 65535, np.dtype(np.float32): 1}
TAKES = {
    "gray": "takes gray pictures, [H, W], and makes them colour",
    "RGB": "takes colour or gray pictures, [H, W, 3] or [H, W]",
    "RGGB": "takes the mosaic of a sensor, [H, W] with red first, or its four planes, [H, W, 4]",
    "RGB pair": "takes two pictures at once, [H, W, 6]",
}


@dataclass(frozen=True)
class Route:
    """How pictures with so many channels go through a network.

    Attributes:
        channels: of the picture, [H, W, channels]; 1 is [H, W].
        given, made: planes of the network's input and output.
        factor: output pixels for each of the network's input, each side.
        mosaic: pixels of the picture for each of the network's input, each side: 2 for a mosaic, else 1.
        passes: runs of the network for each tile: 3 for RGB plane by plane, else 1.
        result: channels of what comes out, [H', W', result]; 1 is [H', W'].
    """

    channels: int
    given: int
    made: int
    factor: int
    mosaic: int = 1
    passes: int = 1
    result: int = 3

    @property
    def scale(self) -> Fraction:
        """Pixels that come out for each of the picture, each side."""
        return Fraction(self.factor, self.mosaic)

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Of what comes out of a picture of this size.

        Raises:
            ImageError: a mosaic with an odd side.
        """
        if height % self.mosaic or width % self.mosaic:
            raise ImageError(f"a mosaic repeats every {self.mosaic} pixels, and this one is {width} x {height}")
        return int(height * self.scale), int(width * self.scale)

    def packed(self, rows: Array) -> Array:
        """Rows of the picture as planes that tiles are cut from: [h, w, C], or [h, w] where it is one."""
        if self.mosaic == 1:
            return rows
        corners = [rows[y :: self.mosaic, x :: self.mosaic] for y in range(self.mosaic) for x in range(self.mosaic)]
        return np.stack(corners, axis=-1)

    def finished(self, sums: Floats, dtype: np.dtype[Any]) -> Iterator[Array]:
        """Finished sums [passes, h, w, made] as pixels of a type, a few rows at a time to save memory."""
        peak = np.float32(PEAKS[dtype])
        for start in range(0, sums.shape[1], 32):
            part = sums[:, start : start + 32]
            if self.passes > 1:
                pixels = np.stack([plane[..., 0] for plane in part], axis=-1)
            elif self.result == 1:
                pixels = part[0].mean(axis=2) if self.made > 1 else part[0, ..., 0].copy()
            else:
                pixels = part[0].copy()
            if dtype == np.float32:
                yield pixels
                continue
            pixels *= peak
            np.rint(pixels, out=pixels)
            yield np.clip(pixels, 0, peak, out=pixels).astype(dtype)


def keeps_pictures(network: Descriptor) -> bool:
    """Whether every picture keeps its size and its channels."""
    return network.scale == 1 and network.input == network.output


def route(network: Descriptor, channels: int) -> Route:
    """The way of pictures with so many channels through a network.

    Raises:
        ImageError: there is none; the message says what the network takes.
    """
    given, made, factor = CHANNELS[network.input], CHANNELS[network.output], network.scale
    if network.input == "RGGB" and channels == 1:
        return Route(channels, given, made, factor, mosaic=network.mosaic, result=made)
    if network.input == "RGB" and channels == 1:
        return Route(channels, given, made, factor, result=1)
    if (network.input, network.output, channels) == ("gray", "gray", 3):
        return Route(channels, given, made, factor, passes=3)
    if channels == given:
        return Route(channels, given, made, factor, result=made)
    shown = "gray" if channels == 1 else f"of {channels} channels"
    raise ImageError(f"{network.name} {TAKES[network.input]}; this picture is {shown}")


def tensor_of(rgb: Array, planes: Planes) -> Array:
    """A picture [H, W, 3] as a network's input [H, W, C] to try it on, pixel for pixel."""
    picked: dict[Planes, list[int]] = {"gray": [1], "RGB": [0, 1, 2], "RGGB": [0, 1, 1, 2], "RGB pair": [0, 1, 2] * 2}
    return rgb[..., picked[planes]]


def enlarged(plane: Array, scale: Fraction) -> Array:
    """A plane [H, W] at another size, by linear interpolation; its borders stay where the picture's are."""
    if scale == 1:
        return plane
    for axis, size in enumerate(plane.shape):
        # Pixel i of the result has its centre at (i + 1/2) / scale - 1/2.
        place = np.clip((np.arange(int(size * scale)) + 0.5) / float(scale) - 0.5, 0, size - 1)
        first = np.floor(place).astype(np.intp)
        share = (place - first).astype(np.float32)
        share = share[:, None] if axis == 0 else share
        low, high = (plane.take(np.minimum(first + step, size - 1), axis).astype(np.float32) for step in (0, 1))
        mixed = low + (high - low) * share
        plane = mixed if plane.dtype == np.float32 else np.rint(mixed).astype(plane.dtype)
    return plane
