"""Which tile fits a picture: the one that sends the fewest pixels through the network.

Tiles share pixels and hang over the borders, so a network does more than a picture asks for. A model whose height and
width are free takes a tile for each size of picture; an engine takes the one that it was built for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from echoir.runtime.descriptor import Pair
from echoir.runtime.manifest import Manifest
from echoir.runtime.tiling import tile_starts

# Pixels of a tile of free sides at most, unless told: in larger ones a pixel costs a CPU more than they save, and they
# are no better (docs/tiles.md). Fitted tiles are mostly engines', of which nobody found that.
MOST = 256 * 512
MOST_FITTED = 512 * 512

SIZES: dict[str, Pair] = {  # (height, width) of pictures that people have
    "481 x 321": (321, 481),
    "512 x 512": (512, 512),
    "720p": (720, 1280),
    "1080p": (1080, 1920),
    "4K": (2160, 3840),
    "12 megapixels": (3000, 4000),
    "100 megapixels": (8660, 11547),
}
TITLE = "pictures, their tiles, and the pixels through the network for each of theirs"


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
    """Tiles of a network's input of that size, their (height, width), and the pixels through it for each of those."""
    overlap = manifest.tile.overlap if overlap is None else overlap
    tile = fitted(manifest, height, width, overlap).tile
    down, across = manifest.network.phase
    starts = tile_starts(height, tile.height, overlap, down), tile_starts(width, tile.width, overlap, across)
    count = len(starts[0]) * len(starts[1])
    return count, (tile.height, tile.width), count * tile.height * tile.width / (height * width)


@dataclass(frozen=True)
class Fit:
    """What a picture of some size costs.

    Args:
        input, output: (height, width) of the picture that goes in, and of what comes out.
        tiles: how many it takes.
        tile: their (height, width), in pixels of the network's input.
        waste: pixels through the network for each of the picture's.
    """

    input: Pair
    output: Pair
    tiles: int
    tile: Pair
    waste: float

    @property
    def text(self) -> str:
        """A row under :data:`TITLE`; the sizes of pictures with their width first, as people say them."""
        given, made = (f"{width} x {height}" for height, width in (self.input, self.output))
        sizes = given if given == made else f"{given} to {made}"
        tiles = f"{self.tiles} tile{'s' * (self.tiles > 1)} of {self.tile[0]} x {self.tile[1]}"
        return f"{sizes:<31}{tiles:<27}{self.waste:>6.2f}"


def fits(manifest: Manifest) -> dict[str, Fit]:
    """:func:`waste` for pictures of usual sizes, by their names; mosaics have even sides."""
    scale, mosaic = manifest.network.scale, manifest.network.mosaic
    found = {}
    for name, (height, width) in SIZES.items():
        rows, columns = height // mosaic, width // mosaic
        tiles, tile, share = waste(manifest, rows, columns)
        found[name] = Fit((mosaic * rows, mosaic * columns), (scale * rows, scale * columns), tiles, tile, share)
    return found


def wastes(manifest: Manifest) -> list[str]:
    """:func:`fits`, a line each, and what they say."""
    return [TITLE, *(f"{name:<16}{fit.text}" for name, fit in fits(manifest).items())]
