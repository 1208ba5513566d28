"""Peak memory of ``echoir restore`` beyond the decoded input and output, by image size.

    python benchmarks/memory.py -m echoir-denoise-fp32 --megapixels 24 --megapixels 100

Each size runs in a process of its own, on a PNG made from a shipped photograph; the kernel's
``ru_maxrss`` of that process is what is reported.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np
from PIL import Image

from echoir.samples import SHIPPED

MEASURE = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_utime + used.ru_stime, used.ru_maxrss)
sys.exit(code)
"""


@click.command()
@click.option("-m", "--model", required=True, help="An artifact.")
@click.option("--megapixels", type=float, multiple=True, default=(24.0, 100.0), show_default=True)
@click.option("--threads", type=int, default=2, show_default=True)
def main(model: str, megapixels: tuple[float, ...], threads: int) -> None:
    """Restore one image of each size and print a table."""
    print(f"{'pixels':>15} {'peak MB':>8} {'in + out MB':>12} {'beyond MB':>10} {'seconds':>8} {'processor s':>12}")
    for size in megapixels:
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder, "in.png"), Path(folder, "out.png")
            width, height = make_photograph(size, source)
            restore = [Path(sys.executable).with_name("echoir"), "restore", source, "-m", model, "-o", target]
            command = [sys.executable, "-c", MEASURE, *restore, "--threads", str(threads), "--quiet"]
            start = time.monotonic()
            done = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True)
            seconds = time.monotonic() - start
            processor, memory = map(float, done.stdout.split()[-2:])
            peak = memory * 1024 / 1e6
            both = 2 * width * height * 3 / 1e6
            row = f"{width:>7} x {height:<5} {peak:>8.0f} {both:>12.0f} {peak - both:>10.0f}"
            print(f"{row} {seconds:>8.0f} {processor:>12.1f}", flush=True)


def make_photograph(megapixels: float, path: Path) -> tuple[int, int]:
    """Write a picture of so many megapixels (3:2), a shipped one mirrored side by side; returns width and height."""
    height = round((megapixels * 1e6 / 1.5) ** 0.5)
    with Image.open(SHIPPED / "coffee.webp") as picture:
        pixels = np.asarray(picture)
    grow = [(0, max(0, side - have)) for side, have in zip((height, height * 3 // 2), pixels.shape[:2], strict=True)]
    pixels = np.pad(pixels, [*grow, (0, 0)], mode="symmetric")
    Image.fromarray(pixels).save(path, compress_level=1, quality=95)  # of PNG, and of JPEG
    return pixels.shape[1], pixels.shape[0]


if __name__ == "__main__":
    main()
