"""Pixel formats of video: how a frame lies in memory, and what its codes mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Planes = Sequence[Array]
Matrix = Literal["bt601", "bt709", "bt2020", "smpte240m", "fcc"]
Range = Literal["limited", "full"]
Siting = Literal["left", "center", "topleft"]

# Shares of red and blue in luma: ITU-R BT.601-7, BT.709-6, BT.2020-2 (non-constant luminance); H.273 table 4.
SHARES: dict[str, tuple[float, float]] = {
    "bt601": (0.299, 0.114),
    "bt709": (0.2126, 0.0722),
    "bt2020": (0.2627, 0.0593),
    "smpte240m": (0.212, 0.087),
    "fcc": (0.30, 0.11),
}


@dataclass(frozen=True)
class Colour:
    """What codes mean.

    Args:
        matrix: between luma, chroma and RGB.
        range: ``"limited"``: black 16, white 235, chroma 16 to 240 (times 4 with 10 bits); ``"full"``: all codes.
        siting: where a chroma sample lies among its luma samples: ``"left"`` (on the even column, between two
            rows: MPEG-2, H.264, HEVC), ``"center"`` (between columns and rows: JPEG, MPEG-1) or ``"topleft"``
            (on both: most BT.2020 and DV).
    """

    matrix: Matrix = "bt709"
    range: Range = "limited"
    siting: Siting = "left"


@dataclass(frozen=True)
class Format:
    """How a pixel format lies in memory.

    Args:
        name: FFmpeg's name.
        kind: what the components are: R, G, B (and one more that is carried along), Y, or Y, Cb, Cr.
        places: (plane, offset, step) of each component, in samples.
        shared: log2 of the columns and rows that share a chroma sample.
        depth: bits of a code.
        shift: bits below the code inside a sample (P010: 6).
    """

    name: str
    kind: Literal["rgb", "gray", "yuv"]
    places: tuple[tuple[int, int, int], ...]
    shared: tuple[int, int] = (0, 0)
    depth: int = 8
    shift: int = 0

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of a sample: uint8, or little-endian uint16."""
        return np.dtype(np.uint8 if self.depth + self.shift <= 8 else "<u2")

    @property
    def peak(self) -> int:
        """The largest code."""
        return (1 << self.depth) - 1

    @property
    def alpha(self) -> bool:
        """Whether the sample beside R, G and B says how opaque a pixel is; else it says nothing."""
        return self.name in ("rgba", "bgra")

    @property
    def channels(self) -> int:
        """Of the pixels that a model is given: 1 gray, 3 RGB."""
        return 1 if self.kind == "gray" else 3

    def size(self, component: int, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of a component in a picture of this size (half a chroma sample counts as one)."""
        if component == 0 or self.kind != "yuv":
            return height, width
        across, down = self.shared
        return -(-height >> down), -(-width >> across)

    def shapes(self, height: int, width: int) -> list[tuple[int, int]]:
        """Rows and samples per row of every plane."""
        shapes: dict[int, tuple[int, int]] = {}
        for component, (plane, _, step) in enumerate(self.places):
            rows, columns = self.size(component, height, width)
            shapes[plane] = rows, max(columns * step, shapes.get(plane, (0, 0))[1])
        return [shapes[plane] for plane in sorted(shapes)]

    def empty(self, height: int, width: int) -> list[Array]:
        """Planes of one frame, not filled."""
        return [np.empty(shape, self.dtype) for shape in self.shapes(height, width)]

    def components(self, planes: Planes, height: int, width: int) -> list[Array]:
        """Views of the components, [rows, columns] each, of planes that may be wider than the picture."""
        views = []
        for component, (plane, offset, step) in enumerate(self.places):
            rows, columns = self.size(component, height, width)
            views.append(planes[plane][:rows, offset : offset + (columns - 1) * step + 1 : step])
        return views


def _formats() -> dict[str, Format]:
    formats = [Format("gray", "gray", ((0, 0, 1),))]
    formats += [Format(f"gray{depth}le", "gray", ((0, 0, 1),), depth=depth) for depth in (10, 12, 16)]
    orders = {"rgb24": "RGB", "bgr24": "BGR"}
    orders |= {"rgb0": "RGBX", "bgr0": "BGRX", "0rgb": "XRGB", "0bgr": "XBGR", "rgba": "RGBX", "bgra": "BGRX"}
    for name, order in orders.items():
        places = tuple((0, order.index(channel), len(order)) for channel in "RGBX"[: len(order)])
        formats.append(Format(name, "rgb", places))
    planar = ((0, 0, 1), (1, 0, 1), (2, 0, 1))
    for ratio, shared in {"420": (1, 1), "422": (1, 0), "444": (0, 0)}.items():
        formats += [Format(f"{name}{ratio}p", "yuv", planar, shared) for name in ("yuv", "yuvj")]
        formats += [Format(f"yuv{ratio}p{depth}le", "yuv", planar, shared, depth) for depth in (10, 12)]
    formats.append(Format("nv12", "yuv", ((0, 0, 1), (1, 0, 2), (1, 1, 2)), (1, 1)))
    formats.append(Format("nv21", "yuv", ((0, 0, 1), (1, 1, 2), (1, 0, 2)), (1, 1)))
    formats.append(Format("p010le", "yuv", ((0, 0, 1), (1, 0, 2), (1, 1, 2)), (1, 1), 10, 6))
    formats.append(Format("yuyv422", "yuv", ((0, 0, 2), (0, 1, 4), (0, 3, 4)), (1, 0)))
    formats.append(Format("uyvy422", "yuv", ((0, 1, 2), (0, 0, 4), (0, 2, 4)), (1, 0)))
    return {format.name: format for format in formats}


FORMATS = _formats()
