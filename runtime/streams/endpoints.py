"""What SOURCE and SINK of ``echoir stream`` mean, and sources that come back after they were lost."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import click

from echoir.runtime.errors import ImageError
from echoir.runtime.streams.rawvideo import NullSink, PipeSink, PipeSource, open_raw, open_y4m, resized, y4m_header
from echoir.runtime.streams.videoframes import Sink, Source, StreamInfo, VideoFrame

Note = Callable[[str], None]
LONGEST_WAIT = 10.0  # seconds between two attempts to get a lost source back


@dataclass(frozen=True)
class Raw:
    """Raw frames on standard input."""

    width: int
    height: int
    format: str
    rate: Fraction | None = None


@dataclass(frozen=True)
class Wishes:
    """What was asked for beyond the names of source and sink.

    Args:
        raw: standard input has raw frames; None: YUV4MPEG2.
        output_format: of standard output; None: as the input where that is a pipe, else YUV4MPEG2 if it can.
        encoder, quality, encoder_options: of a file; see :class:`echoir.runtime.streams.encoding.Encoding`.
        source_options: FFmpeg's, for opening a source.
        deinterlace: make whole frames of interlaced ones.
        video_only: copy no audio and no subtitles.
        overwrite: replace a file that is there, and start anew where a run was interrupted.
        timeout: seconds without a frame after which a live source counts as lost.
        retries: attempts in a row to get it back.
    """

    raw: Raw | None = None
    output_format: Literal["y4m", "raw"] | None = None
    encoder: str | None = None
    quality: int | None = None
    encoder_options: dict[str, str] = field(default_factory=dict)
    source_options: dict[str, str] = field(default_factory=dict)
    deinterlace: bool = False
    video_only: bool = False
    overwrite: bool = False
    timeout: float = 10.0
    retries: int = 10


def is_pipeline(name: str) -> bool:
    """Whether a name is a GStreamer pipeline: it says so, or links elements and is no file that is there."""
    return name.startswith("gst:") or (" ! " in name and not os.path.exists(name))


def is_file(name: str) -> bool:
    """Whether a source is a file that can be read twice."""
    return not is_pipeline(name) and os.path.isfile(name)


def open_source(name: str, wishes: Wishes, note: Note) -> Source:
    """Open a source: ``-``, a GStreamer pipeline, or what FFmpeg opens.

    Raises:
        ImageError: it cannot be read.
        BackendError: the library for it is not here.
    """
    if name == "-":
        raw = wishes.raw
        return open_y4m() if raw is None else open_raw(raw.width, raw.height, raw.format, raw.rate)

    def opened() -> Source:
        if is_pipeline(name):
            from echoir.runtime.streams.gstreamer import PipelineSource

            return PipelineSource(name.removeprefix("gst:"), timeout=wishes.timeout)
        from echoir.runtime.streams.video import open_video

        return open_video(
            name, note=note, timeout=wishes.timeout, options=wishes.source_options, deinterlace=wishes.deinterlace
        )

    source = opened()
    return ReturningSource(source, opened, wishes.retries, note) if source.live else source


def open_sink(
    name: str,
    source_name: str,
    source: Source,
    info: StreamInfo,
    wishes: Wishes,
    note: Note,
    identity: dict[str, Any] | None,
) -> Sink:
    """Open a sink: ``-``, ``null``, a GStreamer pipeline, or a file.

    Args:
        info: of the frames that it is given; the source's, or larger.
        identity: what the frames depend on, if a run into a file may be resumed; None starts anew.

    Raises:
        ImageError: it cannot be written.
        BackendError: the library for it is not here.
    """
    if name == "null":
        return NullSink(info)
    header = _pipe_header(source, info, wishes) if name == "-" else None
    if (name == "-" or is_pipeline(name)) and not isinstance(source, PipeSource):
        from echoir.runtime.streams.companions import left_behind
        from echoir.runtime.streams.containers import left_out

        words = left_out(info, None, None, "caps" if name != "-" else "y4m" if header else "raw")
        words += left_behind(source_name) if is_file(source_name) and not wishes.video_only else []
        if words:
            note(f"left out of what goes into the pipe: {', '.join(words)}")
    if name == "-":
        return PipeSink(info, header, note)
    if is_pipeline(name):
        from echoir.runtime.streams.gstreamer import PipelineSink

        return PipelineSink(name.removeprefix("gst:"), info)
    from echoir.runtime.streams.encoding import Encoding
    from echoir.runtime.streams.videofile import CopiedVideoFile, VideoFile, partial_folder

    target = Path(name)
    if target.is_dir():
        raise ImageError(f"cannot write {name}: it is a folder")
    if is_file(source_name) and target.exists() and os.path.samefile(source_name, target):
        raise ImageError(f"cannot write {name}: it is the source")
    encoding = Encoding(wishes.encoder, wishes.quality, wishes.encoder_options)
    resumable = identity is not None and not wishes.overwrite
    if target.exists() and not wishes.overwrite and not (resumable and partial_folder(target).exists()):
        raise click.UsageError(f"{name} exists already; replace it with --force")
    if not is_file(source_name):
        if info.fields and (
            isinstance(source, PipeSource) or is_pipeline(source_name)
        ):  # PyAV cannot mark frames that it has not decoded
            note(f"left out of {name}: that it is interlaced")
            info = replace(info, fields=None)
        return VideoFile(name, info, encoding, note)
    return CopiedVideoFile(
        name,
        source_name,
        info,
        encoding,
        note,
        identity=identity or {},
        video_only=wishes.video_only,
        resume=resumable,
    )


def _pipe_header(source: Source, info: StreamInfo, wishes: Wishes) -> bytes | None:
    """The YUV4MPEG2 header for standard output, or None for raw frames."""
    header = source.header if isinstance(source, PipeSource) else None
    raw_in = isinstance(source, PipeSource) and header is None
    if wishes.output_format == "raw" or (wishes.output_format is None and raw_in):
        return None
    return resized(header, info) if header else y4m_header(info)


class ReturningSource:
    """A live source that is opened again when it stalls, fails or ends; time stamps keep rising."""

    live = True

    def __init__(self, source: Source, reopen: Callable[[], Source], retries: int, note: Note) -> None:
        self.info: StreamInfo = source.info
        self._source, self._reopen, self._retries, self._note = source, reopen, retries, note
        self.losses = 0

    def frames(self) -> Iterator[VideoFrame]:
        """Frames without end; raises ImageError when the source does not come back."""
        shift, last, seen = 0, None, time.monotonic()
        resumed = False
        while True:
            try:
                for frame in self._source.frames():
                    now = time.monotonic()
                    if frame.pts is not None:
                        if resumed and last is not None:  # go on from the last stamp by the time that has passed
                            shift = last + max(1, round((now - seen) / self.info.time_base)) - frame.pts
                        # Stamps by arrival, as of a network without a jitter buffer, may stand still.
                        last = frame.pts + shift if last is None else max(frame.pts + shift, last + 1)
                        frame = replace(frame, pts=last)  # the source may still look at its own
                    resumed, seen = False, now
                    yield frame
                cause = "the source has ended"
            except ImageError as error:
                cause = str(error)
            self.losses += 1
            self._note(f"source lost: {cause}")
            self._come_back(cause)
            resumed = True

    def _come_back(self, cause: str) -> None:
        self._source.close()
        wait = 0.5
        for attempt in range(1, self._retries + 1):
            time.sleep(wait)
            wait = min(2 * wait, LONGEST_WAIT)
            try:
                source = self._reopen()
            except ImageError as error:
                self._note(f"source still lost after attempt {attempt} of {self._retries}: {error}")
                continue
            if (found := _shape(source.info)) != (needed := _shape(self.info)):
                source.close()
                raise ImageError(f"the source came back as {found} and began as {needed}")
            self._source = source
            self._note(f"source back after attempt {attempt}")
            return
        raise ImageError(f"the source did not come back in {self._retries} attempts: {cause}")

    def give_back(self, frame: VideoFrame) -> None:
        """The frame is not used any more."""
        self._source.give_back(frame)

    def close(self) -> None:
        """Close what is open now."""
        self._source.close()


def _shape(info: StreamInfo) -> str:
    return f"{info.width} x {info.height} {info.format.name}"


def in_real_time(frames: Iterator[VideoFrame], time_base: Fraction) -> Iterator[VideoFrame]:
    """No faster than the time stamps say: what a camera would do."""
    start: float | None = None
    first = 0
    for frame in frames:
        if frame.pts is not None:
            if start is None:
                start, first = time.monotonic(), frame.pts
            time.sleep(max(0.0, start + float((frame.pts - first) * time_base) - time.monotonic()))
        yield frame


def fingerprint(name: str) -> list[Any]:
    """What tells a file from another of its name: size and time of its last change."""
    if not is_file(name):
        return [name]
    found = os.stat(name)
    return [os.path.realpath(name), found.st_size, found.st_mtime_ns]
