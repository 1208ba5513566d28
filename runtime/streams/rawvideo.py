"""Frames through pipes: raw planes one after another, and YUV4MPEG2 with its header.

YUV4MPEG2 as the manual of mjpegtools, yuv4mpeg(5), has it, with FFmpeg's names for more than 8 bits and its
``XCOLORRANGE``. The header goes out as it came in, but for the size of frames that were enlarged.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np

from echoir.runtime.errors import ImageError
from echoir.runtime.streams.pixels import FORMATS, Range, Siting
from echoir.runtime.streams.videoframes import Pool, StreamInfo, Tags, VideoFrame

MAGIC = b"YUV4MPEG2"
_LINE = 1024  # bytes; longer headers are no headers
_MAX_SIDE = 1 << 15
# The C parameter: pixel format, and where it says that chroma is sited.
SPACES: dict[str, tuple[str, Siting | None]] = {
    "420jpeg": ("yuv420p", "center"),
    "420mpeg2": ("yuv420p", "left"),
    "420paldv": ("yuv420p", "topleft"),
    "420": ("yuv420p", None),
    "422": ("yuv422p", None),
    "444": ("yuv444p", None),
    "mono": ("gray", None),
    **{f"{ratio}p{depth}": (f"yuv{ratio}p{depth}le", None) for ratio in ("420", "422", "444") for depth in (10, 12)},
    **{f"mono{depth}": (f"gray{depth}le", None) for depth in (10, 12, 16)},
}


class PipeSource:
    """Frames from a file descriptor, standard input unless told; see :func:`open_raw` and :func:`open_y4m`."""

    live = False

    def __init__(self, file: io.FileIO, info: StreamInfo, header: bytes | None) -> None:
        self.info, self.header = info, header
        self._file, self._pool = file, Pool(info)

    def frames(self) -> Iterator[VideoFrame]:
        """Frames until the end of the pipe.

        Raises:
            ImageError: the pipe ends inside a frame, or something else than a frame comes.
        """
        index = 0
        while self.header is None or _frame_header(self._file, index):
            frame = self._pool.take()
            if not self._fill(frame, index):
                return
            frame.pts, frame.duration, frame.interlaced = index, 1, self.info.fields is not None
            index += 1
            yield frame

    def _fill(self, frame: VideoFrame, index: int) -> bool:
        """Read all planes; False at the end of the pipe."""
        total = sum(plane.nbytes for plane in frame.planes)
        done = 0
        for plane in frame.planes:
            view = plane.data.cast("B")
            while view:
                count = self._file.readinto(view)
                if not count:
                    if done == 0 and self.header is None:
                        return False
                    raise ImageError(f"the input ends inside frame {index}: {done} of its {total} bytes are there")
                view = view[count:]
                done += count
        return True

    def give_back(self, frame: VideoFrame) -> None:
        """The frame is not used any more."""
        self._pool.give_back(frame)

    def close(self) -> None:
        """Close the descriptor."""
        self._file.close()


def open_raw(width: int, height: int, format: str, rate: Fraction | None, descriptor: int = 0) -> PipeSource:
    """Raw frames, as ``ffmpeg -f rawvideo`` and GStreamer's ``fdsink`` (with rows unpadded) write them.

    Raises:
        ImageError: an unknown pixel format or an impossible size.
    """
    if format not in FORMATS:
        raise ImageError(f"unknown pixel format {format}; known are {', '.join(FORMATS)}")
    _check_size(width, height)
    time_base = 1 / rate if rate else Fraction(1, 25)
    tags = Tags(range="full" if format.startswith("yuvj") else None)
    info = StreamInfo(width, height, FORMATS[format], tags=tags, rate=rate, time_base=time_base)
    return PipeSource(_open(descriptor), info, None)


def open_y4m(descriptor: int = 0) -> PipeSource:
    """A YUV4MPEG2 stream.

    Raises:
        ImageError: no such stream, or one of a kind that is not supported.
    """
    file = _open(descriptor)
    header = _read_line(file)
    words = header.split()
    if not words:
        raise ImageError("the input is empty: it has neither a YUV4MPEG2 header nor a frame")
    if words[0] != MAGIC:
        raise ImageError("the input is no YUV4MPEG2 stream; for raw frames say --size and --pixel-format")
    try:
        return PipeSource(file, _parse(words[1:]), header)
    except (ValueError, ZeroDivisionError, KeyError) as error:
        raise ImageError(f"the YUV4MPEG2 header {header.decode('ascii', 'replace')} is damaged ({error})") from None


def _parse(words: list[bytes]) -> StreamInfo:
    values = {chr(word[0]): word[1:].decode("ascii") for word in words if word[:1] != b"X"}
    extra = dict(word[1:].decode("ascii").partition("=")[::2] for word in words if word[:1] == b"X")
    space = values.get("C", "420jpeg")
    if space not in SPACES:
        raise ImageError(f"YUV4MPEG2 with the colour space C{space} is not supported; known are {', '.join(SPACES)}")
    format, siting = SPACES[space]
    width, height = int(values["W"]), int(values["H"])
    _check_size(width, height)
    rate = Fraction(values.get("F", "25:1").replace(":", "/"))
    if rate <= 0:
        raise ValueError(f"a rate of {rate}")
    aspect = values.get("A", "0:0")
    ranges: dict[str | None, Range | None] = {"FULL": "full", "LIMITED": "limited"}
    tags = Tags(range=ranges.get(extra.get("COLORRANGE")), siting=siting)
    return StreamInfo(
        width,
        height,
        FORMATS[format],
        tags=tags,
        rate=rate,
        time_base=1 / rate,
        aspect=None if aspect.startswith("0:") else Fraction(aspect.replace(":", "/")),
        fields={"t": "top", "b": "bottom"}.get(values.get("I", "p")),  # type: ignore[arg-type]
    )


def y4m_header(info: StreamInfo) -> bytes:
    """A YUV4MPEG2 header for a stream that came without one.

    Raises:
        ImageError: it has no name for these pixels.
    """
    names = {(format, siting): name for name, (format, siting) in reversed(SPACES.items())}
    format = info.format.name.replace("yuvj", "yuv")
    space = names.get((format, info.tags.siting if format == "yuv420p" else None))
    if space is None:
        raise ImageError(f"YUV4MPEG2 cannot hold {info.format.name}; write raw frames with --output-format raw")
    rate, aspect = info.rate or Fraction(25), info.aspect or Fraction(0)
    order = {None: "p", "top": "t", "bottom": "b"}[info.fields]
    words = [f"W{info.width} H{info.height} F{rate.numerator}:{rate.denominator} I{order}"]
    words.append(f"A{aspect.numerator}:{aspect.denominator if aspect else 0} C{space}")
    if info.tags.range is not None:
        words.append(f"XCOLORRANGE={info.tags.range.upper()}")
    return b" ".join([MAGIC, *(word.encode() for word in words)])


def resized(header: bytes, info: StreamInfo) -> bytes:
    """A YUV4MPEG2 header for frames of this size, and alike in all else."""
    sides = {b"W": b"W%d" % info.width, b"H": b"H%d" % info.height}
    return b" ".join(sides.get(word[:1], word) for word in header.split(b" "))


class PipeSink:
    """Frames to a file descriptor, standard output unless told.

    Args:
        info: of the stream.
        header: of YUV4MPEG2; None writes raw frames.
        note: told once when frames do not come at the constant rate that a pipe stands for.
    """

    def __init__(
        self,
        info: StreamInfo,
        header: bytes | None,
        note: Callable[[str], None] = lambda message: None,
        descriptor: int = 1,
    ) -> None:
        self._file = _open(descriptor, "wb")
        self._pool = Pool(replace(info))
        self._frame_header = b"" if header is None else b"FRAME\n"
        self._info, self._note, self._written = info, note, 0
        self._first: int | None = None
        self._told = False
        self._tail = Fraction(0)  # how much longer than others the last frame is shown
        if header is not None:
            self._write(memoryview(header + b"\n"))

    def blank(self, like: VideoFrame) -> VideoFrame:
        """A frame to be filled and written."""
        return self._pool.take()

    def write(self, frame: VideoFrame) -> None:
        """Write a frame.

        Raises:
            ImageError: the pipe is closed at its other end, or the disk is full.
        """
        self._check_time(frame)
        self._write(memoryview(self._frame_header))
        for plane, shape in zip(
            frame.planes, self._info.format.shapes(self._info.height, self._info.width), strict=True
        ):
            self._write(np.ascontiguousarray(plane[:, : shape[1]]).data.cast("B"))
        self._written += 1
        self._pool.give_back(frame)

    def _check_time(self, frame: VideoFrame) -> None:
        info = self._info
        if info.rate is None or frame.pts is None:
            return
        if self._first is None:
            self._first = frame.pts
        off = (frame.pts - self._first) * info.time_base - self._written / info.rate
        self._tail = (frame.duration or 0) * info.time_base - 1 / info.rate
        if not self._told and abs(off) > 1 / info.rate / 10 + info.time_base:
            self._told = True
            self._note(
                f"the times of frames are lost in the pipe: frame {self._written} comes {float(off):+.3f} s off "
                f"a constant {float(info.rate):.6g} frames/s"
            )

    def _write(self, view: memoryview) -> None:
        try:
            while view:
                view = view[self._file.write(view) :]
        except BrokenPipeError:
            raise ImageError(f"the program that read the output closed it after {self._written} whole frames") from None
        except OSError as error:
            raise ImageError(
                f"cannot write to the output after {self._written} whole frames: {error.strerror or error}"
            ) from error

    def finish(self, complete: bool) -> None:
        """Say what the end of a pipe does not."""
        if self._tail > self._info.time_base:
            self._note(f"a pipe does not say how long the last frame is shown: {float(self._tail):.3f} s are lost")

    def close(self) -> None:
        """Close the descriptor."""
        self._file.close()


class NullSink:
    """Frames to nowhere."""

    def __init__(self, info: StreamInfo) -> None:
        self._pool = Pool(info)

    def blank(self, like: VideoFrame) -> VideoFrame:
        """A frame to be filled and written."""
        return self._pool.take()

    def write(self, frame: VideoFrame) -> None:
        """Forget a frame."""
        self._pool.give_back(frame)

    def finish(self, complete: bool) -> None:
        """Nothing is left to do."""

    def close(self) -> None:
        """Nothing is held."""


def _open(descriptor: int, mode: Any = "rb") -> io.FileIO:
    # Unbuffered: frames go straight into their planes, and a thread that is blocked in here can be left behind
    # when the process ends. A descriptor of our own, so that closing does not take standard output away.
    return io.FileIO(os.dup(descriptor), mode)


def _frame_header(file: io.FileIO, index: int) -> bool:
    """Whether a frame of YUV4MPEG2 follows."""
    line = _read_line(file)
    if not line:
        return False
    if line.split()[:1] != [b"FRAME"]:
        raise ImageError(f"frame {index} of the YUV4MPEG2 input does not begin with FRAME: the stream is damaged")
    return True


def _read_line(file: io.FileIO) -> bytes:
    """Up to a line feed, byte by byte: what follows must stay in the pipe."""
    line = bytearray()
    while len(line) < _LINE and (byte := file.read(1)) and byte != b"\n":
        line += byte
    return bytes(line)


def _check_size(width: int, height: int) -> None:
    if not (0 < width <= _MAX_SIDE and 0 < height <= _MAX_SIDE):
        raise ImageError(f"{width} x {height} pixels is no size of video; each side is 1 to {_MAX_SIDE}")
