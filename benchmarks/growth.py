"""What a pixel costs as the picture grows: linear means that it costs the same from 0.1 to 100 megapixels.

    python benchmarks/growth.py -m ARTIFACT [--megapixels 0.1 0.3 1 3 10 30 100] [--turns 3] [--device cpu]

Pictures of noise, 3:2, 8 bits, in memory: no decoding. Of the turns the least time counts; sizes take turns, so that
other work on the machine falls on all of them alike. ``waste`` is the pixels through the network for each of the
picture's, of which most differences come.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from echoir.runtime.bench import peak_memory
from echoir.runtime.fit import waste
from echoir.runtime.restorer import Restorer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", required=True)
    parser.add_argument("--megapixels", type=float, nargs="+", default=[0.1, 0.3, 1, 3, 10, 30, 100])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    sizes = [(round((mega * 1e6 / 1.5) ** 0.5), round((mega * 1e6 * 1.5) ** 0.5)) for mega in options.megapixels]
    rng = np.random.default_rng(0)
    least = dict.fromkeys(sizes, float("inf"))
    memory: dict[tuple[int, int], int] = {}
    with Restorer.open(options.model, threads=options.threads, device=options.device) as restorer:
        restorer(rng.integers(0, 256, (*sizes[0], 3), np.uint8))  # what is made once
        for _ in range(options.turns):
            for size in sizes:
                picture = rng.integers(0, 256, (*size, 3), np.uint8)
                begun = time.perf_counter()
                restorer(picture)
                least[size] = min(least[size], time.perf_counter() - begun)
                memory.setdefault(size, peak_memory() - 2 * picture.nbytes)
        each = {size: seconds / (size[0] * size[1]) for size, seconds in least.items()}
        middle = float(np.median(list(each.values())))
        print("| width x height | tiles | waste | seconds | ns a pixel | to the median | peak MB beyond in and out |")
        print("|---|---|---|---|---|---|---|")
        for (height, width), seconds in least.items():
            count, tile, cost = waste(restorer.manifest, height, width)
            print(
                f"| {width} x {height} | {count} of {tile[0]} x {tile[1]} | {cost:.2f} | {seconds:.2f} "
                f"| {each[height, width] * 1e9:.0f} | {each[height, width] / middle:.2f} "
                f"| {memory[height, width] / 1e6:.0f} |"
            )


if __name__ == "__main__":
    main()
