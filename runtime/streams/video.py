"""Video files, V4L2 devices and network streams, read through PyAV (FFmpeg's libraries)."""

from __future__ import annotations

import heapq
import os
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from echoir.runtime.errors import ImageError
from echoir.runtime.streams.carried import Light
from echoir.runtime.streams.demuxing import Clock, film, open_file, packets, pyav
from echoir.runtime.streams.description import REPACKED, cropping, describe, filtered
from echoir.runtime.streams.pixels import FORMATS
from echoir.runtime.streams.truncation import announced_bytes
from echoir.runtime.streams.videoframes import Array, StreamInfo, VideoFrame

if TYPE_CHECKING:
    import av
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream

LIVE = ("rtsp://", "rtsps://", "rtmp://", "udp://", "srt://", "rtp://")
SERVED = ("http://", "https://")  # cameras and broadcasts, and files: those say how long they are
_NO_CLOCK = ("mpjpeg", "mjpeg")  # pictures without time stamps: they are shown when they come


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
    first: av.VideoFrame | None = None  # read to see what the header does not say
    pictures: Iterator[av.VideoFrame] = field(default_factory=lambda: iter(()))
    _count: int = 0
    _last: tuple[int, int] | None = None  # time stamp and end of the last frame
    _waiting: list[int] = field(default_factory=list)
    _strict: Any = None
    _start: float = 0.0
    _tail: int | None = None  # duration of the packet before

    def frames(self) -> Iterator[VideoFrame]:
        """Decoded frames in the order they are shown.

        What cannot be decoded is noted, counted in ``damaged``, and left out.

        Raises:
            ImageError: a frame of another size or format than the first, or a file that ends early.
        """
        if self.first is not None:
            yield self._frame(self.first, 0)
            self.first = None
        for frame in self.pictures:
            yield self._frame(frame, self._count - 1)

    def decoded(self) -> Iterator[av.VideoFrame]:
        """PyAV's frames."""
        import av

        failure: av.error.FFmpegError | None = None
        source = packets(self.container, Clock(self.note))
        while failure is None:
            try:
                packet = next(source, None)
            except av.error.FFmpegError as error:
                failure, packet = error, None  # what the decoder still holds came before
            if packet is not None and packet.stream.index != self.stream.index:
                continue
            try:
                frames = self._decoded(packet, self._count)
            except av.error.FFmpegError as error:
                failure = failure or error
                break
            for frame in frames:
                if frame.is_corrupt:
                    self._damage(f"{self.name}: frame {self._count} is damaged")
                self._count += 1
                yield frame
            if packet is None:
                break
        if failure is not None:
            raise ImageError(
                f"{self.name} cannot be read on after frame {self._count}: {failure.strerror}"
            ) from failure
        self._check_end()

    def _decoded(self, packet: Packet[Any] | None, count: int) -> list[av.VideoFrame]:
        """What the decoder gives for a packet, or at the end."""
        import av

        # AVI counts packets and says nothing of when they are shown: the decoder puts the frames in order, and
        # they take the times of the packets as these rise.
        counted = packet.dts if packet is not None and self.container.format.name == "avi" else None
        if counted is not None:
            heapq.heappush(self._waiting, counted)
        try:
            frames = self.stream.decode(packet)
            if self._strict is not None and packet is not None and packet.size:
                self._check_picture(packet, count)
        except av.error.EOFError:
            return []  # it was told of the end before
        except av.error.InvalidDataError as error:
            if counted is not None:
                self._waiting.remove(counted)
                heapq.heapify(self._waiting)
            self._damage(f"{self.name}: a packet after frame {count} cannot be decoded ({error.strerror})")
            return []
        for frame in frames:
            if self.live and self.container.format.name in _NO_CLOCK:
                self._start = self._start or time.monotonic()
                assert self.stream.time_base is not None
                frame.pts = round((time.monotonic() - self._start) / self.stream.time_base)
            if self._waiting:
                frame.pts = heapq.heappop(self._waiting)
        if packet is not None and packet.size:
            self._tail = packet.duration
        elif frames and self._tail and "mp4" in self.container.format.name:
            frames[-1].duration = self._tail  # MP4's durations go from one decoding time to the next
        return frames

    def _check_picture(self, packet: Packet[Any], count: int) -> None:
        """The decoder of JPEG fills in what is damaged and says nothing; another one that gives up tells."""
        assert self._strict is not None
        try:
            self._strict.decode(packet)
        except pyav().error.FFmpegError:
            self._damage(f"{self.name}: frame {count} is damaged")

    def _check_end(self) -> None:
        if self.live:
            raise ImageError(f"{self.name} has ended")
        size = self.container.size
        announced = announced_bytes(self.name) if os.path.isfile(self.name) else None
        entries = self.stream.index_entries
        if "mp4" in self.container.format.name and len(entries):
            announced = max(announced or 0, entries[len(entries) - 1].pos + entries[len(entries) - 1].size)
        if announced is not None and size < announced:
            raise ImageError(f"{self.name} ends early: {size} of the {announced} bytes that it announces")

    def _damage(self, message: str) -> None:
        self.damaged += 1
        if self.damaged <= 3:
            self.note(message + ("; further ones are only counted" if self.damaged == 3 else ""))

    def _frame(self, frame: av.VideoFrame, count: int) -> VideoFrame:
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
        last, end = self._last or (None, 0)
        pts = end if frame.pts is None else frame.pts  # raw streams have no time stamps
        if last is not None and pts <= last:
            self._damage(f"{self.name}: the time stamp of frame {count} does not rise; it is moved")
            pts = last + 1
        self._last = pts, pts + max(duration, 1)
        return VideoFrame(planes_of(frame), pts, duration, owner=frame, interlaced=frame.interlaced_frame)

    def begin(self, deinterlace: bool) -> None:
        """Read the first frame, and what only it tells; a failure shows again when the frames are read."""
        self.pictures = self.decoded()
        if self.stream.codec_context.name == "mjpeg":
            self._strict = pyav().CodecContext.create("mjpeg", "r")
            self._strict.options = {"err_detect": "explode"}
        filters = {"bwdif": "mode=send_frame:deint=interlaced"} if deinterlace else {}
        cut = cropping(self.container, self.stream)
        if cut is not None:
            left, right, top, bottom = cut
            filters["crop"] = f"iw-{left + right}:ih-{top + bottom}:{left}:{top}"
        if filters:
            self.pictures = filtered(self.pictures, self.stream, filters)
        try:
            self.first = next(self.pictures, None)
        except ImageError as error:
            self.pictures = _failing(error)
        except pyav().error.FFmpegError as error:  # a crop that leaves nothing
            self.pictures = _failing(ImageError(f"{self.name} cannot be cropped as it says ({error.strerror})"))
        if self.first is not None and cut is not None:
            self.info = replace(self.info, width=self.first.width, height=self.first.height)
        if self.first is not None:
            side: Any = self.first.side_data.get("DISPLAYMATRIX")
            turned = None if side is None else tuple(int(value) for value in np.frombuffer(side, "<i4")[:9])
            fields = self.info.fields if self.first.interlaced_frame else None
            light = Light.of(self.first)
            self.info = replace(self.info, display=turned, light=light, fields=fields)

    def give_back(self, frame: VideoFrame) -> None:
        """Frames belong to the decoder's own pool."""

    def close(self) -> None:
        """Close the file or the device."""
        self.container.close()


def open_video(
    name: str,
    *,
    note: Callable[[str], None],
    timeout: float = 10.0,
    options: dict[str, str] | None = None,
    deinterlace: bool = False,
) -> VideoSource:
    """Open a file, a V4L2 device (``/dev/video0``) or a network stream (``rtsp://...``).

    Args:
        name: what to open.
        note: told what went wrong without ending the stream.
        timeout: seconds without data after which a network stream counts as lost.
        options: FFmpeg's, for the demuxer, e.g. ``{"rtsp_transport": "tcp"}``.
        deinterlace: make whole frames of interlaced ones (FFmpeg's bwdif), one of each.

    Raises:
        ImageError: it is not there, or no video that can be read.
        MissingExtraError: PyAV is not installed.
    """
    av = pyav()
    device = _is_device(name)
    live = device or name.startswith(LIVE + SERVED)
    try:
        container = open_file(
            name,
            format="video4linux2" if device else None,
            options=options or {},
            timeout=timeout if live and not device else None,
        )
    except (av.error.FFmpegError, OSError) as error:
        raise ImageError(f"cannot read {name}: {error.strerror or error}") from error
    try:
        stream = film(container)
        if stream is None:
            raise ImageError(f"{name} has no video stream" + (" but a cover" if container.streams.video else ""))
        live = live and not (name.startswith(SERVED) and container.duration)
        stream.thread_type = "AUTO"
        source = VideoSource(name, container, stream, describe(name, container, stream), live, note)
        source.begin(deinterlace)
        return source
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


def _failing(error: ImageError) -> Iterator[av.VideoFrame]:
    yield from ()
    raise error
