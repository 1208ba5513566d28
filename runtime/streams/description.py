"""What a video stream's header says, through PyAV (FFmpeg's libraries); and frames through FFmpeg's filters."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal

from echoir.runtime.errors import ImageError
from echoir.runtime.streams.demuxing import pyav
from echoir.runtime.streams.pixels import FORMATS, Range, Siting
from echoir.runtime.streams.videoframes import StreamInfo, Tags

if TYPE_CHECKING:
    import av
    from av.container import InputContainer
    from av.video.stream import VideoStream

# Formats that hold the same values in another order.
REPACKED = {"gbrp": "rgb24", "pal8": "rgb24", "argb": "rgba", "abgr": "rgba", "nv16": "yuv422p", "yvyu422": "yuv422p"}
_RANGES: dict[int, Range] = {1: "limited", 2: "full"}
_SITINGS: dict[str, Siting] = {"left": "left", "center": "center", "topleft": "topleft"}
# Where the stream does not say: the siting that the codec's standard has in the normal case.
_CENTRED = ("mjpeg", "mpeg1video", "jpeg2000")


def _norm(codec: str) -> tuple[Siting, str]:
    return ("center" if codec in _CENTRED else "left"), f"the norm of {codec}"


def describe(name: str, container: InputContainer, stream: VideoStream) -> StreamInfo:
    """What the header says."""
    context = stream.codec_context
    pixels = REPACKED.get(context.pix_fmt or "", context.pix_fmt or "")
    if pixels not in FORMATS:
        raise ImageError(
            f"{name} has pixels of the format {context.pix_fmt or '(unknown: no frame could be read)'}, "
            "which is not supported"
        )
    if not (context.width and context.height):
        raise ImageError(f"{name} does not say the size of its frames: is it damaged or empty?")
    dumped = _dumped(container, stream)
    tags = Tags(
        matrix=int(context.colorspace),
        primaries=int(context.color_primaries),
        transfer=int(context.color_trc),
        range="full" if pixels.startswith("yuvj") else _RANGES.get(int(context.color_range)),
        siting=_siting(dumped),
    )
    return StreamInfo(
        context.width,
        context.height,
        FORMATS[pixels],
        tags=tags,
        rate=stream.average_rate or stream.guessed_rate,
        time_base=stream.time_base or Fraction(1, 90000),
        aspect=stream.sample_aspect_ratio or None,
        siting_norm=_norm(context.name),
        frames=_shown(stream),
        fields=_fields(dumped),
        tag=context.codec_tag.strip() or None,
        alpha=stream.metadata.get("alpha_mode") == "1",
    )


def _shown(stream: VideoStream) -> int | None:
    """How many frames the container announces, without those that an edit list leaves out."""
    entries = stream.index_entries
    if len(entries) < stream.frames:  # no index, or AVI's, which counts frames that are shown again
        return len(entries) or None if len(entries) > 1 else stream.frames or None
    return sum(not entry.is_discard for entry in entries) if stream.frames else None


def _dumped(container: InputContainer, stream: VideoStream) -> str:
    """FFmpeg's own lines about a stream: siting of chroma, the first field, cropping: PyAV says them nowhere else."""
    logging = pyav().logging
    logging.set_level(logging.VERBOSE)
    logging.set_libav_level(logging.VERBOSE)
    try:
        dump: Any = container  # a method that PyAV's types leave out
        lines = dump.dumps_format().splitlines()
    finally:
        logging.set_level(logging.PANIC)
        logging.set_libav_level(logging.INFO)  # FFmpeg's own default
    starts = [index for index, line in enumerate(lines) if re.match(r"\s*Stream #0:", line)]
    own = (index for index in starts if re.match(rf"\s*Stream #0:{stream.index}\b", lines[index]))
    start = next(own, len(lines))
    return "\n".join(lines[start : next((index for index in starts if index > start), None)])


def _siting(dumped: str) -> Siting | None:
    found = re.search(r"\((?:[^()]*, )?(left|center|topleft)\)", dumped)
    return _SITINGS[found[1]] if found else None


def _fields(dumped: str) -> Literal["top", "bottom"] | None:
    """The field that is shown first; FFmpeg calls those swapped that are coded in the other order."""
    found = re.search(r"[(, ](top|bottom) (first|coded first \(swapped\))[,)]", dumped)
    if found is None:
        return None
    return "top" if (found[1] == "top") == (found[2] == "first") else "bottom"


def cropping(container: InputContainer, stream: VideoStream) -> tuple[int, int, int, int] | None:
    """Pixels at the left, right, top and bottom that the container says to leave out; None where it says nothing.

    MP4's clean aperture and Matroska's PixelCrop. Decoders know nothing of it; what the codec itself says, they do.
    """
    found = re.search(r"Frame Cropping: (\d+)/(\d+)/(\d+)/(\d+)", _dumped(container, stream))
    if found is None or not any(map(int, found.groups())):
        return None
    left, right, top, bottom = map(int, found.groups())
    return left, right, top, bottom


def filtered(frames: Iterator[av.VideoFrame], stream: VideoStream, filters: dict[str, str]) -> Iterator[av.VideoFrame]:
    """Frames through FFmpeg's filters, by name, one for each, at the times of those."""
    library = pyav()
    graph = library.filter.Graph()
    source = graph.add_buffer(template=stream)
    graph.link_nodes(source, *(graph.add(name, given) for name, given in filters.items()), graph.add("buffersink"))
    graph.configure()

    def pulled() -> Iterator[av.VideoFrame]:
        while True:
            try:
                frame = graph.vpull()
            except (library.error.BlockingIOError, library.error.EOFError):
                return
            scale = frame.time_base / stream.time_base  # that which makes frames of fields counts in halves
            pts, duration = frame.pts, frame.duration
            frame.pts = None if pts is None else round(pts * scale)
            frame.duration = round(duration * scale)
            frame.time_base = stream.time_base
            yield frame

    for frame in frames:
        graph.vpush(frame)
        yield from pulled()
    graph.vpush(None)
    yield from pulled()
