"""What goes along with a film from file to file: sound, subtitles, chapters, covers, attachments; and what cannot."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from echoir.runtime.streams.containers import Container
from echoir.runtime.streams.demuxing import film, open_file, pyav

if TYPE_CHECKING:
    from av.container import InputContainer, OutputContainer
    from av.packet import Packet
    from av.stream import Stream

_PICTURES = {"mjpeg": ("jpg", "image/jpeg"), "png": ("png", "image/png")}


class Companions:
    """The streams of a source beside its film, and what becomes of them.

    Args:
        source: that the film comes from.
        container: of the file that is written; None: a pipe, which holds frames alone.
        video_only: sound and subtitles are not wanted.
    """

    def __init__(self, source: InputContainer, container: Container | None, video_only: bool = False) -> None:
        self._source, self._film = source, film(source)
        self._chapters = bool(container and container.chapters)
        self._cover = container.cover if container else None
        self.copied: list[Stream] = []
        self._pictures: list[Stream] = []
        self._attached: list[Stream] = []
        self.left_out: list[str] = []  # what there is no place for, each in a few words
        cover = pyav().stream.Disposition.attached_pic
        for stream in source.streams:
            if stream is self._film or (video_only and stream.type in ("audio", "subtitle", "attachment")):
                continue
            if stream.type in ("audio", "subtitle") and container:
                self.copied.append(stream)
            elif stream.type == "attachment" and container and container.attachments:
                self._attached.append(stream)
            elif stream.disposition & cover and self._cover and _name(stream) in _PICTURES:
                self._pictures.append(stream)
            elif not self._told_otherwise(stream):
                self.left_out.append(_words(stream))
        if source.chapters() and not self._chapters:
            self.left_out.append(f"{len(source.chapters())} chapters")

    def _told_otherwise(self, stream: Stream) -> bool:
        """Tracks of QuickTime that are read as more than a stream: chapters and the time code."""
        if stream.type != "data" or "mp4" not in self._source.format.name:
            return False
        return "timecode" in stream.metadata or (_name(stream) == "bin_data" and bool(self._source.chapters()))

    def add_to(self, out: OutputContainer, standing: bool) -> dict[int, Lane]:
        """Add the streams and the chapters to a file; gives where packets go, by the source's index."""
        lanes: dict[int, Lane] = {}
        for stream in self.copied:
            added = out.add_stream_from_template(stream)
            added.metadata.update(stream.metadata)
            added.disposition = stream.disposition
            lanes[stream.index] = Lane(added, _words(stream), standing)
        for stream in self._attached:
            attachment: Any = stream
            out.add_attachment(attachment.name or "attachment", attachment.mimetype or "", attachment.data)
        for stream in self._pictures:
            if self._cover == "stream":
                added = out.add_stream_from_template(stream)
                added.metadata.update(stream.metadata)
                added.disposition = stream.disposition
                lanes[stream.index] = Lane(added, _words(stream), True)
        if self._chapters and self._source.chapters():
            out.set_chapters(self._source.chapters())
        return lanes

    def attach_covers(self, out: OutputContainer, data: dict[int, bytes]) -> None:
        """Matroska's covers are attachments named ``cover.jpg``."""
        for stream in self._pictures if self._cover == "attachment" else ():
            suffix, kind = _PICTURES[_name(stream)]
            name = stream.metadata.get("filename") or f"cover.{suffix}"
            out.add_attachment(name, stream.metadata.get("mimetype") or kind, data[stream.index])

    @property
    def pictures_to_attach(self) -> list[int]:
        """The source's indices of covers that become attachments."""
        return [stream.index for stream in self._pictures] if self._cover == "attachment" else []


@dataclass
class Lane:
    """A stream that packets are copied into; their decoding times are made to rise.

    Args:
        stream: of the file that is written.
        words: what it is.
        standing: two packets may have the same time.
    """

    stream: Stream
    words: str
    standing: bool
    moved: int = 0  # packets whose time did not rise in the source
    worst: Fraction = Fraction(0)  # seconds by which one was moved
    lost: int = 0  # packets that could not be written
    _last: int | None = None
    _end: int = 0

    def fit(self, packet: Packet[Any]) -> None:
        """Give a packet this stream's time base, and a decoding time after the one before it."""
        base, own = self.stream.time_base, packet.time_base
        assert base is not None

        def ticks(stamp: int | None) -> int | None:
            return None if stamp is None else math.floor(stamp * own / base + Fraction(1, 2))

        pts, dts, duration = ticks(packet.pts), ticks(packet.dts), ticks(packet.duration) or 0
        if dts is None:
            dts = pts if pts is not None else self._end
        if self._last is not None and (least := self._last + (not self.standing)) > dts:
            if (by := (least - dts) * base) > own:
                self.moved, self.worst = self.moved + 1, max(self.worst, by)
            dts = least
        if pts is not None:
            pts = max(pts, dts)
        packet.pts, packet.dts, packet.duration, packet.time_base = pts, dts, duration, base
        packet.stream = self.stream
        self._last, self._end = dts, dts + duration


def left_behind(source: str) -> list[str]:
    """What a file holds beside its film, for a sink that takes frames alone."""
    with open_file(source) as container:
        return Companions(container, None).left_out


def _name(stream: Stream) -> str:
    return (stream.codec_context.name if stream.codec_context is not None else stream.name) or "unknown"


def _words(stream: Stream) -> str:
    """What a stream is, in a few words: ``audio stream 1 (aac, deu)``."""
    kinds = {"video": "video stream", "audio": "audio stream", "subtitle": "subtitles", "data": "data stream"}
    if stream.disposition & pyav().stream.Disposition.attached_pic:
        kind = "cover"
    else:
        kind = kinds.get(stream.type, f"{stream.type} stream")
    if stream.type == "attachment":
        return f"attachment {stream.name or stream.index}"
    said = [_name(stream), *([stream.language] if stream.language not in (None, "und") else [])]
    context: Any = stream.codec_context
    if stream.type == "video" and context is not None:
        said.append(f"{context.width} x {context.height}")
    return f"{kind} {stream.index} ({', '.join(said)})"
