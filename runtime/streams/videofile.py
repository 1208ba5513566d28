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
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from echoir.runtime.errors import ImageError
from echoir.runtime.files import atomic_write
from echoir.runtime.streams.carried import Beside
from echoir.runtime.streams.containers import container_of, left_out
from echoir.runtime.streams.demuxing import location, pyav
from echoir.runtime.streams.encoding import Encoder, Encoding, av_frame, blank_frame, encoder_pixels
from echoir.runtime.streams.muxing import Assembly, Segment
from echoir.runtime.streams.videoframes import StreamInfo, VideoFrame

if TYPE_CHECKING:
    from av.container import OutputContainer

SEGMENT = 60  # frames; so many are restored again at most after an interruption


class VideoFile:
    """A sink that is a file of its own: one video stream. For cameras and pipes."""

    def __init__(self, target: str, info: StreamInfo, encoding: Encoding, note: Callable[[str], None]) -> None:
        self._av = pyav()
        self._target, self._note = Path(target), note
        container = container_of(self._target)
        # A container that counts frames is given the stream's rate to count in.
        counted = replace(info, time_base=1 / (info.rate or Fraction(25)))
        self._times, self._info = info.time_base, info if container.variable else counted
        self._encoding = encoding.settled(self._target.suffix.lower(), info)
        self._pixels = encoder_pixels(info, self._encoding, note)
        self._beside = Beside(self._encoding.encoder, note)
        if words := left_out(info, container, self._encoding.encoder):
            note(f"left out of {target}: {', '.join(words)}")
        self._partial = partial_file(self._target)
        self._last: int | None = None
        self._worst = Fraction(0)
        with _writing(self._target):
            # Fragments while it grows, so that it plays whatever happens; one index when it is whole.
            options = {"flush_packets": "1", **container.options}
            if container.format in ("mp4", "mov"):
                options["movflags"] = "hybrid_fragmented"
            partial = location(str(self._partial))
            self._container = self._av.open(partial, "w", format=container.format, options=options)
            self._encoder = Encoder(self._container, self._info, self._encoding, self._pixels)
            if info.display is not None and container.turned:
                self._encoder.stream.set_display_matrix(info.display)
            if self._encoding.tag:
                self._encoder.stream.codec_context.codec_tag = self._encoding.tag

    def blank(self, like: VideoFrame) -> VideoFrame:
        """A frame to be filled and written, with what ``like`` carries besides pixels."""
        return blank_frame(self._info, like)

    def write(self, frame: VideoFrame) -> None:
        """Encode a frame; raises ImageError when it cannot be written."""
        pts, duration = frame.pts, frame.duration
        scale = self._times / self._info.time_base
        if pts is not None and scale != 1:
            exact = pts * scale
            pts = max(round(exact), 0 if self._last is None else self._last + 1)
            self._worst = max(self._worst, abs(pts - exact) * self._info.time_base)
            duration = 1
        with _writing(self._target):
            picture = av_frame(self._info, frame)
            self._beside.check(picture)
            self._encoder.write(picture, pts, duration)
        self._last = pts if pts is not None else (self._last or 0) + 1

    def finish(self, complete: bool) -> None:
        """Give the file its name; without a single frame there is none."""
        if self._worst > max(self._times, Fraction(1, 1000)):
            self._note(
                "this container holds frames at a constant rate: their times are moved, "
                f"by up to {float(self._worst) * 1e3:.1f} ms"
            )
        with _writing(self._target):
            if self._last is not None:
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
        self._target, self._info = Path(target), info
        self._encoding = encoding.settled(self._target.suffix.lower(), info)
        self._pixels = encoder_pixels(info, self._encoding, note)
        self._beside = Beside(self._encoding.encoder, note)
        self._assembly = Assembly(self._target, source, info, self._encoding, video_only, note)
        with _writing(self._target):
            self._assembly.check(self._pixels)
        self._folder = partial_folder(self._target)
        settings = {"encoder": self._encoding.encoder, "options": self._encoding.options, "segment": SEGMENT}
        identity = json.loads(json.dumps({**identity, **settings, "pixels": self._pixels}))
        self._segments = self._found(identity, resume, note)
        self.done = len(self._segments) * SEGMENT  # frames that need not be restored again
        self._encoder: Encoder | None = None
        self._container: OutputContainer | None = None
        self._times: list[tuple[int, int]] = []  # time stamp and duration of every frame of the segment

    def _found(self, identity: dict[str, Any], resume: bool, note: Callable[[str], None]) -> list[Segment]:
        """Segments that an earlier run left; others are cleared away."""
        state = self._folder / "run.json"
        try:
            same = resume and json.loads(state.read_text()) == identity
        except (OSError, ValueError):
            same = False
        with _writing(self._target):
            if not same:
                if self._folder.exists():
                    if any(path.suffix not in (".nut", ".json") for path in self._folder.glob("[!.]*")):
                        raise ImageError(f"cannot write {self._target}: {self._folder} is there and holds other files")
                    if resume:
                        note(f"{self._folder} is of a run with other settings: starting anew")
                    shutil.rmtree(self._folder)
                self._folder.mkdir()
                with atomic_write(state) as temporary:
                    temporary.write_text(json.dumps(identity, indent=2))
            for left in (self._folder / "tail.nut", self._folder / "writing.nut"):
                left.unlink(missing_ok=True)
        found: list[Segment] = []
        while segment := Segment.load(self._name(len(found))):
            found.append(segment)
        return found

    def _name(self, index: int) -> Path:
        return self._folder / f"{index:06}.nut"

    def blank(self, like: VideoFrame) -> VideoFrame:
        """A frame to be filled and written, with what ``like`` carries besides pixels."""
        return blank_frame(self._info, like)

    def write(self, frame: VideoFrame) -> None:
        """Encode a frame; raises ImageError when it cannot be written."""
        with _writing(self._target):
            pts = frame.pts if frame.pts is not None else self.done + len(self._times)
            if self._encoder is None:
                # NUT keeps any time base and any codec.
                path = location(str(self._folder / "writing.nut"))
                self._container = self._av.open(path, "w", options={"avoid_negative_ts": "disabled"})
                self._encoder = Encoder(self._container, self._info, self._encoding, self._pixels)
                self._times = []
            self._times.append((pts, frame.duration or 1))
            picture = av_frame(self._info, frame)
            self._beside.check(picture)
            self._encoder.write(picture, pts - self._times[0][0], frame.duration)
            if len(self._times) == SEGMENT:
                self._segments.append(self._end_segment(self._name(len(self._segments))))

    def _end_segment(self, path: Path) -> Segment:
        assert self._encoder is not None
        self._encoder.finish()
        segment = Segment(path, self._times[0][0], self._times[-1][1])
        segment.save_times()
        os.replace(self._folder / "writing.nut", path)
        self._encoder, self._container, self._times = None, None, []
        return segment

    def finish(self, complete: bool) -> None:
        """Put the file together: its own frames, the source's other streams. Without a frame there is none.

        Of a run that was interrupted the segments stay, and it can be resumed.

        Raises:
            ImageError: it cannot be written, and the segments stay; or all but some packets of other streams could.
        """
        lost: list[str] = []
        with _writing(self._target, f"; the frames that are done lie in {self._folder}"):
            segments = list(self._segments)
            if self._encoder is not None:
                segments.append(self._end_segment(self._folder / "tail.nut"))
            if segments:
                with atomic_write(self._target) as temporary:
                    lost = self._assembly.write(temporary, segments, complete)
            if complete or not self._segments:
                shutil.rmtree(self._folder)
        if lost:
            raise ImageError(f"{self._target} is written but for {', '.join(lost)}, which it does not take")

    def close(self) -> None:
        """Close what is open; segments stay."""
        if self._container is not None:
            with suppress(self._av.error.FFmpegError, OSError):
                self._container.close()


def partial_file(target: Path) -> Path:
    """Where a file that is being written lies."""
    return target.with_name(f"{target.stem}.partial{target.suffix}")


def partial_folder(target: Path) -> Path:
    """Where the segments of a file lie."""
    return target.with_name(target.name + ".partial")


@contextmanager
def _writing(target: Path, more: str = "") -> Iterator[None]:
    """What writing can raise, as one line that names the file."""
    try:
        yield
    except (OSError, pyav().error.FFmpegError) as error:  # most, not all, of FFmpeg's are OSErrors
        raise ImageError(f"cannot write {target}: {error.strerror or error}{more}") from error
