"""What a Ray cluster costs against `echoir restore` on the same machine: fixed, and per picture.

    python benchmarks/ray_cost.py -m echoir-denoise-fp32 [--pictures 8 --pictures 32] [--size 256]

Both restore the same pictures, in turn, as processes of their own; two sizes of folder tell the fixed cost of a run
from the cost of a picture. One worker and one thread each, so that Ray has nothing to gain: what is seen is its cost.
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

RAY = ("--on", "ray", "--workers", "1")


def seconds(model: str, pictures: Path, *more: str) -> float:
    """Wall time of one run into a new folder."""
    with tempfile.TemporaryDirectory() as out:
        program = "from echoir.cli import main; main()"
        command = [sys.executable, "-c", program, "restore", str(pictures), "-m", model, "-o", out, "--threads", "1"]
        begun = time.perf_counter()
        subprocess.run([*command, "--quiet", *more], check=True)
        return time.perf_counter() - begun


@click.command()
@click.option("-m", "--model", required=True, help="An artifact.")
@click.option("--pictures", type=int, multiple=True, default=(8, 32), show_default=True, help="Of a folder; twice.")
@click.option("--size", type=int, default=256, show_default=True, help="Sides of a picture.")
@click.option("--turns", type=int, default=1, show_default=True)
def main(model: str, pictures: tuple[int, ...], size: int, turns: int) -> None:
    """Print seconds of both, and what they come to."""
    few, many = sorted(pictures)
    times: dict[tuple[str, int], list[float]] = {}
    rng = np.random.default_rng(1)
    with tempfile.TemporaryDirectory() as folder:
        for count in (few, many):
            (Path(folder) / str(count)).mkdir()
            for index in range(count):
                pixels = rng.integers(0, 256, (size, size, 3), np.uint8)
                Image.fromarray(pixels).save(Path(folder) / str(count) / f"{index:04}.png")
        for _ in range(turns):
            for count in (few, many):
                for name, more in {"restore": (), "ray": RAY}.items():
                    times.setdefault((name, count), []).append(seconds(model, Path(folder) / str(count), *more))
    print(f"{'':10}{f'{few} pictures':>14}{f'{many} pictures':>14}{'a picture':>12}{'fixed':>9}")
    for name in ("restore", "ray"):
        least, most = (float(np.median(times[name, count])) for count in (few, many))
        each = (most - least) / (many - few)
        print(f"{name:10}{least:>12.2f} s{most:>12.2f} s{each:>10.3f} s{least - few * each:>7.2f} s")


if __name__ == "__main__":
    main()
