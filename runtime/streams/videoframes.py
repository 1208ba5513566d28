"""Frames of video, what a stream says about them, and what sources and sinks have in common."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal, Protocol

import numpy as np

from echoir.runtime.errors import ImageError
from echoir.runtime.streams.carried import Light
from echoir.runtime.streams.pixels import Colour, Format, Matrix, Range, Siting

Array = np.ndarray[Any, np.dtype[Any]]

# Code points of ITU-T H.273 that name a matrix here; 0 is RGB, 2 is unspecified.
MATRICES: dict[int, Matrix] = {1: "bt709", 4: "fcc", 5: "bt601", 6: "bt601", 7: "smpte240m", 9: "bt2020"}
UNSPECIFIED = 2


@dataclass(frozen=True)
class Tags:
    """What a stream says about its colours, carried from source to sink as it is.

    Args:
        matrix, primaries, transfer: code points of H.273, 2 where the stream does not say.
        range: None where the stream does not say.
        siting: of chroma; None where the stream does not say.
    """

    matrix: int = UNSPECIFIED
    primaries: int = UNSPECIFIED
    transfer: int = UNSPECIFIED
    range: Range | None = None
    siting: Siting | None = None


@dataclass(frozen=True)
class StreamInfo:
    """A video stream.

    Args:
        width, height: in pixels, as stored (before any rotation).
        format: of its pixels.
        tags: what it says about its colours.
        rate: frames per second, None when unknown.
        time_base: the unit of time stamps, in seconds.
        aspect: width of a pixel over its height; None when not said.
        display: the nine numbers of the display matrix of a stream that is shown turned or mirrored, else None.
        siting_norm: where chroma is sited unless the stream says otherwise, and who says so.
        frames: how many the container announces; None when unknown.
        fields: which of two interlaced fields is shown first; None: frames are whole, or the stream does not say.
        light: what HDR was graded on.
        tag: the four characters by which MP4 and MOV name the codec.
        alpha: it has an alpha plane beside the planes of its format.
    """

    width: int
    height: int
    format: Format
    tags: Tags = Tags()
    rate: Fraction | None = None
    time_base: Fraction = Fraction(1, 90000)
    aspect: Fraction | None = None
    display: tuple[int, ...] | None = None
    siting_norm: tuple[Siting, str] = ("left", "the norm of MPEG-2 and after")
    frames: int | None = None
    fields: Literal["top", "bottom"] | None = None
    light: Light | None = None
    tag: str | None = None
    alpha: bool = False

    def __str__(self) -> str:
        parts = [f"{self.width} x {self.height} {self.format.name}"]
        if self.rate:
            parts.append(f"{float(self.rate):.6g} frames/s")
        if self.fields is not None:
            parts.append(f"interlaced, {self.fields} field first")
        if self.light is not None:
            parts.append("HDR")
        if self.display is not None:
            parts.append("shown turned or mirrored")
        if self.aspect and self.aspect != 1:
            parts.append(f"pixel aspect {self.aspect.numerator}:{self.aspect.denominator}")
        return ", ".join(parts)


@dataclass
class VideoFrame:
    """One frame.

    Args:
        planes: as its stream's format says; rows may be longer than the picture.
        pts: time stamp in the stream's time base; None when it has none.
        duration: in the same unit; None when unknown.
        owner: what the planes lie in.
        interlaced: odd and even rows are two fields, of two moments.
    """

    planes: list[Array]
    pts: int | None = None
    duration: int | None = None
    owner: Any = None
    interlaced: bool = False


class Source(Protocol):
    """Where frames come from."""

    info: StreamInfo
    live: bool

    def frames(self) -> Iterator[VideoFrame]:
        """Frames until the end; raises ImageError for what cannot be read."""

    def give_back(self, frame: VideoFrame) -> None:
        """The frame is not used any more."""

    def close(self) -> None:
        """Let go of the file or the device."""


class Sink(Protocol):
    """Where frames go."""

    def blank(self, like: VideoFrame) -> VideoFrame:
        """A frame to be filled and written, with what ``like`` carries besides pixels; it may be ``like`` itself."""

    def write(self, frame: VideoFrame) -> None:
        """Take a frame: one from :meth:`blank`, or one of the source's; raises ImageError."""

    def finish(self, complete: bool) -> None:
        """No more frames: make what was written usable. ``complete``: the source came to its end."""

    def close(self) -> None:
        """Let go of everything; after :meth:`finish`, or instead of it after an error."""


@dataclass
class Pool:
    """Frames that are used again and again; from any thread."""

    info: StreamInfo
    _spare: deque[VideoFrame] = field(default_factory=deque)

    def take(self) -> VideoFrame:
        """A frame whose planes hold anything."""
        try:
            frame = self._spare.pop()
        except IndexError:
            frame = VideoFrame(self.info.format.empty(self.info.height, self.info.width), owner=self)
        frame.pts = frame.duration = None
        return frame

    def give_back(self, frame: VideoFrame) -> None:
        """Take back what :meth:`take` gave; others are left alone."""
        if frame.owner is self:
            self._spare.append(frame)


def resolve_colour(
    info: StreamInfo, *, matrix: Matrix | None = None, range: Range | None = None, siting: Siting | None = None
) -> tuple[Colour, list[str]]:
    """What the codes of a stream mean: what it says, unless overridden, or else a stated assumption.

    Returns:
        The colour, and a sentence for everything that the stream does not say and nobody told.

    Raises:
        ImageError: the stream says a matrix that is not supported (constant luminance, ICtCp, YCgCo).
    """
    notes: list[str] = []
    if info.format.kind == "rgb":
        return Colour(), notes
    told = MATRICES.get(info.tags.matrix)
    if info.format.kind == "gray":
        matrix = "bt709"  # of no effect
    elif matrix is None and told is None and info.tags.matrix != UNSPECIFIED:
        raise ImageError(
            f"the stream's colour matrix has code point {info.tags.matrix} of H.273, which is not supported; "
            "if it is wrong, say --matrix"
        )
    elif matrix is None and told is None:
        matrix = "bt601" if info.height <= 576 else "bt709"
        notes.append(f"the stream does not say its colour matrix: taken for {matrix} by its height (--matrix)")
    if range is None and info.tags.range is None:
        range = "full" if info.format.kind == "gray" else "limited"
        notes.append(f"the stream does not say its range: taken for {range} (--range)")
    if siting is None and info.tags.siting is None:
        siting, norm = info.siting_norm
        if info.format.shared != (0, 0):
            notes.append(f"the stream does not say where chroma is sited: {siting}, {norm} (--siting)")
    settled = matrix or told or "bt709", range or info.tags.range or "limited", siting or info.tags.siting or "left"
    return Colour(*settled), notes
