"""How pixels of a picture and values of a network meet."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from echoir.runtime.contract import Array

Floats = np.ndarray[Any, np.dtype[np.float32]]
PEAKS = {np.dtype(np.uint8): 255, np.dtype(np.uint16): 65535, np.dtype(np.float32): 1}


def finish(sums: Floats, rows: Array) -> Iterator[Array]:
    """Finished sums as pixels of the image's shape and type, a few rows at a time to save memory."""
    peak = np.float32(PEAKS[rows.dtype])
    for start in range(0, len(sums), 32):
        part = sums[start : start + 32]
        pixels = part.mean(axis=2) if rows.ndim == 2 else part.copy()
        if rows.dtype == np.float32:
            yield pixels
            continue
        pixels *= peak
        np.rint(pixels, out=pixels)
        yield np.clip(pixels, 0, peak, out=pixels).astype(rows.dtype)
