"""A decoded picture: its pixels and all else that its file holds."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from echoir.runtime.channels import enlarged
from echoir.runtime.extras import Extras, scaled_extras, without_profile
from echoir.runtime.tags import EXTRA_SAMPLES
from echoir.runtime.vips import scaled_fields

if TYPE_CHECKING:
    import pyvips

Array = np.ndarray[Any, np.dtype[Any]]

# Suffixes that can be written, and the format each stands for. Reading goes by content.
WRITABLE = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".tif": "tiff", ".tiff": "tiff", ".webp": "webp"}
READABLE = (*WRITABLE, ".bmp", ".dib")


@dataclass(frozen=True)
class Picture:
    """A decoded picture.

    Attributes:
        path: the file it came from.
        format: ``"png"``, ``"jpeg"``, ``"tiff"``, ``"webp"`` or ``"bmp"``.
        pixels: [H, W, C], uint8 or uint16; C is 1 gray, 2 gray and alpha, 3 RGB, 4 RGB and alpha.
            Palettes are resolved to RGB, 1, 2 and 4 bits are widened to 8 (white is 255).
        resolution: pixels per millimetre, across and down; None if the file does not say.
        metadata: everything else in the file, by libvips' field names, as libvips' own values (EXIF
            may hold text of unknown encoding, which Python's strings would change).
        extras: what libvips does not keep.
    """

    path: Path
    format: str
    pixels: Array
    resolution: tuple[float, float] | None = None
    metadata: dict[str, pyvips.GValue] = field(default_factory=dict)
    extras: Extras = field(default_factory=Extras)

    @property
    def height(self) -> int:
        return int(self.pixels.shape[0])

    @property
    def width(self) -> int:
        return int(self.pixels.shape[1])

    @property
    def gray(self) -> bool:
        return self.pixels.shape[2] < 3

    @property
    def channels(self) -> int:
        """Without alpha: 1 gray, 3 RGB."""
        return 1 if self.gray else 3

    @property
    def rgb(self) -> Array:
        """The colours [H, W, 3] without alpha; gray in all three. A view."""
        return (
            np.broadcast_to(self.pixels[:, :, :1], (self.height, self.width, 3)) if self.gray else self.pixels[:, :, :3]
        )

    @property
    def alpha(self) -> Array | None:
        """The alpha channel [H, W], or None."""
        return self.pixels[:, :, -1] if self.pixels.shape[2] in (2, 4) else None

    @property
    def fourth(self) -> bool:
        """Whether what stands in the place of an alpha channel is something else, as a scanner's infrared."""
        tag = (self.extras.tags or {}).get(EXTRA_SAMPLES)
        return self.format == "tiff" and self.alpha is not None and tag is not None and tag.numbers[:1] == [0]

    def canvas(self, scale: Fraction = Fraction(1), channels: int | None = None) -> Picture:
        """An empty picture for what becomes of this one, with its metadata and alpha.

        Args:
            scale: pixels of the new one for each of this one, each side. Alpha is enlarged with it, and so is what
                the file says of resolution and size.
            channels: of the new one without alpha, 1 gray or 3 RGB; None keeps this one's.
        """
        alpha = self.alpha
        size = int(self.height * scale), int(self.width * scale)
        pixels = np.empty((*size, (channels or self.channels) + (alpha is not None)), self.pixels.dtype)
        if alpha is not None:
            pixels[:, :, -1] = enlarged(alpha, scale)
        metadata, extras, resolution = self.metadata, self.extras, self.resolution
        if channels not in (None, self.channels):
            metadata = {name: value for name, value in metadata.items() if name != "icc-profile-data"}
            extras = without_profile(extras)
        if scale != 1:
            extras = scaled_extras(extras, float(scale), *size)
            metadata = scaled_fields(metadata, float(scale), *size)
            resolution = resolution and (resolution[0] * float(scale), resolution[1] * float(scale))
        return replace(self, pixels=pixels, resolution=resolution, metadata=metadata, extras=extras)

    def left_behind(self, target: Path) -> list[str]:
        """What the file holds and a picture saved as ``target`` will not, in words."""
        left = list(self.extras.left)
        if self.format == "png" and WRITABLE.get(target.suffix.lower()) != "png" and (colours := self.extras.colours):
            left.append(f"how its colours look ({', '.join(colours)})")
        return left

    def read_rows(self, y0: int, y1: int) -> Array:
        """Rows y0 to y1 - 1 without alpha: [y1 - y0, W, 3], or [y1 - y0, W] of a gray picture. No copy."""
        rows = self.pixels[y0:y1]
        return rows[:, :, 0] if self.gray else rows[:, :, :3]
