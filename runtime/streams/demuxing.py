"""Containers, read through PyAV (FFmpeg's libraries): how one is opened, which stream is the film, and its packets.

Decoding times rise in a sound stream. Where they fall back (files joined byte by byte, a recorder or a camera that
was started anew) time goes on from where it was, in every stream by the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from echoir.runtime.errors import needs_extra

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.stream import Stream
    from av.video.stream import VideoStream

FALL = Fraction(1, 10)  # seconds that a decoding time falls back by when a clock was set anew (ffmpeg's own measure)
# A transport stream that goes on under other identifiers goes on in the same streams.
_OPTIONS = {"merge_pmt_versions": "1"}


def pyav() -> Any:
    """PyAV, or the error that says how to install it; FFmpeg's own lines would break the progress bar."""
    with needs_extra("video"):
        import av
    av.logging.set_level(av.logging.PANIC)  # errors are raised
    return av


def location(name: str) -> str:
    """A name for FFmpeg, which takes ``a:b`` for a protocol: a file that is there, or can be, by its whole path."""
    return os.path.abspath(name) if os.path.exists(name) or "://" not in name else name


def open_file(name: str, **more: Any) -> InputContainer:
    """Open a file or a network stream; raises PyAV's errors.

    Args:
        name: a path, or what FFmpeg has a protocol for.
        more: of ``av.open``.
    """
    options = _OPTIONS | more.pop("options", {})
    container: InputContainer = pyav().open(location(name), options=options, **more)
    return container


def film(container: InputContainer) -> VideoStream | None:
    """The video stream that is the film: the default one, then the largest; no cover and no thumbnails."""
    no_film = pyav().stream.Disposition.attached_pic | pyav().stream.Disposition.timed_thumbnails
    candidates = [stream for stream in container.streams.video if not stream.disposition & no_film]
    default = pyav().stream.Disposition.default

    def rank(stream: VideoStream) -> tuple[bool, int]:
        context = stream.codec_context
        size = context.width * context.height if context is not None else 0
        return bool(size and stream.disposition & default), size

    return max(candidates, key=rank, default=None)


@dataclass
class Clock:
    """Time that goes on where decoding times fall back; for the packets of one file, in their order.

    A stream that falls back begins the next stretch of the file. The first to do so settles by how much that
    stretch is moved, and the others follow.
    """

    moved: Callable[[str], None] = lambda message: None
    _shifts: list[Fraction] = field(default_factory=lambda: [Fraction(0)])
    _stretch: dict[int, int] = field(default_factory=dict)
    _ends: dict[int, tuple[Fraction, Fraction]] = field(default_factory=dict)

    def set(self, packet: Packet[Any]) -> None:
        """Move a packet's time stamps."""
        if packet.time_base is None or (packet.pts is None and packet.dts is None):
            return
        index, stretch = packet.stream.index, self._stretch.get(packet.stream.index, 0)
        if packet.dts is not None and packet.stream.type in ("video", "audio"):
            own = packet.dts * packet.time_base
            last, end = self._ends.get(index, (None, own))
            if last is not None and own + self._shifts[stretch] < last - FALL:
                stretch += 1
                if stretch == len(self._shifts):
                    self._shifts.append(end - own)
                    self.moved(f"time falls back from {float(last):.3f} to {float(own):.3f} s: it goes on from there")
                self._stretch[index] = stretch
            now = own + self._shifts[stretch]
            self._ends[index] = now, now + (packet.duration or 0) * packet.time_base
        if shift := self._shifts[stretch]:
            ticks = round(shift / packet.time_base)
            packet.pts = None if packet.pts is None else packet.pts + ticks
            packet.dts = None if packet.dts is None else packet.dts + ticks


def packets(container: InputContainer, clock: Clock) -> Iterator[Packet[Stream]]:
    """All packets in the order of the file, with time stamps that go on; empty ones end the streams."""
    for packet in container.demux():
        clock.set(packet)
        yield packet
