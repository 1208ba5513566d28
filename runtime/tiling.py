"""Where tiles lie and how they are blended, one axis at a time.

Tiles have one fixed size. Their starts spread evenly over the axis, so the last tile ends at the
border and neighbours share at least the overlap. In the shared part one tile fades out linearly as
the next fades in; the weights of a pixel sum to one. Two axes multiply.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Weights = np.ndarray[Any, np.dtype[np.float32]]
Indices = np.ndarray[Any, np.dtype[np.intp]]


def tile_starts(size: int, tile: int, overlap: int) -> list[int]:
    """First pixels of the fewest tiles that cover an axis.

    Args:
        size: pixels of the axis, >= 1.
        tile: pixels of a tile, >= 1.
        overlap: pixels that neighbours share at least, 0 <= overlap < tile.

    Returns:
        Increasing starts; the first is 0, the last tile ends at ``size``. An axis no longer than the
        tile has the one start 0, and is extended by :func:`reflect`.

    Raises:
        ValueError: sizes out of range.
    """
    if size < 1 or not 0 <= overlap < tile:
        raise ValueError(f"need size >= 1 and 0 <= overlap < tile, got size {size}, tile {tile}, overlap {overlap}")
    if size <= tile:
        return [0]
    steps = -(-(size - tile) // (tile - overlap))
    return [i * (size - tile) // steps for i in range(steps + 1)]


def tile_weights(size: int, tile: int, starts: list[int]) -> list[Weights]:
    """Blend weights of every tile along an axis.

    Args:
        size: pixels of the axis.
        tile: pixels of a tile.
        starts: what :func:`tile_starts` gave.

    Returns:
        One float32 array per tile, over the pixels it covers inside the axis (``min(tile, size)``
        of them), in (0, 1]; where tiles overlap, their weights sum to one.
    """
    length = min(tile, size)
    position = np.arange(length) + 0.5
    total = np.zeros(size)
    raw = []
    for i, start in enumerate(starts):
        weight = np.ones(length)
        if i > 0:  # fade in over what the tile before shares
            weight = np.minimum(weight, position / max(starts[i - 1] + length - start, 0.5))
        if i + 1 < len(starts):
            weight = np.minimum(weight, position[::-1] / max(start + length - starts[i + 1], 0.5))
        total[start : start + length] += weight
        raw.append(weight)
    pairs = zip(starts, raw, strict=True)
    return [(weight / total[start : start + length]).astype(np.float32) for start, weight in pairs]


@dataclass(frozen=True)
class Axis:
    """The tiles along one axis of an image.

    Attributes:
        tile: pixels of a tile.
        covered: pixels of each tile that lie inside the image.
        starts, weights: as :func:`tile_starts` and :func:`tile_weights` give them.
    """

    tile: int
    covered: int
    starts: list[int]
    weights: list[Weights]


def tile_axis(size: int, tile: int, overlap: int) -> Axis:
    """The tiles along an axis of ``size`` pixels; arguments as for :func:`tile_starts`."""
    starts = tile_starts(size, tile, overlap)
    return Axis(tile, min(tile, size), starts, tile_weights(size, tile, starts))


def reflect(size: int, length: int) -> Indices:
    """Indices that extend an axis of ``size`` pixels to ``length``, bouncing at both ends.

    As numpy's ``reflect``: the border pixel is not repeated; a single pixel can only be repeated.
    """
    index = np.arange(length)
    if size == 1:
        return np.zeros_like(index)
    index %= 2 * (size - 1)
    return np.minimum(index, 2 * (size - 1) - index)
