"""Which bound of a tile's pixels is the quickest? Waste falls with it, and a pixel costs more in a larger tile.

    python benchmarks/bounds.py -m FREE [--most 65536 ...] [--overlap 32 24] [--devices cpu openvino-bf16] [--turns 5]

For pictures of usual sizes, every bound and overlap give a tile and its waste; all tiles run in turns, twice each, of
which the second counts, and the least of the turns. ``cost`` is waste times a tile's nanoseconds a pixel, to
that of tiles of 256 x 256 with an overlap of 32: seconds a picture, but for what is not the network.
"""

from __future__ import annotations

import argparse
import time
from contextlib import ExitStack
from typing import Any

import numpy as np

from echoir.runtime.artifact import Artifact
from echoir.runtime.fit import SIZES, best_tile
from echoir.runtime.machine import describe_machine
from echoir.runtime.manifest import Manifest
from echoir.runtime.sessions import open_session
from echoir.runtime.tiling import tile_starts

Pair = tuple[int, int]
FIXED, OVERLAP = (256, 256), 32


def wasted(manifest: Manifest, size: Pair, tile: Pair, overlap: int) -> float:
    """Pixels through the network for each of the picture's."""
    axes = zip(size, tile, manifest.network.phase, strict=True)
    counts = [len(tile_starts(length, side, overlap, phase)) * side for length, side, phase in axes]
    return counts[0] * counts[1] / (size[0] * size[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", required=True, help="an artifact of free sides")
    parser.add_argument("--most", type=int, nargs="+", default=[65536, 98304, 114688, 131072, 163840, 262144])
    parser.add_argument("--overlap", type=int, nargs="+", default=[32, 24])
    parser.add_argument("--sizes", nargs="+", choices=[*SIZES], default=["12 megapixels"])
    parser.add_argument("--devices", nargs="+", default=["cpu", "openvino-bf16"])
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    artifact = Artifact.open(options.model)
    manifest = artifact.manifest
    needs: dict[str, Any] = {"multiple": manifest.network.multiple, "phase": manifest.network.phase}
    plans = {
        (name, most, overlap): best_tile(*SIZES[name], most=most, overlap=overlap, **needs)
        for name in options.sizes
        for overlap in options.overlap
        for most in options.most
    }
    tiles = dict.fromkeys([FIXED, *plans.values()])
    least = {(device, tile): float("inf") for device in options.devices for tile in tiles}
    rng = np.random.default_rng(0)
    with ExitStack() as stack:
        sessions = {
            device: stack.enter_context(open_session(artifact, threads=1, device=device)) for device in options.devices
        }
        for turn in range(options.turns):
            for tile in list(tiles)[:: -1 if turn % 2 else 1]:
                given = rng.random((1, 3, *tile), np.float32)
                for device, session in sessions.items():
                    session.run(given)
                    begun = time.perf_counter()
                    session.run(given)
                    seconds = time.perf_counter() - begun
                    least[device, tile] = min(least[device, tile], seconds / (tile[0] * tile[1]))
    head = " | ".join(f"{device}, ns a pixel | cost" for device in options.devices)
    print(f"| picture | overlap | at most | tile | waste | {head} |")
    print("|---" * (5 + 2 * len(options.devices)) + "|")
    for name in options.sizes:
        own = wasted(manifest, SIZES[name], FIXED, OVERLAP)
        rows = [(OVERLAP, "fixed", FIXED), *((o, str(most), tile) for (n, most, o), tile in plans.items() if n == name)]
        for overlap, most, tile in rows:
            waste = wasted(manifest, SIZES[name], tile, overlap)
            costs = [
                f"{least[device, tile] * 1e9:.0f} | {waste * least[device, tile] / own / least[device, FIXED]:.2f}"
                for device in options.devices
            ]
            print(f"| {name} | {overlap} | {most} | {tile[0]} x {tile[1]} | {waste:.2f} | {' | '.join(costs)} |")
    machine = describe_machine()
    print(f"\n{machine.cpu}, one thread, load {machine.load}, {options.turns} turns")


if __name__ == "__main__":
    main()
