"""What files of each suffix can hold, beyond frames and sound."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from echoir.runtime.errors import ImageError
from echoir.runtime.streams.carried import INTERLACED
from echoir.runtime.streams.videoframes import UNSPECIFIED, StreamInfo


@dataclass(frozen=True)
class Container:
    """A kind of file; see FFmpeg's documentation of its muxers.

    Args:
        format: FFmpeg's name of the muxer.
        turned: it holds a display matrix: that the picture is shown turned or mirrored.
        chapters: it holds chapters.
        cover: how it holds a cover.
        attachments: it holds other files, fonts for instance.
        variable: it holds a time stamp of every frame; else it counts frames at a constant rate.
        below_zero: it holds decoding times before 0, where frames are decoded in another order than shown.
        standing: it holds packets of a stream that have the same time.
        last: it says how long the last frame is shown.
    """

    format: str
    turned: bool = False
    chapters: bool = False
    cover: Literal["stream", "attachment"] | None = None
    attachments: bool = False
    variable: bool = True
    below_zero: bool = False
    standing: bool = False
    last: bool = False

    @property
    def options(self) -> dict[str, str]:
        """FFmpeg's options of the muxer: time stamps stay what they are wherever they can."""
        return {"avoid_negative_ts": "disabled" if self.below_zero else "make_non_negative"}


_MP4 = Container("mp4", turned=True, chapters=True, cover="stream", below_zero=True, last=True)
CONTAINERS = {
    ".mp4": _MP4,
    ".m4v": _MP4,
    ".mov": Container("mov", turned=True, chapters=True, below_zero=True, last=True),
    ".mkv": Container(
        "matroska",
        turned=True,
        chapters=True,
        cover="attachment",
        attachments=True,
        below_zero=True,
        standing=True,
        last=True,
    ),
    ".webm": Container("webm", turned=True, chapters=True, below_zero=True, standing=True, last=True),
    ".avi": Container("avi", variable=False, below_zero=True),
    ".ts": Container("mpegts"),
    ".nut": Container("nut", chapters=True),
}


def container_of(target: Path) -> Container:
    """What a file's suffix stands for; raises ImageError for one that is not known."""
    container = CONTAINERS.get(target.suffix.lower())
    if container is None:
        raise ImageError(f"cannot write {target}: the suffix is none of {', '.join(CONTAINERS)}")
    return container


def left_out(
    info: StreamInfo,
    container: Container | None,
    encoder: str | None,
    pipe: Literal["y4m", "raw", "caps"] | None = None,
) -> list[str]:
    """What a film says of itself that a sink does not hold, each in a few words.

    Args:
        info: of the film.
        container: of the file; None: a pipe.
        encoder: FFmpeg's name; None in a pipe.
        pipe: what standard output gets, or ``"caps"``: a pipeline of GStreamer's; None: a file.
    """
    words, tags = [], info.tags
    if pipe == "raw":
        rate = f", {float(info.rate):.6g} frames/s" if info.rate else ""
        words.append(f"size, format and rate ({info.width} x {info.height} {info.format.name}{rate})")
        if info.aspect is not None and info.aspect != 1:
            words.append("its pixel aspect ratio")
    if pipe in ("y4m", "raw") and {tags.matrix, tags.primaries, tags.transfer} != {UNSPECIFIED}:
        words.append("its colours (matrix, primaries, transfer)")
    if info.display is not None and not (container and container.turned):
        words.append("that it is shown turned or mirrored")
    if info.light is not None and (encoder is None or info.light.options(encoder) is None):
        words.append("what its HDR was graded on (mastering display, light level)")
    if info.fields is not None and pipe not in ("y4m", "caps") and encoder not in INTERLACED:
        words.append("that it is interlaced (--deinterlace makes whole frames)")
    if info.alpha:
        words.append("its alpha plane")
    return words
