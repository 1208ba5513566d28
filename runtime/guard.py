"""Refuses what cannot be the output of a model that works."""

from __future__ import annotations

import numpy as np

from echoir.runtime.contract import Array
from echoir.runtime.errors import ArtifactError, RejectedOutputError
from echoir.runtime.manifest import Manifest


def check_output(raw: Array, count: int, manifest: Manifest) -> None:
    """Refuse a batch of another shape or type than the manifest's."""
    needed, dtype = manifest.shape("output", count), manifest.output.dtype
    if raw.shape != needed or raw.dtype != dtype:
        raise ArtifactError("output", f"{raw.dtype} {raw.shape} from the session", f"{dtype} {needed}")


def guard(tile: Array, output: Array, peak: int, place: tuple[int, int], manifest: Manifest) -> None:
    """Refuse pixels that cannot be a restored image: one bad tile must not become a file.

    A float output that is exactly constant has lost its input. An 8-bit output may rightly be (sensor
    noise around white becomes white), so it is refused only where the input, averaged over blocks of
    16 x 16 pixels so that noise does not count, strays from it by more than a quarter of the range.
    """
    where = f"of the tile at row {place[0]}, column {place[1]}"
    cause = {
        "fp32": "the model file or the session is broken",
        "fp16": "most likely a value left the range of fp16; try the fp32 artifact",
        "int8": "most likely the calibration ranges do not fit this image; try the fp16 artifact",
    }[manifest.precision.name]
    least, value = output.min(), output.max()  # not a number where one pixel is none; and nothing is allocated
    if output.dtype != np.uint8 and not (np.isfinite(least) and np.isfinite(value)):
        kind = "NaN" if np.isnan(output).any() else "infinite"
        raise RejectedOutputError(f"the model returned {kind} pixels {where}: {cause}")
    if least != value or (tile == tile[0, 0]).all():
        return
    if output.dtype == np.uint8:
        (rows, height), (columns, width) = ((max(1, size // 16), min(16, size)) for size in tile.shape[:2])
        blocks = tile[: rows * height, : columns * width].reshape(rows, height, columns, width, -1)
        means = blocks.mean(axis=(1, 3), dtype=np.float32)
        if np.abs(means / peak - value / 255).max() <= 0.25:
            return
    raise RejectedOutputError(f"the model returned the one value {value} for every pixel {where}: {cause}")
