"""One run of ``echoir stream``: from a source through a network into a sink, and what is said about it."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from itertools import islice

import click

from echoir.runtime.errors import ImageError
from echoir.runtime.forms import form_of_frames, warning
from echoir.runtime.images import MAX_PIXELS
from echoir.runtime.progress import Progress
from echoir.runtime.restorer import Restorer
from echoir.runtime.streams.endpoints import Wishes, fingerprint, in_real_time, open_sink, open_source
from echoir.runtime.streams.pipeline import Counters, Policy, Stream
from echoir.runtime.streams.pixels import Colour, Matrix, Range, Siting
from echoir.runtime.streams.restoring import FrameRestorer, becomes
from echoir.runtime.streams.videoframes import Sink, Source, StreamInfo, VideoFrame, resolve_colour

REPORT = 0.5  # seconds between updates of the counters on the terminal


class Run:
    """One run of the command."""

    def __init__(
        self,
        restorer: Restorer,
        source: str,
        sink: str,
        wishes: Wishes,
        deadline: float | None,
        policy: Policy,
        queue: int | None,
        realtime: bool,
    ) -> None:
        self.restorer, self.source_name, self.sink_name, self.wishes = restorer, source, sink, wishes
        self.deadline, self.policy, self.queue, self.realtime = deadline, policy, queue, realtime
        self.failure: Exception | None = None  # of the source: what came before it is finished first
        self.signal = 0
        self.notes: list[str] = []  # until there is a progress to tell them

    def note(self, message: str) -> None:
        """Say what went wrong without ending the run."""
        self.notes.append(message)

    def __call__(
        self,
        overrides: tuple[Matrix | None, Range | None, Siting | None],
        max_pixels: int | None,
        log_json: bool,
        quiet: bool,
    ) -> int:
        """Returns the exit code, or raises an error of the project's, or UnfitError."""
        with ExitStack() as stack:
            source = open_source(self.source_name, self.wishes, lambda message: self.note(message))
            unknown = warning(form_of_frames(source.info.format), self.restorer.manifest.network)
            closing_source = stack.enter_context(ExitStack())
            closing_source.callback(source.close)
            info = source.info
            if info.width * info.height > (most := max_pixels or MAX_PIXELS):
                size = f"{info.width} x {info.height}"
                raise ImageError(f"frames of {self.source_name} are {size}, more than {most} pixels (--max-pixels)")
            colour, assumed = resolve_colour(info, matrix=overrides[0], range=overrides[1], siting=overrides[2])
            made = becomes(info, colour, self.restorer.manifest.network)
            sink = self._open_sink(source, made, colour)
            stack.callback(sink.close)
            done: int = getattr(sink, "done", 0)
            work = FrameRestorer(self.restorer, info, colour, source, sink)
            stream: Stream[VideoFrame] = Stream(
                self._frames(source, done),
                work,
                deadline=self.deadline,
                policy=self.policy,
                depth=self.queue,
                discard=source.give_back,
            )
            with (
                Progress("stream", info.frames, "frames", done=done, log_json=log_json, quiet=quiet) as progress,
                _signals(self, stream),
            ):
                self._introduce(source, made, colour, [*assumed, *filter(None, [unknown])], done, quiet, progress)
                try:
                    self._write(stream, source, sink, progress)
                finally:
                    if stream.reading:  # stuck in a device or a network: closing it there could crash
                        closing_source.pop_all()
                sink.finish(complete=not self.signal)
            if not quiet and not log_json:
                click.echo(f"stream: {stream.counters}", err=True)
            self._check(source, stream.counters, done)
            if self.signal and not source.live:
                click.echo("interrupted; what was done is finished", err=True)
                return 128 + self.signal
        return 0

    def _open_sink(self, source: Source, made: StreamInfo, colour: Colour) -> Sink:
        identity = None
        if self.deadline is None:
            identity = {
                "source": fingerprint(self.source_name),
                "models": self.restorer.models,
                "strength": self.restorer.strength,
                "colour": vars(colour),
                "deinterlace": self.wishes.deinterlace,
            }
        return open_sink(
            self.sink_name, self.source_name, source, made, self.wishes, lambda message: self.note(message), identity
        )

    def _introduce(
        self,
        source: Source,
        made: StreamInfo,
        colour: Colour,
        assumed: list[str],
        done: int,
        quiet: bool,
        progress: Progress,
    ) -> None:
        """Say what comes in and what was assumed about it, and from now on say things at once."""
        if not quiet:
            info = source.info
            meant: list[str] = [colour.matrix] if info.format.kind == "yuv" else []
            if info.format.kind != "rgb":
                meant += [f"{colour.range} range"] + (
                    [f"chroma {colour.siting}"] if info.format.shared != (0, 0) else []
                )
            larger = [f"becomes {made.width} x {made.height}"] if made.width != info.width else []
            said = "; ".join([str(info), *([", ".join(meant)] if meant else []), *larger])
            self.notes = [said, *assumed, *self.notes]
            if done:
                self.notes.append(f"resuming after {done} frames that are done")
            if source.live and self.deadline is None:
                self.notes.append(
                    "a live source without --deadline: what the model is too slow for is lost in the source"
                )
        for message in self.notes:
            progress.note(message)
        self.note = progress.note  # type: ignore[method-assign]

    def _frames(self, source: Source, done: int) -> Iterator[VideoFrame]:
        frames = islice(source.frames(), done, None)
        scale = self.restorer.manifest.network.scale
        try:
            for frame in in_real_time(frames, source.info.time_base) if self.realtime else frames:
                if scale != 1 and frame.interlaced:
                    raise ImageError(
                        f"{self.source_name} has become interlaced, which cannot be enlarged {scale} times; "
                        "start again with --deinterlace, which leaves whole frames as they are"
                    )
                yield frame
        except ImageError as error:
            self.failure = error

    def _write(self, stream: Stream[VideoFrame], source: Source, sink: Sink, progress: Progress) -> None:
        counters, reported, written = stream.counters, 0.0, 0
        with closing(iter(stream)) as passages:  # its threads end here, also when the sink fails
            for passage in passages:
                sink.write(passage.item)
                source.give_back(passage.item)
                written += 1
                if (now := time.monotonic()) - reported >= REPORT:
                    reported = now
                    progress.advance(written, **counters.to_dict())
                    written = 0
        progress.advance(written, **counters.to_dict())

    def _check(self, source: Source, counters: Counters, done: int) -> None:
        """Say what went wrong with the source, after all that it gave has been written."""
        if self.failure is not None:
            raise self.failure
        if not counters.frames and not done and not self.signal:
            raise ImageError(f"{self.source_name} has no frame")
        if damaged := getattr(source, "damaged", 0):
            raise ImageError(f"{self.source_name} is damaged in {damaged} places; the rest was restored")


@contextmanager
def _signals(run: Run, stream: Stream[VideoFrame]) -> Iterator[None]:
    """The first SIGINT or SIGTERM ends the stream properly, the second at once."""

    def stop(number: int, frame: object) -> None:
        run.signal = number
        stream.stop()
        for name in names:
            signal.signal(name, signal.default_int_handler)

    names = (signal.SIGINT, signal.SIGTERM)
    before = {name: signal.signal(name, stop) for name in names}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
