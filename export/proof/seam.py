"""Do tiles show where they meet? What was measured of it, and its gate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from echoir.export.proof.figures import SquaredError
from echoir.runtime.manifest import Tile

LEAST = 55.0  # dB, what an fp16 engine may be from PyTorch: tiles cost no more than that
STANDS_OUT = 10.0  # dB from which on tiles are worse where they meet for a reason of its own
ADVICE = "give a larger --overlap, or auto"


@dataclass(frozen=True)
class Seam:
    """Tiles against the whole picture, without an engine.

    Attributes:
        tile: as it was cut and blended.
        pictures: that were cut.
        band: the differences along the lines where tiles meet: in what they share, and 8 pixels either side at least.
        elsewhere: in the rest of the middle, where tiles do not reach the border of the picture.
        least: the gate, in dB.
        strict: whether the band has to pass: of a network that is local, or if so asked. One that looks at its whole
            tile is far from the whole picture everywhere; that is its own affair, and reported.
        advice: what to do where the gate is not passed.
    """

    tile: Tile
    pictures: int
    band: SquaredError
    elsewhere: SquaredError
    least: float
    strict: bool
    advice: str = ADVICE

    @property
    def failures(self) -> list[str]:
        """Why the gate is not passed, in a sentence; empty if it is, or if it is not asked of this network."""
        if self.band.psnr >= self.least or not self.strict:
            return []
        return [
            f"tiles are {self.band.psnr:.2f} dB from the whole picture where they meet, {_db(self.elsewhere)} "
            f"elsewhere, the gate is {self.least:g} dB: {self.advice}"
        ]

    @property
    def sentence(self) -> str:
        """What was found, for people."""
        shared = f"share {self.tile.overlap} pixels" if self.tile.overlap else "only touch"
        found = (
            f"tiles that {shared}, against the whole picture: {_db(self.band)} where they meet, "
            f"{_db(self.elsewhere)} elsewhere"
        )
        if self.band.psnr >= self.least or self.failures:
            return found
        if self.elsewhere.psnr >= self.band.psnr + STANDS_OUT:  # that is the overlap's doing, or the phase's
            return f"{found}; tiles show where they meet: {self.advice}"
        return f"{found}; the network looks at its whole tile, which no overlap cures"

    def to_json(self) -> dict[str, Any]:
        """For the manifest and ``parity.json``; dB."""
        return {
            "overlap": self.tile.overlap,
            "margin": self.tile.margin,
            "pictures": self.pictures,
            "band": self.band.to_json(),
            "elsewhere": self.elsewhere.to_json(),
            "gate": {"min_psnr": self.least, "strict": self.strict, "passed": not self.failures},
        }


def _db(error: SquaredError) -> str:
    value = error.psnr
    return "not compared" if math.isnan(value) else "equal" if math.isinf(value) else f"{value:.2f} dB"
