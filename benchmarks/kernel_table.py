"""What the kernel takes of each GPU, and how long its memory traffic takes; needs no GPU.

    python benchmarks/kernel_table.py [--targets 87 90 110] [--channels 16 48 192] [--radius 1] [--storage fp16]

First table: the forward kernel assembled for each target, K = C, with the tiling of a large plane
and with that of a small one. Second table: the least time of the upsamplers of a preset at
1920 x 1080, from the bytes that must move: ``down`` and guide read once, output written once.
"""

from __future__ import annotations

import argparse
from typing import get_args

from echoir.export.echo.ptx import TARGETS, Storage, assemble, compile_forward
from echoir.networks.echoir import PRESETS, EchoIRConfig

LARGE, SMALL = (1, 540, 960), (1, 32, 32)
BANDWIDTH = {"Orin": 204e9, "Thor": 273e9, "H200": 4.3e12}  # bytes/s: two data sheets, one measured copy
BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}


def traffic(n: int, channels: int, guide_channels: int, height: int, width: int, storage: Storage) -> int:
    """Bytes that the operator cannot avoid; ``height`` and ``width`` in low-resolution cells."""
    return n * height * width * (channels + 4 * guide_channels + 4 * channels) * BYTES[storage]


def upsamplers(config: EchoIRConfig) -> dict[str, tuple[int, int, int]]:
    """Channels, and low-resolution height and width, of the upsamplers of a network at 1920 x 1080."""
    height, width = 1080 // config.stem, 1920 // config.stem
    return {f"up{level}": (config.width << level - 1, height >> level, width >> level) for level in (1, 2, 3)}


def resources(targets: list[int], channels: list[int], radius: int, storage: Storage) -> None:
    print(f"Forward kernel, radius {radius}, {storage}, K = C; registers of a thread / bytes spilled / shared bytes\n")
    print(f"| target | PTX | plane | {' | '.join(f'C = {c}' for c in channels)} |")
    print(f"|---|---|---|{'---|' * len(channels)}")
    for target in targets:
        for name, plane in (("large", LARGE), ("small", SMALL)):
            cells = []
            for c in channels:
                kernel = compile_forward(target, c, c, radius=radius, storage=storage, plane=plane)
                usage = assemble(kernel)
                cells.append(f"{usage.registers} / {usage.spills} / {usage.shared + kernel.shared}")
            version = ".".join(map(str, TARGETS[target]))
            print(f"| sm_{target} | {version} | {name} | {' | '.join(cells)} |", flush=True)


def least_times(storage: Storage) -> None:
    print(f"\nLeast milliseconds at 1920 x 1080, {storage}, from bytes over bandwidth\n")
    print(f"| preset | upsampler | MB | {' | '.join(f'{d}, {b / 1e9:.0f} GB/s' for d, b in BANDWIDTH.items())} |")
    print(f"|---|---|---|{'---|' * len(BANDWIDTH)}")
    for preset in ("base", "small", "tiny"):
        for name, (c, height, width) in upsamplers(PRESETS[preset]).items():
            moved = traffic(1, c, c, height, width, storage)
            times = " | ".join(f"{1e3 * moved / rate:.3f}" for rate in BANDWIDTH.values())
            print(f"| {preset} | {name} | {moved / 1e6:.1f} | {times} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", type=int, nargs="*", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--channels", type=int, nargs="+", default=[16, 24, 32, 48, 64, 96, 128, 192])
    parser.add_argument("--radius", type=int, default=1)
    parser.add_argument("--storage", choices=get_args(Storage), default="fp16")
    options = parser.parse_args()
    resources(options.targets, options.channels, options.radius, options.storage)
    least_times(options.storage)


if __name__ == "__main__":
    main()
