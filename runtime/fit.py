"""Which tile fits a picture: the one that sends the fewest pixels through the network.

Tiles share pixels and hang over the borders, so a network does more than a picture asks for. A model whose height and
width are free takes a tile for each size of picture; an engine takes the one that it was built for.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from echoir.runtime.descriptor import Pair
from echoir.runtime.manifest import Manifest
from echoir.runtime.tiling import tile_starts

# Pixels of a tile at most, unless told: from there on a pixel costs more on a CPU, and larger tiles are no better
# (docs/tiles.md).
MOST = 512 * 512

SIZES: dict[str, Pair] = {  # (height, width) of pictures that people have
    "481 x 321": (321, 481),
    "512 x 512": (512, 512),
    "720p": (720, 1280),
    "1080p": (1080, 1920),
    "4K": (2160, 3840),
    "12 megapixels": (3000, 4000),
    "100 megapixels": (8660, 11547),
}


@lru_cache(256)
def best_tile(
    height: int, width: int, *, most: int, overlap: int, multiple: Pair = (1, 1), phase: Pair = (1, 1)
) -> Pair:
    """The (height, width) of the tiles that restore a picture with the fewest pixels through the network.

    Where several do, the one with the fewest tiles, and of those the squarest.

    Args:
        height, width: of the picture in pixels.
        most: pixels of a tile at most; where the network cannot have so few, its smallest tile it is.
        overlap: pixels that neighbouring tiles share at least.
        multiple: of which tile sides are multiples, down and across.
        phase: of which tile starts are multiples, down and across.
    """
    down, across = (
        dict(_sides(size, most, overlap, step, start))
        for size, step, start in zip((height, width), multiple, phase, strict=True)
    )
    pairs = [(h, w) for h in down for w in across if h * w <= most] or [(min(down), min(across))]

    def cost(pair: Pair) -> tuple[int, int, int]:
        count = down[pair[0]] * across[pair[1]]
        return count * pair[0] * pair[1], count, abs(pair[0] - pair[1])

    return min(pairs, key=cost)


def _sides(size: int, most: int, overlap: int, multiple: int, phase: int) -> Iterator[tuple[int, int]]:
    """The shortest side for every number of tiles along an axis, with that number."""
    least = -(-(overlap + phase) // multiple) * multiple
    whole = max(least, -(-size // multiple) * multiple)
    counted = 0
    for side in range(least, max(least, min(whole, most // multiple * multiple)) + 1, multiple):
        count = len(tile_starts(size, side, overlap, phase))
        if count != counted:
            counted = count
            yield side, count


def fitted(manifest: Manifest, height: int, width: int, overlap: int) -> Manifest:
    """A manifest with the tile that a picture is restored in: another one only where its sides are free."""
    tile, network = manifest.tile, manifest.network
    if tile.most is None:
        return manifest
    sides = best_tile(height, width, most=tile.most, overlap=overlap, multiple=network.multiple, phase=network.phase)
    return manifest.with_tile(*sides)


def waste(manifest: Manifest, height: int, width: int, overlap: int | None = None) -> tuple[int, Pair, float]:
    """Tiles of a picture, their (height, width), and the pixels through the network for each of the picture's."""
    overlap = manifest.tile.overlap if overlap is None else overlap
    tile = fitted(manifest, height, width, overlap).tile
    down, across = manifest.network.phase
    starts = tile_starts(height, tile.height, overlap, down), tile_starts(width, tile.width, overlap, across)
    count = len(starts[0]) * len(starts[1])
    return count, (tile.height, tile.width), count * tile.height * tile.width / (height * width)


def wastes(manifest: Manifest) -> list[str]:
    """:func:`waste` for pictures of usual sizes, a line each."""
    lines = []
    for name, size in SIZES.items():
        count, (height, width), cost = waste(manifest, *size)
        tiles = f"{count} tile{'s' * (count > 1)} of {height} x {width}"
        lines.append(f"{name:<16}{tiles:<24}{cost:.2f} pixels through the network for each of the picture's")
    return lines
