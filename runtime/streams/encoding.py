"""How frames are encoded: which encoder, with which pixels and tags, through PyAV (FFmpeg's libraries)."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from echoir.runtime.errors import ImageError
from echoir.runtime.streams.carried import BESIDE, INTERLACED
from echoir.runtime.streams.demuxing import pyav
from echoir.runtime.streams.pixels import FORMATS
from echoir.runtime.streams.video import planes_of
from echoir.runtime.streams.videoframes import StreamInfo, Tags, VideoFrame

if TYPE_CHECKING:
    import av
    from av.container import OutputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream

# Where an encoder does not take a stream's pixels: what it is given instead, the first that it takes.
STAND_INS = {
    "nv12": ["yuv420p"],
    "nv21": ["yuv420p", "nv12"],
    "yuv420p": ["nv12"],
    "p010le": ["yuv420p10le"],
    "yuv420p10le": ["p010le"],
    "yuyv422": ["yuv422p"],
    "uyvy422": ["yuv422p"],
}
FOR_RGB = ["rgb24", "bgr24", "bgr0", "yuv420p"]
_RANGES = {None: 0, "limited": 1, "full": 2}


@dataclass(frozen=True)
class Encoding:
    """How frames are encoded.

    Args:
        encoder: FFmpeg's name; None: H.264 (libx264) of 8 bits, HEVC (libx265) of more, VP9 in WebM.
        quality: the encoder's constant quality (``crf``), lower being better; None: 18, or 24 of VP9.
        options: further ones for the encoder.
        tag: the four characters by which MP4 and MOV name the codec; None: FFmpeg's own choice.
    """

    encoder: str | None = None
    quality: int | None = None
    options: dict[str, str] = field(default_factory=dict)
    tag: str | None = None

    def settled(self, suffix: str, info: StreamInfo) -> Encoding:
        """With every choice made for a container and a stream."""
        default = "libvpx-vp9" if suffix == ".webm" else "libx264" if info.format.depth == 8 else "libx265"
        name = self.encoder or default
        options = dict(self.options)
        if name in ("libx264", "libx265", "libvpx-vp9", "libsvtav1", "libaom-av1"):
            if self.quality is not None or not {"crf", "qp", "b"} & options.keys():
                chosen = self.quality if self.quality is not None else (24 if "vp9" in name else 18)
                options = {"crf": str(chosen)} | ({"b": "0"} if "vp9" in name else {}) | options
        elif self.quality is not None:
            raise ImageError(f"the encoder {name} has no constant quality of that kind; use --encoder-option")
        if name == "libsvtav1":
            os.environ.setdefault("SVT_LOG", "1")  # errors alone: its own lines would break the progress bar
        tag = options.pop("tag", None)
        if tag is None and info.tag == "hvc1" and name == "libx265" and suffix in (".mp4", ".m4v", ".mov"):
            tag = "hvc1"  # QuickTime plays no other
        parameters = ["log-level=none"] if name == "libx265" else []
        if suffix == ".avi":  # where frames are counted there is no place for another order than shown
            if name == "libx265":
                parameters.append("bframes=0")
            else:
                options = {"bf": "0"} | options
        if info.fields and name in INTERLACED:
            options = {"flags": "+ildct+ilme"} | options
        for option, value in (info.light.options(name) or {} if info.light else {}).items():
            options[option] = ":".join([*parameters, value, *([options[option]] if option in options else [])])
            parameters = []
        if parameters:
            own = options.get("x265-params")
            options["x265-params"] = ":".join([*parameters, *([own] if own else [])])
        return Encoding(name, None, options, tag)


class Encoder:
    """One encoder at work in one container."""

    def __init__(self, container: OutputContainer, info: StreamInfo, encoding: Encoding, pixels: str) -> None:
        assert encoding.encoder is not None
        try:
            stream: Any = container.add_stream(encoding.encoder, rate=info.rate or None, options=dict(encoding.options))
        except ValueError as error:  # PyAV's words
            raise ImageError(f"the encoder {encoding.encoder} does not fit: {error}") from error
        stream.width, stream.height, stream.pix_fmt = info.width, info.height, pixels
        context = stream.codec_context
        context.time_base = stream.time_base = info.time_base
        converted = info.format.kind == "rgb" and FORMATS.get(pixels, info.format).kind == "yuv"
        tags = replace(info.tags, matrix=1, range="limited") if converted else info.tags
        tell_colours(context, tags)
        if info.aspect is not None:
            stream.sample_aspect_ratio = info.aspect
        if tags.siting is not None and info.format.kind == "yuv":
            stream.codec_context.options = {**context.options, "chroma_sample_location": tags.siting}
        self.stream: VideoStream = stream
        self._container, self._info, self._pixels, self._converted = container, info, pixels, converted
        self._frames = 0

    def write(self, frame: av.VideoFrame, pts: int | None, duration: int | None) -> None:
        """Encode a frame, with its time stamp and duration in the stream's time base."""
        if frame.format.name != self._pixels:
            colours: dict[str, Any] = {"dst_colorspace": "ITU709", "dst_color_range": "MPEG"} if self._converted else {}
            frame = frame.reformat(format=self._pixels, **colours)
        frame.pts, frame.time_base = pts, self._info.time_base
        frame.duration = duration or 0
        frame.pict_type = 0  # the encoder's own choice, not what the frame was before
        self._frames += 1
        try:
            packets = self.stream.encode(frame)
        except pyav().error.FFmpegError as error:
            if self._frames > 1:
                raise
            raise ImageError(self._refusal(error)) from error
        self._mux(packets)

    def _refusal(self, error: Any) -> str:
        """An encoder opens with its first frame, and says what it does not take in FFmpeg's log."""
        info = self._info
        cause = error.log[2].strip() if error.log else error.strerror
        odd = FORMATS[self._pixels].shared != (0, 0) and (info.width % 2 or info.height % 2)
        hint = "; where chroma is halved, ffv1 (in .mkv) and libvpx-vp9 take odd sides" if odd else ""
        return f"{self.stream.codec_context.name} takes no {info.width} x {info.height} {self._pixels}: {cause}{hint}"

    def flush(self) -> None:
        """Write what the encoder still holds."""
        self._mux(self.stream.encode(None))

    def finish(self) -> None:
        """Write what the encoder still holds, and close the container."""
        self.flush()
        self._container.close()

    def _mux(self, packets: list[Packet[VideoStream]]) -> None:
        for packet in packets:
            if self._frames == 1:  # x265 gives a single frame any decoding time
                packet.dts = packet.pts
            self._container.mux(packet)


def tell_colours(context: Any, tags: Tags) -> None:
    """Tell PyAV's codec context what the codes mean."""
    context.colorspace, context.color_range = tags.matrix, _RANGES[tags.range]
    context.color_primaries, context.color_trc = tags.primaries, tags.transfer


def encoder_pixels(info: StreamInfo, encoding: Encoding, note: Callable[[str], None]) -> str:
    """The pixel format that an encoder is given."""
    av = pyav()
    try:
        codec = av.codec.Codec(encoding.encoder, "w")
    except (av.error.FFmpegError, ValueError):
        raise ImageError(f"this build of FFmpeg's libraries has no encoder {encoding.encoder}") from None
    taken = [format.name for format in codec.video_formats or ()]
    own = info.format.name.replace("yuvj", "yuv")
    if codec.type != "video":
        raise ImageError(f"{encoding.encoder} is no encoder of video")
    for name in [own, info.format.name, *(FOR_RGB if info.format.kind == "rgb" else STAND_INS.get(own, []))]:
        if not taken or name in taken:
            if info.format.kind == "rgb" and FORMATS[name].kind != "rgb":
                alpha = ", without their alpha channel" if info.format.alpha else ""
                note(f"{encoding.encoder} takes no RGB: frames become {name}, bt709, limited range{alpha}")
            return name
    raise ImageError(f"the encoder {encoding.encoder} does not take {own} (it takes {', '.join(taken)})")


def blank_frame(info: StreamInfo, like: VideoFrame | None = None) -> VideoFrame:
    """A frame in PyAV's memory, to be filled: ``like`` itself, if it lies there in this size, for what else is in it.

    Of one that is to become larger, what lies beside its pixels comes along.
    """
    av = pyav()
    own = None if like is None else like.owner
    if like is not None and isinstance(own, av.VideoFrame) and (own.width, own.height) == (info.width, info.height):
        own.make_writable()  # a copy, where the decoder still looks at it
        like.planes = planes_of(own)
        return like
    if isinstance(own, av.VideoFrame) and any(kind in own.side_data for kind in BESIDE):
        frame = own.reformat(info.width, info.height, interpolation="POINT")  # there is no other way to copy it
    else:
        frame = av.VideoFrame(info.width, info.height, info.format.name)
    # Else FFmpeg would make limited codes of full ones where it puts them into a format of another name.
    frame.color_range = _RANGES[info.tags.range]
    return VideoFrame(planes_of(frame), owner=frame)


def av_frame(info: StreamInfo, frame: VideoFrame) -> av.VideoFrame:
    """A frame as PyAV's: its own, or a copy of planes that lie elsewhere."""
    av = pyav()
    if isinstance(frame.owner, av.VideoFrame):
        return frame.owner
    copy = blank_frame(info)
    for target, plane, shape in zip(
        copy.planes, frame.planes, info.format.shapes(info.height, info.width), strict=True
    ):
        np.copyto(target[: shape[0], : shape[1]], plane[: shape[0], : shape[1]])
    return copy.owner
