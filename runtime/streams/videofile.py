"""Video files, written through PyAV (FFmpeg's libraries).

A file that is made from a file is encoded in segments of a fixed number of frames, each with an encoder of its
own, that lie in ``NAME.partial/`` until the whole is put together: whatever interrupts a run, the segments that
are there play, and a run that resumes encodes the frames that an undisturbed one does. What comes from a camera or
a pipe is encoded straight into ``NAME.partial.EXT``, which plays up to where it got, and is renamed at the end.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from echoir.runtime.errors import ImageError
from echoir.runtime.files import atomic_write
from echoir.runtime.streams.encoding import Encoder, Encoding, av_frame, blank_frame, encoder_pixels, pyav
from echoir.runtime.streams.videoframes import StreamInfo, VideoFrame

if TYPE_CHECKING:
    from av.container import InputContainer, OutputContainer
    from av.packet import Packet
    from av.stream import Stream
    from av.video.stream import VideoStream

SEGMENT = 60  # frames; so many are restored again at most after an interruption
CONTAINERS = {
    ".mp4": "mp4",
    ".m4v": "mp4",
    ".mov": "mov",
    ".mkv": "matroska",
    ".webm": "webm",
    ".avi": "avi",
    ".ts": "mpegts",
    ".nut": "nut",
}


class VideoFile:
    """A sink that is a file of its own: one video stream. For cameras and pipes."""

    def __init__(self, target: str, info: StreamInfo, encoding: Encoding, note: Callable[[str], None]) -> None:
        self._av = pyav()
        self._target, self._info = Path(target), info
        self._encoding = encoding.settled(self._target.suffix.lower(), info)
        self._pixels = encoder_pixels(info, self._encoding, note)
        self._partial = partial_file(self._target)
        self._written = 0
        with _writing(self._target):
            # Fragments while it grows, so that it plays whatever happens; one index when it is whole.
            options = {"flush_packets": "1", **_NO_SHIFT}
            if _container(self._target) in ("mp4", "mov"):
                options["movflags"] = "hybrid_fragmented"
            self._container = self._av.open(str(self._partial), "w", format=_container(self._target), options=options)
            self._encoder = Encoder(self._container, info, self._encoding, self._pixels)
            if info.display is not None:
                self._encoder.stream.set_display_matrix(info.display)

    def blank(self) -> VideoFrame:
        """A frame to be filled and written."""
        return blank_frame(self._info)

    def write(self, frame: VideoFrame) -> None:
        """Encode a frame; raises ImageError when it cannot be written."""
        with _writing(self._target):
            self._encoder.write(av_frame(self._info, frame), frame.pts, frame.duration)
        self._written += 1

    def finish(self, complete: bool) -> None:
        """Give the file its name; without a single frame there is none."""
        with _writing(self._target):
            if self._written:
                self._encoder.finish()
                os.replace(self._partial, self._target)
            else:
                self.close()
                self._partial.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file; what is not finished keeps its partial name."""
        with suppress(self._av.error.FFmpegError, OSError):
            self._container.close()


class CopiedVideoFile:
    """A sink that is a copy of a file but for its video frames; in segments, so that it can be resumed.

    Args:
        target: the file; its suffix is the container.
        source: the file that frames, audio, subtitles and metadata come from.
        identity: everything the frames depend on, as JSON values; segments of another are not used.
        video_only: leave out the other streams.
    """

    def __init__(
        self,
        target: str,
        source: str,
        info: StreamInfo,
        encoding: Encoding,
        note: Callable[[str], None],
        *,
        identity: dict[str, Any],
        video_only: bool = False,
        resume: bool = True,
    ) -> None:
        self._av = pyav()
        self._target, self._source, self._info, self._video_only = Path(target), source, info, video_only
        self._encoding = encoding.settled(self._target.suffix.lower(), info)
        self._pixels = encoder_pixels(info, self._encoding, note)
        with _writing(self._target):
            self._try_container()
        self._folder = partial_folder(self._target)
        settings = {"encoder": self._encoding.encoder, "options": self._encoding.options, "segment": SEGMENT}
        identity = json.loads(json.dumps({**identity, **settings, "pixels": self._pixels}))
        self._segments = self._found(identity, resume, note)
        self.done = self._segments * SEGMENT  # frames that need not be restored again
        self._encoder: Encoder | None = None
        self._container: OutputContainer | None = None
        self._in_segment = 0

    def _found(self, identity: dict[str, Any], resume: bool, note: Callable[[str], None]) -> int:
        """Segments that an earlier run left; others are cleared away."""
        state = self._folder / "run.json"
        try:
            same = resume and json.loads(state.read_text()) == identity
        except (OSError, ValueError):
            same = False
        with _writing(self._target):
            if not same:
                if self._folder.exists():
                    if any(path.suffix != ".nut" and path != state for path in self._folder.glob("[!.]*")):
                        raise ImageError(f"cannot write {self._target}: {self._folder} is there and holds other files")
                    if resume:
                        note(f"{self._folder} is of a run with other settings: starting anew")
                    shutil.rmtree(self._folder)
                self._folder.mkdir()
                with atomic_write(state) as temporary:
                    temporary.write_text(json.dumps(identity, indent=2))
            for left in (self._folder / "tail.nut", self._folder / "writing.nut"):
                left.unlink(missing_ok=True)
        count = 0
        while self._name(count).exists():
            count += 1
        return count

    def _name(self, index: int) -> Path:
        return self._folder / f"{index:06}.nut"

    def blank(self) -> VideoFrame:
        """A frame to be filled and written."""
        return blank_frame(self._info)

    def write(self, frame: VideoFrame) -> None:
        """Encode a frame; raises ImageError when it cannot be written."""
        with _writing(self._target):
            if self._encoder is None:
                # NUT keeps any time base and any codec.
                self._container = self._av.open(str(self._folder / "writing.nut"), "w", options=_NO_SHIFT)
                self._encoder = Encoder(self._container, self._info, self._encoding, self._pixels)
            self._encoder.write(av_frame(self._info, frame), frame.pts, frame.duration)
            self._in_segment += 1
            if self._in_segment == SEGMENT:
                self._end_segment(self._name(self._segments))
                self._segments += 1

    def _end_segment(self, path: Path) -> None:
        assert self._encoder is not None
        self._encoder.finish()
        self._encoder, self._container, self._in_segment = None, None, 0
        os.replace(self._folder / "writing.nut", path)

    def finish(self, complete: bool) -> None:
        """Put the file together: its own frames, the source's other streams. Without a frame there is none.

        Of a run that was interrupted the segments stay, and it can be resumed.
        """
        with _writing(self._target):
            tail = self._folder / "tail.nut"
            if self._encoder is not None:
                self._end_segment(tail)
            paths = [self._name(index) for index in range(self._segments)]
            paths += [tail] if tail.exists() else []
            if paths:
                self._assemble(paths, complete)
            if complete or not self._segments:
                shutil.rmtree(self._folder)

    def close(self) -> None:
        """Close what is open; segments stay."""
        if self._container is not None:
            with suppress(self._av.error.FFmpegError, OSError):
                self._container.close()

    def _try_container(self) -> None:
        """Find out before the work whether the container takes every stream."""
        import io

        with (
            self._av.open(self._source) as source,
            self._av.open(io.BytesIO(), "w", format=_container(self._target)) as out,
        ):
            Encoder(out, self._info, self._encoding, self._pixels)
            try:
                self._add_others(source, out)
                out.start_encoding()
            except (self._av.error.FFmpegError, ValueError) as error:
                raise ImageError(
                    f"a file named {self._target.name} cannot hold the streams of {self._source} ({error}); "
                    "name it .mkv, or leave the other streams out with --video-only"
                ) from error

    def _add_others(self, source: InputContainer, out: OutputContainer) -> dict[int, Stream]:
        """The streams that are copied, by the source's index."""
        copied: dict[int, Stream] = {}
        for stream in source.streams if not self._video_only else ():
            if stream.type == "attachment":
                attachment: Any = stream
                out.add_attachment(attachment.name, attachment.mimetype or "", attachment.data)
            elif stream.type in ("audio", "subtitle"):
                added = out.add_stream_from_template(stream)
                added.metadata.update(stream.metadata)
                added.disposition = stream.disposition
                copied[stream.index] = added
        return copied

    def _assemble(self, paths: list[Path], complete: bool) -> None:
        av, info = self._av, self._info
        with (
            atomic_write(self._target) as temporary,
            av.open(self._source) as source,
            av.open(str(paths[0])) as first,
            av.open(str(temporary), "w", format=_container(self._target), options=_NO_SHIFT) as out,
        ):
            out.metadata.update(source.metadata)
            video = out.add_stream_from_template(first.streams.video[0])
            video.time_base = info.time_base
            video.metadata.update(source.streams.video[0].metadata)
            video.disposition = source.streams.video[0].disposition
            if info.aspect is not None:
                video.sample_aspect_ratio = info.aspect
            if info.display is not None:
                video.set_display_matrix(info.display)
            copied = self._add_others(source, out)
            if source.chapters():
                out.set_chapters(source.chapters())
            self._interleave(source, _packets(paths, video), copied, out, complete)

    def _interleave(
        self,
        source: InputContainer,
        frames: Iterator[Packet[Any]],
        copied: dict[int, Stream],
        out: OutputContainer,
        complete: bool,
    ) -> None:
        """All packets, in the order of their decoding; of an interrupted run, no sound beyond its last frame."""
        frame = next(frames, None)
        for packet in source.demux([source.streams[index] for index in copied]) if copied else ():
            if not packet.size:
                continue
            if packet.dts is None:
                packet.dts = packet.pts
            while frame is not None and _seconds(frame) <= _seconds(packet):
                out.mux(frame)
                frame = next(frames, None)
            if frame is None and not complete:
                break
            packet.stream = copied[packet.stream.index]
            out.mux(packet)
        while frame is not None:
            out.mux(frame)
            frame = next(frames, None)


_NO_SHIFT = {"avoid_negative_ts": "disabled"}  # B-frames begin before zero; time stamps stay what they are


def partial_file(target: Path) -> Path:
    """Where a file that is being written lies."""
    return target.with_name(f"{target.stem}.partial{target.suffix}")


def partial_folder(target: Path) -> Path:
    """Where the segments of a file lie."""
    return target.with_name(target.name + ".partial")


@contextmanager
def _writing(target: Path) -> Iterator[None]:
    """What writing can raise, as one line that names the file."""
    try:
        yield
    except OSError as error:  # FFmpeg's own errors are among them
        raise ImageError(f"cannot write {target}: {error.strerror or error}") from error


def _container(target: Path) -> str:
    """FFmpeg's name of a file's container."""
    name = CONTAINERS.get(target.suffix.lower())
    if name is None:
        raise ImageError(f"cannot write {target}: the suffix is none of {', '.join(CONTAINERS)}")
    return name


def _packets(paths: list[Path], video: VideoStream) -> Iterator[Packet[Any]]:
    """The packets of all segments, in the order of their decoding, with decoding times.

    Those come from the time stamps: in rising order, each as much earlier as the encoder looked ahead. A
    segment's own would run into the segment before.
    """
    stamps = [packet.pts for packet in _demuxed(paths) if packet.pts is not None]
    rising = sorted(stamps)
    rank = {pts: index for index, pts in enumerate(rising)}
    ahead = max(index - rank[pts] for index, pts in enumerate(stamps))
    step = rising[1] - rising[0] if len(rising) > 1 else 1
    times = [rising[0] - step * (ahead - index) for index in range(ahead)] + rising
    for packet, dts in zip(_demuxed(paths), times, strict=False):
        packet.dts, packet.stream = dts, video
        yield packet


def _demuxed(paths: list[Path]) -> Iterator[Packet[Any]]:
    av = pyav()
    for path in paths:
        with av.open(str(path)) as segment:
            yield from (packet for packet in segment.demux(segment.streams.video[0]) if packet.size)


def _seconds(packet: Packet[Any]) -> Fraction:
    assert packet.dts is not None
    assert packet.time_base is not None
    return packet.dts * packet.time_base
