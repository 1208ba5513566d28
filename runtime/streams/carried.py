"""What a stream of frames carries besides pixels, and which encoder takes it along.

HDR's mastering display (SMPTE ST 2086) and content light level (CTA-861.3) are told to the encoder once; captions
(ATSC A/53) and the like lie beside every frame, and the encoder finds them there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import av

# What lies beside frames, in words, and the encoders that write it.
BESIDE = {
    "A53_CC": ("closed captions (A/53)", ("libx264", "libx265", "h264_nvenc", "hevc_nvenc", "libsvtav1")),
    "DYNAMIC_HDR_PLUS": ("HDR10+", ()),
    "DOVI_METADATA": ("Dolby Vision", ()),
    "DOVI_RPU_BUFFER": ("Dolby Vision", ()),
    "S12M_TIMECODE": ("time codes of frames", ("libx264", "libx265")),
}
INTERLACED = ("libx264", "mpeg2video")  # encoders that keep two fields in a frame


@dataclass(frozen=True)
class Light:
    """What HDR was graded on.

    Args:
        display: x and y of red, green, blue and white in units of 0.00002, then the greatest and the least
            luminance in units of 0.0001 cd/m2; None when not said.
        content: greatest light level of a pixel and of a frame's mean, in cd/m2; None when not said.
    """

    display: tuple[int, ...] | None = None
    content: tuple[int, int] | None = None

    @classmethod
    def of(cls, frame: av.VideoFrame) -> Light | None:
        """What a decoded frame says."""
        display = content = None
        side: Any = frame.side_data.get("MASTERING_DISPLAY_METADATA")
        if side is not None:  # AVMasteringDisplayMetadata: ten fractions, and whether colours and luminance are known
            values = np.frombuffer(side, "<i4")
            fractions = [top / bottom if bottom else 0 for top, bottom in values[:20].reshape(10, 2).tolist()]
            if values[20] and values[21]:
                scaled = [round(value * 50000) for value in fractions[:8]]
                display = (*scaled, round(fractions[9] * 10000), round(fractions[8] * 10000))
        side = frame.side_data.get("CONTENT_LIGHT_LEVEL")
        if side is not None:
            values = np.frombuffer(side, "<u4")
            content = int(values[0]), int(values[1])
        return cls(display, content) if display or content else None

    def options(self, encoder: str) -> dict[str, str] | None:
        """How an encoder is told; None when it cannot be."""
        names = {
            "libx264": ("x264-params", "mastering-display", "cll"),
            "libx265": ("x265-params", "master-display", "max-cll"),
            "libsvtav1": ("svtav1-params", "mastering-display", "content-light"),
        }.get(encoder)
        if names is None:
            return None
        option, display, content = names
        parts = []
        if self.display is not None:
            values: list[Any] = list(self.display)
            if encoder == "libsvtav1":
                values = [value / 50000 for value in values[:8]] + [value / 10000 for value in values[8:]]
            pairs = [f"{name}({values[at]},{values[at + 1]})" for name, at in (("G", 2), ("B", 4), ("R", 0), ("WP", 6))]
            parts.append(f"{display}={''.join(pairs)}L({values[8]},{values[9]})")
        if self.content is not None:
            parts.append(f"{content}={self.content[0]},{self.content[1]}")
        return {option: ":".join(parts)}


@dataclass
class Beside:
    """Tells once what lies beside frames and goes lost.

    Args:
        encoder: FFmpeg's name; None: no encoder, frames go into a pipe.
        note: who is told.
    """

    encoder: str | None
    note: Callable[[str], None]

    def __post_init__(self) -> None:
        self._told: set[str] = set()

    def check(self, frame: av.VideoFrame) -> None:
        """Look at a frame on its way."""
        for kind, (words, encoders) in BESIDE.items():
            if words not in self._told and self.encoder not in encoders and kind in frame.side_data:
                self._told.add(words)
                self.note(f"left out: {words}, which {self.encoder or 'a pipe'} does not take")
