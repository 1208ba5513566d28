"""GRL: what it costs, counted.

    python benchmarks/grl.py        multiply-accumulates at 256 x 256, and per pixel from 128 to 512

Nothing runs: PyTorch counts the convolutions and matrix products of a network without storage. Masks of shifted grids
are four more coordinates of queries and keys here; the second column leaves them out, as a mask that is added would.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import torch
from torch.utils.flop_counter import FlopCounterMode

from echoir.networks.grl import GRL, SIZES, MixedAttention


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    options = parser.parse_args()
    print(
        "| network | GMAC at 256 x 256 | without masks | MMAC per pixel at 128 | 256 | 512 |\n|---|---|---|---|---|---|"
    )
    for task in ("denoise", "sr"):
        for size in options.sizes:
            counts = [macs(size, task, side) for side in (128, 256, 512)]
            per_pixel = " | ".join(
                f"{count / side**2 / 1e6:.3f}" for count, side in zip(counts, (128, 256, 512), strict=True)
            )
            plain = macs(size, task, 256, masked=False)
            print(f"| {task} {size} | {counts[1] / 1e9:,.1f} | {plain / 1e9:,.1f} | {per_pixel} |", flush=True)


@torch.no_grad()
def macs(size: str, task: str, side: int, *, masked: bool = True) -> float:
    """Multiply-accumulates for one picture of side x side."""
    with torch.device("meta"):
        network = GRL.from_preset(size, task=task).eval()
        if not masked:
            for module in network.modules():
                if isinstance(module, MixedAttention):
                    module.windows = replace(module.windows, shift=(0, 0))
                    module.stripes = replace(module.stripes, shift=(0, 0))
        with FlopCounterMode(display=False) as counter:
            network(torch.empty(1, 3, side, side))
    return counter.get_total_flops() / 2


if __name__ == "__main__":
    main()
