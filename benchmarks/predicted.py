"""How fast a network could be on a GPU at best, from its operations and its traffic; needs no GPU.

    python benchmarks/predicted.py [--tile 256] [--overlap 24] [--bytes 2]

A frame takes at least as long as its operations at the card's peak, and as its traffic at the card's bandwidth:

    multiply-adds = those of convolutions and matrix products in one tile, x tiles (EchoUpsample has few)
    bytes         = what each convolution, matrix product and EchoUpsample reads and writes, x tiles
    seconds       =  max(2 x multiply-adds / peak, bytes / bandwidth)

Everything between two of those operators counts as fused into them and the operators themselves as not fused with each
other, at the card's full speed: an engine hardly passes that rate, and nothing here was measured. Peaks are dense
float16 ones, derived from the data sheets' sparse figures; overlaps of tiles are paid for.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from echoir.export.request import OVERLAP
from echoir.networks.echoir import PRESETS, EchoIR, EchoIRConfig
from echoir.networks.upsampler import EchoUpsampler
from echoir.runtime.tiling import tile_starts

COUNTED = ("convolution", "mm", "bmm", "addmm")


@dataclass(frozen=True)
class Card:
    """Data sheet: dense float16 operations and bytes a second."""

    name: str
    operations: float
    bandwidth: float


CARDS = (
    Card("Orin Nano Super 8 GB", 17e12, 102e9),  # 67 TOPS: sparse INT8
    Card("AGX Orin 64 GB", 43e12, 204e9),  # 170 of 275 TOPS are the GPU's, sparse INT8
    Card("Thor T5000", 259e12, 273e9),  # 2070 TFLOPS: sparse FP4
)
FRAMES = ((540, 960), (720, 1280), (1080, 1920))


class Traffic(TorchDispatchMode):
    """Counts the values that the operators of :data:`COUNTED`, and EchoUpsample, read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.values = 0

    def upsample(self, down: torch.Tensor, guide: torch.Tensor) -> torch.Tensor:
        """Stands for EchoUpsample: its output's shape, and its least traffic."""
        result = down.new_empty(*down.shape[:2], *guide.shape[2:])
        self.values += down.numel() + guide.numel() + result.numel()
        return result

    def __torch_dispatch__(
        self, function: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if function.overloadpacket.__name__ in COUNTED:
            tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
            self.values += sum(tensor.numel() for tensor in tensors)
        return result


def cost(config: EchoIRConfig, tile: int) -> tuple[int, int]:
    """Multiply-adds of one tile, and the values that it moves."""
    with torch.device("meta"), torch.no_grad():
        network, image = EchoIR(config).eval(), torch.empty(1, 3, tile, tile)
        traffic = Traffic()
        for module in network.modules():
            if isinstance(module, EchoUpsampler):
                module.upsample = traffic.upsample  # type: ignore[method-assign]
        with FlopCounterMode(display=False) as flops, traffic:
            network(image)
    return flops.get_total_flops() // 2, traffic.values


def tiles(frame: tuple[int, int], tile: int, overlap: int) -> int:
    return math.prod(len(tile_starts(size, tile, overlap)) for size in frame)


def rate(config: EchoIRConfig, card: Card, tile: int, overlap: int, frame: tuple[int, int], size: int) -> float:
    """Frames a second at best, with values of so many bytes."""
    operations, values = cost(config, tile)
    seconds = max(2 * operations / card.operations, values * size / card.bandwidth)
    return 1 / (seconds * tiles(frame, tile, overlap))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tile", type=int, default=256)
    parser.add_argument("--overlap", type=int, default=OVERLAP)
    parser.add_argument("--bytes", type=int, default=2, help="of a value: 2 in float16")
    options = parser.parse_args()
    print(f"| frame | preset | tiles | 10⁹ multiply-adds | GB | {' | '.join(card.name for card in CARDS)} |")
    print(f"|---|---|---|---|---|{'---|' * len(CARDS)}")
    for preset in ("tiny", "small", "base"):
        config = PRESETS[preset]
        operations, values = cost(config, options.tile)
        for frame in FRAMES:
            count = tiles(frame, options.tile, options.overlap)
            rates = [rate(config, card, options.tile, options.overlap, frame, options.bytes) for card in CARDS]
            row = [f"{frame[1]} x {frame[0]}", preset, str(count), f"{operations * count / 1e9:.0f}"]
            row += [f"{values * count * options.bytes / 1e9:.2f}", *(f"{one:.1f}" for one in rates)]
            print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
