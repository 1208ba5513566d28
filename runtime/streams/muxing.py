"""Files, put together: a film that was encoded in segments, and the source's other streams packet by packet."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from echoir.runtime.errors import ImageError
from echoir.runtime.streams.carried import INTERLACED
from echoir.runtime.streams.companions import Companions, Lane
from echoir.runtime.streams.containers import Container, container_of, left_out
from echoir.runtime.streams.demuxing import Clock, film, location, open_file, packets, pyav
from echoir.runtime.streams.encoding import Encoder, Encoding, tell_colours
from echoir.runtime.streams.videoframes import StreamInfo

if TYPE_CHECKING:
    from av.container import InputContainer, OutputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream

FASTEST = 120  # frames per second that a container of constant rate is given so that all stamps fall on its grid
TRIED = 200  # packets of the source that a container is tried with


@dataclass(frozen=True)
class Segment:
    """Frames that were encoded together.

    Args:
        path: a NUT file whose time begins at 0.
        start: the time stamp of its first frame, in the film's time base.
        duration: how long its last frame is shown, in the same.
    """

    path: Path
    start: int
    duration: int

    def packets(self, time_base: Fraction) -> Iterator[Packet[Any]]:
        """Its packets in the order of their decoding, with the time stamps of the whole, in the film's time base."""
        with pyav().open(location(str(self.path))) as file:
            for packet in file.demux(file.streams.video[0]):
                if packet.size and packet.pts is not None:
                    packet.pts = self.start + round(packet.pts * packet.time_base / time_base)
                    yield packet

    def save_times(self) -> None:
        """Write what NUT does not hold beside it."""
        self.path.with_suffix(".json").write_text(json.dumps({"start": self.start, "duration": self.duration}))

    @classmethod
    def load(cls, path: Path) -> Segment | None:
        """A segment that is there; None when it or its times are not."""
        try:
            times = json.loads(path.with_suffix(".json").read_text())
            return cls(path, int(times["start"]), int(times["duration"])) if path.exists() else None
        except (OSError, ValueError, KeyError, TypeError):
            return None


@dataclass
class Assembly:
    """A file of segments and of what is copied from the source.

    Args:
        target: the file; its suffix is the container.
        source: the file that all but the frames come from.
        info: of the film.
        encoding: of its frames.
        video_only: leave out sound and subtitles.
        note: told what is left out or changed.
    """

    target: Path
    source: str
    info: StreamInfo
    encoding: Encoding
    video_only: bool
    note: Callable[[str], None]

    @property
    def container(self) -> Container:
        """What the target can hold."""
        return container_of(self.target)

    def check(self, pixels: str) -> None:
        """Find out before the work whether the container takes every stream: write a little, and read it back.

        What there is no place for is told.

        Raises:
            ImageError: a stream is refused; the message names it.
        """
        av, file = pyav(), io.BytesIO()
        with open_file(self.source) as source:
            companions = Companions(source, self.container, self.video_only)
            try:
                with av.open(file, "w", format=self.container.format, options=self.container.options) as out:
                    encoder = Encoder(out, self.info, self.encoding, pixels)
                    lanes = companions.add_to(out, self.container.standing)
                    encoder.write(av.VideoFrame(self.info.width, self.info.height, pixels), 0, None)
                    encoder.flush()
                    for packet in islice(packets(source, Clock()), TRIED):
                        if packet.size and (lane := lanes.get(packet.stream.index)):
                            lane.fit(packet)
                            out.mux(packet)
            except (av.error.FFmpegError, ValueError) as error:
                raise ImageError(self._refusal(str(error))) from error
            with av.open(io.BytesIO(file.getvalue())) as back:
                for stream in companions.copied:
                    index = lanes[stream.index].stream.index
                    if index < len(back.streams) and _codec(back.streams[index]) != _codec(stream):
                        raise ImageError(self._refusal(f"{lanes[stream.index].words} comes back as another"))
            words = left_out(self.info, self.container, self.encoding.encoder) + companions.left_out
            if words:
                self.note(f"left out of {self.target.name}: {', '.join(words)}")

    def _refusal(self, cause: str) -> str:
        remedies = [] if self.target.suffix.lower() == ".mkv" else ["name it .mkv"]
        remedies.append("leave the other streams out with --video-only")
        return (
            f"a file named {self.target.name} cannot hold the streams of {self.source} ({cause}); "
            f"{', or '.join(remedies)}"
        )

    def write(self, temporary: Path, segments: list[Segment], complete: bool) -> list[str]:
        """Write the file.

        Args:
            temporary: where.
            segments: the film; at least one.
            complete: the source came to its end; else nothing is copied from beyond the last frame.

        Returns:
            What could not be written beside the film, each in a few words.
        """
        av, container = pyav(), self.container
        with (
            open_file(self.source) as source,
            av.open(location(str(segments[0].path))) as first,
            av.open(location(str(temporary)), "w", format=container.format, options=container.options) as out,
        ):
            times = FilmTimes.of(segments, self.info, container, self.note)
            companions = Companions(source, container, self.video_only)
            video = self._add_film(source, first.streams.video[0], out, times)
            lanes = companions.add_to(out, container.standing)
            if wanted := companions.pictures_to_attach:
                companions.attach_covers(out, _pictures(self.source, wanted))
            out.start_encoding()  # from here on the streams' time bases are the container's own
            every = (packet for segment in segments for packet in segment.packets(self.info.time_base))
            self._interleave(source, times.given(every, video), lanes, out, complete)
        lost = []
        for lane in lanes.values():
            if lane.moved:
                self.note(
                    f"{lane.words}: {lane.moved} packets whose time does not rise are moved, "
                    f"by up to {float(lane.worst) * 1e3:.1f} ms"
                )
            if lane.lost:
                lost.append(f"{lane.lost} packets of {lane.words}")
        return lost

    def _add_film(
        self, source: InputContainer, template: VideoStream, out: OutputContainer, times: FilmTimes
    ) -> VideoStream:
        info = self.info
        out.metadata.update(source.metadata)
        video = out.add_stream_from_template(template, opaque=True)  # a decoder's name need not be an encoder's
        video.time_base = times.time_base
        context: Any = video.codec_context
        context.framerate = times.rate or 0
        if info.format.kind != "rgb":  # VP9, for one, says nothing of primaries and transfer itself
            tell_colours(context, info.tags)
        if info.fields and self.encoding.encoder in INTERLACED and sets_rates():
            context.field_order = 2 if info.fields == "top" else 3
        if self.encoding.tag:
            context.codec_tag = self.encoding.tag
        original = film(source)
        assert original is not None
        video.metadata.update(original.metadata)
        video.metadata.pop("alpha_mode", None)  # there is none any more
        video.disposition = original.disposition
        if not times.rate or times.rate < 1 or not sets_rates():  # nothing to count in
            codes = [told.pop("timecode", None) for told in (out.metadata, video.metadata)]
            if any(codes):
                self.note("left out: the time code, which needs a frame rate of 1 or more, and PyAV 18 or newer")
        if info.aspect is not None:
            video.sample_aspect_ratio = info.aspect
        if info.display is not None and self.container.turned:
            video.set_display_matrix(info.display)
        return video

    def _interleave(
        self,
        source: InputContainer,
        frames: Iterator[Packet[Any]],
        lanes: dict[int, Lane],
        out: OutputContainer,
        complete: bool,
    ) -> None:
        """All packets, in the order of their decoding; of an interrupted run, no sound beyond its last frame.

        A packet of sound that the container refuses is counted and left out: frames are worth more.
        """
        av = pyav()
        frame = next(frames, None)
        for packet in packets(source, Clock()) if lanes else ():
            lane = lanes.get(packet.stream.index)
            if not packet.size or lane is None:
                continue
            lane.fit(packet)
            while frame is not None and _seconds(frame) <= _seconds(packet):
                out.mux(frame)
                frame = next(frames, None)
            if frame is None and not complete:
                break
            try:
                out.mux(packet)
            except av.error.FFmpegError:
                lane.lost += 1
        while frame is not None:
            out.mux(frame)
            frame = next(frames, None)


@dataclass(frozen=True)
class FilmTimes:
    """When the frames of a film are decoded and shown.

    Args:
        time_base: the unit, in seconds.
        rate: frames per second; None where the rate varies and the container would take it for constant.
        pts, dts: of all packets in the order of decoding.
        duration: of the last frame that is shown.
    """

    time_base: Fraction
    rate: Fraction | None
    pts: list[int]
    dts: list[int]
    duration: int

    @classmethod
    def of(
        cls, segments: list[Segment], info: StreamInfo, container: Container, note: Callable[[str], None]
    ) -> FilmTimes:
        """Decoding times come from the time stamps: rising, each as much earlier as the encoder looked ahead.

        A segment's own would run into the segment before.
        """
        every = (packet for segment in segments for packet in segment.packets(info.time_base))
        stamps = [packet.pts for packet in every if packet.pts is not None]
        rising = sorted(stamps)
        rank = {pts: index for index, pts in enumerate(rising)}
        steps = [after - before for before, after in pairwise(rising)]
        usual = round(1 / (info.rate * info.time_base)) if info.rate else None
        last = segments[-1].duration
        if not container.last and abs(last - (usual or last)) > 1:
            note(
                f"this container does not say how long the last frame is shown: "
                f"{float(last * info.time_base):.3f} s become {float((usual or 0) * info.time_base):.3f} s"
            )
        if not container.variable:
            base, grid = _on_grid(rising, info, note)
            return cls(base, 1 / base, grid, grid, 1)
        ahead = max(index - rank[pts] for index, pts in enumerate(stamps))
        step = min(steps, default=1)
        dts = [rising[0] - step * (ahead - index) for index in range(ahead)] + rising
        varies = bool(steps) and max(steps) - min(steps) > 2
        rate = None if varies and container.format in ("matroska", "webm") else info.rate
        return cls(info.time_base, rate, stamps, dts[: len(stamps)], last)

    def given(self, packets: Iterator[Packet[Any]], video: VideoStream) -> Iterator[Packet[Any]]:
        """Give the packets, in the order of their decoding, these times and a place in a file."""
        rising = sorted(self.pts)
        shown = dict(pairwise(rising)) | {rising[-1]: rising[-1] + self.duration}
        for packet, pts, dts in zip(packets, self.pts, self.dts, strict=True):
            packet.pts, packet.dts, packet.duration = pts, dts, shown[pts] - pts
            packet.time_base, packet.stream = self.time_base, video
            yield packet


def _on_grid(rising: list[int], info: StreamInfo, note: Callable[[str], None]) -> tuple[Fraction, list[int]]:
    """Stamps as whole numbers of a step: an exact one if it is not too fine, else one frame of the stream's rate."""
    step = math.gcd(*rising) * info.time_base
    if step and 1 / step <= FASTEST:
        return step, [round(pts * info.time_base / step) for pts in rising]
    step = 1 / (info.rate or Fraction(25))
    grid: list[int] = []
    worst, moved = Fraction(0), 0
    for pts in rising:
        place = round(pts * info.time_base / step)
        grid.append(max(place, grid[-1] + 1 if grid else 0))
        by = abs(grid[-1] * step - pts * info.time_base)
        worst, moved = max(worst, by), moved + (by > max(info.time_base, Fraction(1, 1000)))
    if moved:
        note(
            f"this container holds frames at a constant rate: the times of {moved} of {len(rising)} frames are moved, "
            f"by up to {float(worst) * 1e3:.1f} ms"
        )
    return step, grid


def sets_rates() -> bool:
    """Whether PyAV gives a stream that is copied its frame rate and order of fields: from version 18 on."""
    return int(pyav().__version__.partition(".")[0]) >= 18


def _pictures(source: str, wanted: list[int]) -> dict[int, bytes]:
    """The data of covers, by the index of their stream."""
    found: dict[int, bytes] = {}
    with open_file(source) as container:
        for packet in container.demux([container.streams[index] for index in wanted]):
            if packet.size:
                found.setdefault(packet.stream.index, bytes(packet))
            if len(found) == len(wanted):
                break
    return found


def _codec(stream: Any) -> str | None:
    return stream.codec_context.name if stream.codec_context is not None else None


def _seconds(packet: Packet[Any]) -> Fraction:
    assert packet.dts is not None
    return packet.dts * packet.time_base
