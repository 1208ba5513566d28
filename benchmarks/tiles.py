"""Tiled against whole image, and both against ground truth, over tile sizes and overlaps.

    python benchmarks/tiles.py --data FOLDER [--weights denoise] [--sigma 25] [--limit N]
                               [--tile 128 256 512] [--overlap 0 16 32 64] [--exact]

FOLDER (or the environment variable ECHOIR_DATA) holds clean pictures, which get Gaussian noise, or
input/ and target/ pairs. Everything runs through PyTorch in float32, so the table shows tiling alone.
With --exact, each picture is cut down to 3 x 3 tiles that share the overlap and not a pixel more.
docs/tiles.md explains the columns.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from echoir.checkpoint import Checkpoint, load_checkpoint
from echoir.evaluate import restore_whole
from echoir.export.proof.figures import Image, SquaredError, Window
from echoir.export.proof.parity import seam_band, windows
from echoir.export.proof.summary import db, table
from echoir.export.reference import PyTorchSession
from echoir.metrics import psnr, to_8bit
from echoir.runtime.errors import EchoIRError, ImageError
from echoir.runtime.manifest import FLOAT_NCHW, CheckpointRecord, Manifest, Model, Precision, TensorSpec, Tile
from echoir.runtime.progress import Progress
from echoir.runtime.restorer import Restorer
from echoir.samples import Sample, open_samples

HEAD = [
    "tile", "overlap", "cost", "to whole", "in band", "elsewhere", "band", "step",
    "truth", "gain", "in band", "elsewhere",
]  # fmt: skip


@dataclass
class Row:
    """One (tile, overlap), pooled over pictures.

    ``difference`` is tiled against whole; ``tiled`` and ``whole`` are against the truth, in 8-bit.
    Each is a pair: the band where several tiles contribute, and elsewhere. ``step`` is how much the
    difference changes from a pixel to its neighbour: across the edge of a tile, and elsewhere.
    """

    computed: int = 0  # pixels that went through the network
    pixels: int = 0
    truth: list[float] = field(default_factory=list)  # PSNR of the tiled picture
    gain: list[float] = field(default_factory=list)  # against that of the whole one
    difference: list[SquaredError] = field(default_factory=lambda: [SquaredError(), SquaredError()])
    step: list[SquaredError] = field(default_factory=lambda: [SquaredError(), SquaredError()])
    tiled: list[SquaredError] = field(default_factory=lambda: [SquaredError(), SquaredError()])
    whole: list[SquaredError] = field(default_factory=lambda: [SquaredError(), SquaredError()])

    def cells(self) -> list[str]:
        band, elsewhere = self.difference
        gains = [
            f"{tiled.psnr - whole.psnr:+.3f}" if tiled.count else "-"
            for tiled, whole in zip(self.tiled, self.whole, strict=True)
        ]
        both = band + elsewhere
        across, within = self.step
        step = f"{(across.mse / within.mse) ** 0.5:.2f}" if across.count else "-"
        return [
            f"{self.computed / self.pixels:.2f}", db(both.psnr), db(band.psnr), db(elsewhere.psnr),
            f"{100 * band.count / both.count:.0f} %", step, db(mean(self.truth)), f"{mean(self.gain):+.3f}", *gains,
        ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("ECHOIR_DATA"))
    parser.add_argument("--weights", default="denoise")
    parser.add_argument("--sigma", type=float)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--tile", type=int, nargs="+", default=[128, 256, 512])
    parser.add_argument("--overlap", type=int, nargs="+", default=[0, 16, 32, 64])
    parser.add_argument("--exact", action="store_true")
    given = parser.parse_args()
    if given.data is None:
        parser.error("name a folder with --data or ECHOIR_DATA")
    checkpoint = load_checkpoint(given.weights)
    samples = open_samples(given.data, checkpoint.task, sigma=given.sigma, limit=given.limit)
    session = PyTorchSession(checkpoint.network)
    sizes = [(tile, overlap) for tile in given.tile for overlap in given.overlap]
    rows: dict[tuple[int, int], Row] = defaultdict(Row)
    with Progress("tiles", len(samples) * len(sizes), "restorations") as progress:
        for sample in samples:
            whole = None if given.exact else restore_whole(checkpoint.network, sample.degraded)
            for tile, overlap in sizes:
                piece = centre(sample, 3 * tile - 2 * overlap) if given.exact else sample
                other = restore_whole(checkpoint.network, piece.degraded) if whole is None else whole
                restorer = Restorer(session, manifest(checkpoint, tile, overlap))
                add(rows[tile, overlap], restorer, restorer(piece.degraded), other, piece.truth)
                progress.advance()
    print(f"{len(samples)} pictures, {samples.describe()}")
    print("\n".join(table(HEAD, [[str(tile), str(overlap), *rows[tile, overlap].cells()] for tile, overlap in sizes])))


def centre(sample: Sample, side: int) -> Sample:
    """The square of that side in the middle."""
    height, width, _ = sample.truth.shape
    if min(height, width) < side:
        raise ImageError(f"{sample.name}: {width}x{height} pixels, --exact needs {side} on each side")
    top, left = (height - side) // 2, (width - side) // 2
    window = slice(top, top + side), slice(left, left + side)
    return Sample(sample.name, sample.degraded[window], sample.truth[window])


def add(row: Row, restorer: Restorer, tiled: Image, whole: Image, truth: Image) -> None:
    """Count one picture in."""
    height, width, _ = truth.shape
    restorer = restorer.fitted(height, width)
    tile = restorer.manifest.tile
    tiles = windows(height, width, restorer.manifest, restorer.overlap)
    band = seam_band(height, width, tiles)
    codes = [to_8bit(image) / 255 for image in (tiled, whole, truth)]
    row.computed += restorer.tiles(height, width) * tile.height * tile.width
    row.pixels += height * width
    row.truth.append(psnr(codes[0], codes[2]))
    row.gain.append(row.truth[-1] - psnr(codes[1], codes[2]))
    for i, where in enumerate((band, ~band)):
        row.difference[i] += SquaredError.between(tiled, whole, where)
        row.tiled[i] += SquaredError.between(codes[0], codes[2], where)
        row.whole[i] += SquaredError.between(codes[1], codes[2], where)
    for axis in (0, 1):
        for i, error in enumerate(steps(tiled - whole, tiles, axis)):
            row.step[i] += error


def steps(difference: Image, tiles: list[Window], axis: int) -> tuple[SquaredError, SquaredError]:
    """Changes of a difference between neighbours along an axis: across the edges of tiles, and elsewhere."""
    size = difference.shape[axis]
    edges = {place for tile in tiles for place in (tile[axis].start, tile[axis].stop)} - {0, size}
    change = np.moveaxis(np.diff(difference, axis=axis), axis, 0)
    across = np.isin(np.arange(1, size), sorted(edges))
    at_edges, inside = (SquaredError.between(part, np.zeros_like(part)) for part in (change[across], change[~across]))
    return at_edges, inside


def manifest(checkpoint: Checkpoint, tile: int, overlap: int) -> Manifest:
    """What the restorer needs to know of PyTorch; it is never written."""
    return Manifest(
        name="pytorch",
        network=checkpoint.descriptor,
        checkpoint=CheckpointRecord(checkpoint.path.stem, checkpoint.sha256),
        model=Model("onnxruntime"),
        precision=Precision("fp32"),
        tile=Tile(tile, tile, overlap),
        input=TensorSpec("input", **FLOAT_NCHW),
        output=TensorSpec("output", **FLOAT_NCHW),
        versions={},
    )


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


if __name__ == "__main__":
    try:
        main()
    except EchoIRError as error:
        sys.exit(f"error: {error}")
