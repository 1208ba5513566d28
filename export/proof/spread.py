"""How an error is spread: its largest value, percentiles, a histogram. They add up over pictures."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FIRST, LAST = -30, 2  # powers of two: errors from 1e-9 of the range to four times it
PER_OCTAVE = 4
EDGES = 2.0 ** np.linspace(FIRST, LAST, (LAST - FIRST) * PER_OCTAVE + 1)
PERCENTILES = (50.0, 90.0, 99.0, 99.9)


@dataclass(frozen=True)
class Spread:
    """Magnitudes of differences, for a peak of 1.

    Attributes:
        counts: values below each of ``EDGES`` and not below the one before; the first also counts zeros, and one more
            counts what is above all.
        largest: to the last digit.
    """

    counts: tuple[int, ...] = (0,) * (len(EDGES) + 1)
    largest: float = 0.0

    @classmethod
    def between(cls, a: NDArray[Any], b: NDArray[Any]) -> Spread:
        """Of two images of one shape."""
        error = np.abs(a.astype(np.float64) - b).ravel()
        counts = np.bincount(np.searchsorted(EDGES, error, side="right"), minlength=len(EDGES) + 1)
        return cls(tuple(counts.tolist()), float(error.max()))

    def __add__(self, other: Spread) -> Spread:
        counts = tuple(a + b for a, b in zip(self.counts, other.counts, strict=True))
        return Spread(counts, max(self.largest, other.largest))

    def percentile(self, percent: float) -> float:
        """What so many of the values do not exceed: exact to a quarter of an octave, and never too small."""
        reached = np.cumsum(self.counts) >= percent / 100 * sum(self.counts)
        place = int(np.argmax(reached))
        return min(float(EDGES[place]), self.largest) if place < len(EDGES) else self.largest

    @property
    def octaves(self) -> dict[int, int]:
        """How many values have a magnitude from ``2 ** k`` up to twice that, by k, where there are any."""
        between = self.counts[1:-1]
        sums = [sum(between[i : i + PER_OCTAVE]) for i in range(0, len(between), PER_OCTAVE)]
        return {FIRST + index: count for index, count in enumerate(sums) if count}

    def to_json(self) -> dict[str, Any]:
        """In units of the range, 1 being white."""
        return {"largest": self.largest, **{f"p{percent:g}": self.percentile(percent) for percent in PERCENTILES}}


def in_codes(error: float) -> str:
    """An error in 8-bit codes, to two digits."""
    codes = 255 * error
    return "0" if codes == 0 else f"{codes:.{max(0, 1 - math.floor(math.log10(codes)))}f}"
