"""Video files, V4L2 devices and network streams, read through PyAV (FFmpeg's libraries)."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from echoir.runtime.errors import ImageError, needs_extra
from echoir.runtime.streams.pixels import FORMATS, Range, Siting
from echoir.runtime.streams.videoframes import Array, StreamInfo, Tags, VideoFrame

if TYPE_CHECKING:
    import av
    from av.container import InputContainer
    from av.video.stream import VideoStream

LIVE = ("rtsp://", "rtsps://", "rtmp://", "udp://", "srt://", "rtp://")
# Formats that hold the same values in another order.
REPACKED = {"gbrp": "rgb24", "pal8": "rgb24", "argb": "rgba", "abgr": "rgba", "nv16": "yuv422p", "yvyu422": "yuv422p"}
_RANGES: dict[int, Range] = {1: "limited", 2: "full"}
# FFmpeg's decoders know the siting, PyAV does not pass it on: what the codec's standard says in the normal case.
_CENTRED = ("mjpeg", "mpeg1video", "jpeg2000")


def _norm(codec: str) -> tuple[Siting, str]:
    return ("center" if codec in _CENTRED else "left"), f"the norm of {codec}"


@dataclass
class VideoSource:
    """Frames of a video stream; see :func:`open_video`."""

    name: str
    container: InputContainer
    stream: VideoStream
    info: StreamInfo
    live: bool
    note: Callable[[str], None]
    damaged: int = 0
    _shift: int = 0

    def frames(self) -> Iterator[VideoFrame]:
        """Decoded frames in the order they are shown.

        What cannot be decoded is noted, counted in ``damaged``, and left out.

        Raises:
            ImageError: a frame of another size or format than the first, or a file that ends early.
        """
        import av

        count = packets = 0
        last: VideoFrame | None = None
        end = 0.0
        try:
            for packet in self.container.demux():
                if packet.dts is not None and packet.duration is not None and packet.time_base is not None:
                    end = max(end, float((packet.dts + packet.duration) * packet.time_base))
                if packet.stream.index != self.stream.index:
                    continue
                packets += packet.size > 0
                try:
                    decoded = self.stream.decode(packet)
                except av.error.InvalidDataError as error:
                    self._damage(f"{self.name}: a packet after frame {count} cannot be decoded ({error.strerror})")
                    continue
                for frame in decoded:
                    if frame.is_corrupt:
                        self._damage(f"{self.name}: frame {count} is damaged")
                    last = self._frame(frame, count, last)
                    count += 1
                    yield last
        except av.error.FFmpegError as error:
            raise ImageError(f"{self.name} cannot be read on after frame {count}: {error.strerror}") from error
        self._check_end(packets, end)

    def _check_end(self, packets: int, end: float) -> None:
        if self.live:
            raise ImageError(f"{self.name} has ended")
        if packets < (self.info.frames or 0):
            raise ImageError(f"{self.name} ends early: {packets} of the {self.info.frames} frames that it announces")
        duration = self.container.duration
        if "matroska" in self.container.format.name and duration is not None and end < duration / 1e6 - 0.5:
            raise ImageError(f"{self.name} ends early: after {end:.1f} of the {duration / 1e6:.1f} s that it announces")

    def _damage(self, message: str) -> None:
        self.damaged += 1
        if self.damaged <= 3:
            self.note(message + ("; further ones are only counted" if self.damaged == 3 else ""))

    def _frame(self, frame: av.VideoFrame, count: int, last: VideoFrame | None) -> VideoFrame:
        if frame.format.name in REPACKED:
            pts, duration = frame.pts, frame.duration
            frame = frame.reformat(format=REPACKED[frame.format.name])
            frame.pts, frame.duration = pts, duration
        info = self.info
        found = (frame.width, frame.height, frame.format.name)
        if found != (info.width, info.height, info.format.name):
            raise ImageError(
                f"frame {count} of {self.name} is {found[0]} x {found[1]} {found[2]} and the stream began as "
                f"{info.width} x {info.height} {info.format.name}; cut it there"
            )
        duration = frame.duration or (round(1 / (info.rate * info.time_base)) if info.rate else 1)
        next_pts = 0 if last is None or last.pts is None else last.pts + (last.duration or 1)
        pts = next_pts if frame.pts is None else frame.pts + self._shift  # raw streams have no time stamps
        if last is not None and last.pts is not None and pts <= last.pts:
            self._damage(f"{self.name}: the time stamp of frame {count} does not rise; it is moved")
            if self.live:  # a clock that was set anew: go on from here
                self._shift += next_pts - pts
            pts = next_pts if self.live else last.pts + 1
        return VideoFrame(planes_of(frame), pts, duration, owner=frame)

    def give_back(self, frame: VideoFrame) -> None:
        """Frames belong to the decoder's own pool."""

    def close(self) -> None:
        """Close the file or the device."""
        self.container.close()


def open_video(
    name: str, *, note: Callable[[str], None], timeout: float = 10.0, options: dict[str, str] | None = None
) -> VideoSource:
    """Open a file, a V4L2 device (``/dev/video0``) or a network stream (``rtsp://...``).

    Args:
        name: what to open.
        note: told what went wrong without ending the stream.
        timeout: seconds without data after which a network stream counts as lost.
        options: FFmpeg's, for the demuxer, e.g. ``{"rtsp_transport": "tcp"}``.

    Raises:
        ImageError: it is not there, or no video that can be read.
        MissingExtraError: PyAV is not installed.
    """
    with needs_extra("video"):
        import av
    av.logging.set_level(av.logging.PANIC)  # errors are raised; FFmpeg's own lines would break the progress bar
    device = _is_device(name)
    live = device or name.startswith(LIVE)
    try:
        container = av.open(
            name,
            format="video4linux2" if device else None,
            options=options or {},
            timeout=timeout if live and not device else None,
        )
    except (av.error.FFmpegError, OSError) as error:
        raise ImageError(f"cannot read {name}: {error.strerror or error}") from error
    try:
        if not container.streams.video:
            raise ImageError(f"{name} has no video stream")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        return VideoSource(name, container, stream, _describe(name, container, stream), live, note)
    except BaseException:
        container.close()
        raise


def planes_of(frame: av.VideoFrame) -> list[Array]:
    """The planes of PyAV's frame as arrays [rows, samples per row and padding]; they keep the frame alive."""
    dtype: Any = FORMATS[frame.format.name].dtype
    planes: Any = frame.planes  # buffers, which Python 3.10's types cannot say
    return [np.frombuffer(plane, dtype).reshape(-1, plane.line_size // dtype.itemsize) for plane in planes]


def _is_device(name: str) -> bool:
    try:
        return stat.S_ISCHR(os.stat(name).st_mode)
    except (OSError, ValueError):
        return False


def _describe(name: str, container: InputContainer, stream: VideoStream) -> StreamInfo:
    """What the header says, and what only the first frame does (a display matrix); the file is rewound."""
    context = stream.codec_context
    pixels = REPACKED.get(context.pix_fmt or "", context.pix_fmt or "")
    if pixels not in FORMATS:
        raise ImageError(
            f"{name} has pixels of the format {context.pix_fmt or '(unknown: no frame could be read)'}, "
            "which is not supported"
        )
    if not (context.width and context.height):
        raise ImageError(f"{name} does not say the size of its frames: is it damaged or empty?")
    tags = Tags(
        matrix=int(context.colorspace),
        primaries=int(context.color_primaries),
        transfer=int(context.color_trc),
        range="full" if pixels.startswith("yuvj") else _RANGES.get(int(context.color_range)),
    )
    return StreamInfo(
        context.width,
        context.height,
        FORMATS[pixels],
        tags=tags,
        rate=stream.average_rate or stream.guessed_rate,
        time_base=stream.time_base or Fraction(1, 90000),
        aspect=stream.sample_aspect_ratio or None,
        display=_display_matrix(container, stream),
        siting_norm=_norm(context.name),
        frames=stream.frames or None,
    )


def _display_matrix(container: InputContainer, stream: VideoStream) -> tuple[int, ...] | None:
    import av

    if not container.format.name.startswith(("mov", "matroska")):
        return None  # others hold none, and a device cannot be rewound
    try:
        frame = next(container.decode(stream), None)
        container.seek(0, backward=True, any_frame=False)
    except av.error.FFmpegError:
        return None  # the damage shows again when the frames are read
    side: Any = frame.side_data.get("DISPLAYMATRIX") if frame is not None else None
    return None if side is None else tuple(int(value) for value in np.frombuffer(side, "<i4")[:9])
