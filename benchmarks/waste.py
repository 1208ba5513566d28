"""How many pixels go through a network for each pixel of a picture, by the picture's size: counted, nothing is run.

    python benchmarks/waste.py [--tile 256 ...] [--most 131072 ...] [--overlap 24] [--multiple 32] [--size 640x360 ...]

One row a size, one column for every fixed tile and for every bound of free sides: the pixels that tiles hold per pixel
of the picture, and the tiles. ``echoir inspect`` prints the same for an artifact.
"""

from __future__ import annotations

import argparse

from echoir.runtime.fit import MOST, SIZES, best_tile
from echoir.runtime.tiling import tile_starts

Sides = tuple[int, int]


def waste(size: Sides, tile: Sides, overlap: int) -> tuple[int, float]:
    """Tiles of a picture, and pixels through the network per pixel of the picture; sizes are (height, width)."""
    count = 1
    for side, length in zip(size, tile, strict=True):
        count *= len(tile_starts(side, length, overlap))
    return count, count * tile[0] * tile[1] / (size[0] * size[1])


def pair(text: str) -> Sides:
    """``"256"`` or ``"HEIGHTxWIDTH"``."""
    sides = [int(part) for part in text.split("x")]
    if len(sides) not in (1, 2) or min(sides) < 1:
        raise argparse.ArgumentTypeError(f"a size is N or HEIGHTxWIDTH, got {text}")
    return sides[0], sides[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tile", type=pair, nargs="+", default=[(256, 256)], metavar="N|HxW", help="fixed")
    parser.add_argument("--most", type=int, nargs="+", default=[MOST], help="pixels of a tile of free sides")
    parser.add_argument("--overlap", type=int, default=24)
    parser.add_argument("--multiple", type=int, default=32, help="of which free sides are multiples")
    parser.add_argument("--size", type=pair, nargs="+", default=[], metavar="HxW", help="pictures instead of the usual")
    options = parser.parse_args()
    if not 0 <= options.overlap < min(min(tile) for tile in options.tile):
        parser.error("the overlap is from 0 up, and less than a tile's sides")
    sizes = {f"{width} x {height}": (height, width) for height, width in options.size} or SIZES
    heads = [f"{height} x {width}" for height, width in options.tile] + [f"free, {most}" for most in options.most]
    print(f"| overlap {options.overlap} | " + " | ".join(heads) + " |")
    print("|---" * (len(heads) + 1) + "|")
    for name, size in sizes.items():
        tiles = list(options.tile)
        for most in options.most:
            step = (options.multiple, options.multiple)
            tiles.append(best_tile(*size, most=most, overlap=options.overlap, multiple=step))
        cells = []
        for tile in tiles:
            count, cost = waste(size, tile, options.overlap)
            cells.append(f"{cost:.2f} ({count} of {tile[0]} x {tile[1]})")
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
