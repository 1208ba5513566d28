"""What a network is and what it needs, as the manifest carries it. No torch, nothing that can be called.

The chain asks this record, never which network it is. What an artifact chose (its tile, overlap, batch) is
:class:`echoir.runtime.manifest.Tile`; the manifest holds the choice to the need.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from echoir.runtime.checked import Must, Natural, Positive, Text

Planes = Literal["gray", "RGB", "RGGB", "RGB pair"]
CHANNELS: dict[Planes, int] = {"gray": 1, "RGB": 3, "RGGB": 4, "RGB pair": 6}
MAX_SCALE = 4

Scale = Annotated[int, Must(f"a whole number from 1 to {MAX_SCALE}", lambda value: 1 <= value <= MAX_SCALE)]
Pair = tuple[Positive, Positive]


@dataclass(frozen=True)
class Descriptor:
    """One network.

    Attributes:
        architecture: its family, such as ``"NAFNet"``.
        task: what it restores, such as ``"denoise"``.
        parameters: trained numbers.
        variant: its size or preset within the architecture; may be empty.
        config: whatever rebuilds it; JSON values.
        scale: output pixels per input pixel, each side.
        input, output: the planes of a picture that it takes and gives.
        multiple: (height, width) that tile sides are multiples of, in pixels of the input.
        phase: (height, width) that tile starts are multiples of.
        overlap: the least that neighbouring tiles share, in pixels of the input.
        tile: (height, width) of the tile it likes.
        local: whether an output pixel depends on pixels nearby alone. Where it does not (means over the whole
            tile), no overlap makes tiles equal to the whole picture.
        forms: kinds of pictures that it was trained on (:mod:`echoir.forms`); empty where that is not known.
        measured: names of the fields above that were found by running the network, not declared.
    """

    architecture: Text
    task: Text
    parameters: Natural
    variant: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    scale: Scale = 1
    input: Planes = "RGB"
    output: Planes = "RGB"
    multiple: Pair = (1, 1)
    phase: Pair = (1, 1)
    overlap: Natural = 0
    tile: Pair = (256, 256)
    local: bool = False
    forms: tuple[str, ...] = ()
    measured: tuple[str, ...] = ()

    @property
    def mosaic(self) -> int:
        """Pixels of a picture for each of the input, each side: a mosaic's (RGGB) has four planes of a quarter."""
        return 2 if self.input == "RGGB" else 1

    @property
    def name(self) -> str:
        """Architecture and variant, for people."""
        return " ".join(filter(None, (self.architecture, self.variant)))
