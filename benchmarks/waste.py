"""How many pixels go through a network for each pixel of a picture, by the picture's size: counted, nothing is run.

    python benchmarks/waste.py [--tile 256 --tile 512 --tile 1080x1920] [--overlap 32] [--size 640x360 ...]

One row a size, one column a tile: the tiles, and the pixels they hold per pixel of the picture. Tiles spread evenly and
reach beyond a picture that is smaller than one, as :mod:`echoir.runtime.tiling` lays them. ``bound`` is what an
unbounded picture costs, tile² / (tile - overlap)²: the rest is the size's own doing.
"""

from __future__ import annotations

import argparse

from echoir.runtime.tiling import tile_starts

SIZES = {
    "481 x 321": (321, 481),
    "512 x 512": (512, 512),
    "720p": (720, 1280),
    "1080p": (1080, 1920),
    "4K": (2160, 3840),
    "12 megapixels": (3000, 4000),
    "100 megapixels": (8660, 11547),
}


def waste(size: tuple[int, int], tile: tuple[int, int], overlap: int) -> tuple[int, float]:
    """Tiles of a picture, and pixels through the network per pixel of the picture; sizes are (height, width)."""
    count = 1
    for side, length in zip(size, tile, strict=True):
        count *= len(tile_starts(side, length, overlap))
    return count, count * tile[0] * tile[1] / (size[0] * size[1])


def pair(text: str) -> tuple[int, int]:
    """``"256"`` or ``"HEIGHTxWIDTH"``."""
    sides = [int(part) for part in text.split("x")]
    if len(sides) not in (1, 2) or min(sides) < 1:
        raise argparse.ArgumentTypeError(f"a size is N or HEIGHTxWIDTH, got {text}")
    return sides[0], sides[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tile", type=pair, action="append", metavar="N|HxW", help="may be repeated [default: 256]")
    parser.add_argument("--overlap", type=int, default=32)
    parser.add_argument("--size", type=pair, nargs="+", default=[], metavar="HxW", help="pictures instead of the usual")
    options = parser.parse_args()
    tiles = options.tile or [(256, 256)]
    if not 0 <= options.overlap < min(min(tile) for tile in tiles):
        parser.error("the overlap is from 0 up, and less than a tile's sides")
    sizes = {f"{width} x {height}": (height, width) for height, width in options.size} or SIZES
    print(f"{f'overlap {options.overlap}':<16}" + "".join(f"{f'{height} x {width}':>18}" for height, width in tiles))
    for name, size in sizes.items():
        cells = [waste(size, tile, options.overlap) for tile in tiles]
        print(f"{name:<16}" + "".join(f"{f'{count} tiles':>12}{cost:>6.2f}" for count, cost in cells))
    bounds = [h * w / ((h - options.overlap) * (w - options.overlap)) for h, w in tiles]
    print(f"{'bound':<16}" + "".join(f"{bound:>18.2f}" for bound in bounds))


if __name__ == "__main__":
    main()
