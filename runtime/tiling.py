"""Where tiles lie and how they are blended, one axis at a time.

Tiles have one fixed size. Their starts spread evenly over the axis, so the last tile ends at the
border and neighbours share at least the overlap. In the shared part one tile fades out linearly as
the next fades in; the weights of a pixel sum to one. Two axes multiply.

Pixels near an edge that was cut lack what lay behind it. Of a network that needs to see so many pixels around each
(its margin), those that it cannot have right get no weight, and tiles fade over what is left of the shared part.

A network may want its tiles to start at multiples of a phase (its windows lie in a grid, or its pixels in a
mosaic). Then the last start is the next such multiple, and the tile hangs over the border, where it is
extended by reflection. Where a network enlarges, starts and sizes of the output are the input's times the scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Weights = np.ndarray[Any, np.dtype[np.float32]]
Positions = np.ndarray[Any, np.dtype[np.floating[Any]]]
Indices = np.ndarray[Any, np.dtype[np.intp]]


def tile_starts(size: int, tile: int, overlap: int, phase: int = 1) -> list[int]:
    """First pixels of the fewest tiles that cover an axis.

    Args:
        size: pixels of the axis, >= 1.
        tile: pixels of a tile, >= phase.
        overlap: pixels that neighbours share at least, 0 <= overlap <= tile - phase.
        phase: starts are multiples of it, >= 1.

    Returns:
        Increasing starts; the first is 0, and the last tile ends at ``size`` or less than ``phase`` beyond it. An
        axis no longer than the tile has the one start 0. What hangs over is made by :func:`reflect`.

    Raises:
        ValueError: sizes out of range.
    """
    if size < 1 or phase < 1 or not 0 <= overlap <= tile - phase:
        raise ValueError(
            "need size >= 1 and 0 <= overlap <= tile - phase, "
            f"got size {size}, tile {tile}, overlap {overlap}, phase {phase}"
        )
    if size <= tile:
        return [0]
    last = -(-(size - tile) // phase)  # all in units of the phase
    steps = -(-last // ((tile - overlap) // phase))
    return [i * last // steps * phase for i in range(steps + 1)]


def tile_weights(size: int, tile: int, starts: list[int], margin: int = 0) -> list[Weights]:
    """Blend weights of every tile along an axis.

    Args:
        size: pixels of the axis.
        tile: pixels of a tile.
        starts: what :func:`tile_starts` gave.
        margin: pixels along an edge inside the axis that count for nothing, as far as the neighbour has them: at
            most half of what two tiles share.

    Returns:
        One float32 array per tile, over the pixels it covers inside the axis, in [0, 1], above 0 without a margin;
        where tiles overlap, their weights sum to one.
    """
    total = np.zeros(size)
    ends = [min(start + tile, size) for start in starts]
    raw = []
    for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
        position = np.arange(end - start) + 0.5
        weight = np.ones(end - start)
        if i > 0:
            weight = np.minimum(weight, _fade(position, ends[i - 1] - start, margin))
        if i + 1 < len(starts):
            weight = np.minimum(weight, _fade(position[::-1], end - starts[i + 1], margin))
        total[start:end] += weight
        raw.append(weight)
    spans = zip(starts, ends, raw, strict=True)
    return [(weight / total[start:end]).astype(np.float32) for start, end, weight in spans]


def _fade(position: Positions, shared: int, margin: int) -> Positions:
    """Weights from an edge inwards, over what the tile behind it shares, less the margins of both."""
    margin = min(margin, shared // 2)
    return np.clip((position - margin) / max(shared - 2 * margin, 0.5), 0, 1)


@dataclass(frozen=True)
class Axis:
    """The tiles along one axis of an image.

    Attributes:
        size: pixels of the axis, before the network.
        tile: pixels of a tile.
        scale: pixels behind the network for each before it.
        starts: as :func:`tile_starts` gives them.
        ends: where each tile ends, or the image in it.
        weights: of each tile behind the network, over ``scale * (end - start)`` pixels.
    """

    size: int
    tile: int
    scale: int
    starts: list[int]
    ends: list[int]
    weights: list[Weights]

    @property
    def covered(self) -> int:
        """Pixels of the first tile that lie inside the image; no tile has more."""
        return self.ends[0]


def tile_axis(size: int, tile: int, overlap: int, phase: int = 1, scale: int = 1, margin: int = 0) -> Axis:
    """The tiles along an axis of ``size`` pixels; as for :func:`tile_starts` and :func:`tile_weights`."""
    starts = tile_starts(size, tile, overlap, phase)
    ends = [min(start + tile, size) for start in starts]
    weights = tile_weights(scale * size, scale * tile, [scale * start for start in starts], scale * margin)
    return Axis(size, tile, scale, starts, ends, weights)


def reflect(size: int, length: int) -> Indices:
    """Indices that extend an axis of ``size`` pixels to ``length``, bouncing at both ends.

    As numpy's ``reflect``: the border pixel is not repeated; a single pixel can only be repeated.
    """
    index = np.arange(length)
    if size == 1:
        return np.zeros_like(index)
    index %= 2 * (size - 1)
    return np.minimum(index, 2 * (size - 1) - index)
