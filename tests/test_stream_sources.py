"""Live sources that stall, vanish, come back, or come back as something else; pacing by time stamps."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from itertools import islice

import numpy as np
import pytest
from running import echoir

from echoir.runtime.artifact import Artifact
from echoir.runtime.errors import ImageError
from echoir.runtime.streams.endpoints import ReturningSource, fingerprint, in_real_time, is_pipeline
from echoir.runtime.streams.pipeline import Stream
from echoir.runtime.streams.pixels import FORMATS
from echoir.runtime.streams.videoframes import StreamInfo, Tags, VideoFrame, resolve_colour

INFO = StreamInfo(4, 2, FORMATS["gray"], rate=Fraction(100), time_base=Fraction(1, 1000))


class Camera:
    """Gives frames with rising stamps, then does what it is told."""

    live = True

    def __init__(self, frames: int, then: Callable[[], None], info: StreamInfo = INFO) -> None:
        self.info, self._frames, self._then = info, frames, then
        self.closed = False

    def frames(self) -> Iterator[VideoFrame]:
        for index in range(self._frames):
            yield VideoFrame([np.zeros((2, 4), np.uint8)], pts=index * 10)
        self._then()

    def give_back(self, frame: VideoFrame) -> None: ...

    def close(self) -> None:
        self.closed = True


def vanish() -> None:
    raise ImageError("no frame for 2 s")


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("echoir.runtime.streams.endpoints.time.sleep", lambda seconds: None)


def test_a_lost_source_comes_back_and_time_goes_on() -> None:
    cameras = [Camera(3, vanish), Camera(2, lambda: None), Camera(5, vanish)]
    first, rest, notes = cameras[0], iter(cameras[1:]), []
    source = ReturningSource(first, lambda: next(rest), 3, notes.append)
    stamps = [frame.pts for frame in islice(source.frames(), 10)]
    assert stamps == sorted(set(stamps)), "time stamps rise over every gap"
    assert stamps[:3] == [0, 10, 20]
    assert notes == [
        "source lost: no frame for 2 s",
        "source back after attempt 1",
        "source lost: the source has ended",
        "source back after attempt 1",
    ]
    assert first.closed
    assert source.losses == 2


def test_time_stamps_that_stand_still_are_made_to_rise() -> None:
    camera = Camera(6, vanish)
    camera.frames = lambda: (VideoFrame([], pts=pts) for pts in (0, 5, 5, 4, 20))  # type: ignore[method-assign]
    source = ReturningSource(camera, lambda: camera, 3, lambda note: None)
    assert [frame.pts for frame in islice(source.frames(), 5)] == [0, 5, 6, 7, 20]


def test_a_source_that_stays_away_is_reported_and_ends_the_stream() -> None:
    def refuse() -> Camera:
        raise ImageError("Connection refused")

    notes: list[str] = []
    source = ReturningSource(Camera(2, vanish), refuse, 3, notes.append)
    stream = Stream(source.frames(), lambda frame: frame, deadline=1)
    out: list[VideoFrame] = []

    def take() -> None:
        out.extend(passage.item for passage in stream)

    with pytest.raises(ImageError, match="did not come back in 3 attempts: no frame for 2 s"):
        take()
    assert stream.counters.frames == 2
    assert sum("still lost" in note for note in notes) == 3


def test_a_source_that_comes_back_as_another_is_refused() -> None:
    other = Camera(2, vanish, replace(INFO, width=8))
    source = ReturningSource(Camera(2, vanish), lambda: other, 3, lambda note: None)
    with pytest.raises(ImageError, match="came back as 8 x 2 gray and began as 4 x 2 gray"):
        list(source.frames())
    assert other.closed


def test_real_time_follows_the_time_stamps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    frames = (VideoFrame([], pts=1000 + pts) for pts in (0, 10, 60))
    start = time.monotonic()
    for frame, due in zip(in_real_time(frames, Fraction(1, 1000)), (0, 0.01, 0.06), strict=True):
        assert due <= time.monotonic() - start + 0.002
        assert frame.pts is not None


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a ! b", True), ("gst:filesink", True), ("wow!.mp4", False), ("-", False), ("rtsp://host/a", False)],
)
def test_what_is_a_pipeline(name: str, expected: bool) -> None:
    assert is_pipeline(name) == expected


def test_a_name_that_is_no_file_stands_for_itself() -> None:
    assert fingerprint("rtsp://host/a") == ["rtsp://host/a"]


@pytest.mark.parametrize(
    ("format", "height", "tags", "said", "assumed"),
    [
        ("yuv420p", 480, Tags(), ("bt601", "limited", "left"), 3),
        ("yuv420p", 1080, Tags(), ("bt709", "limited", "left"), 3),
        ("yuv444p", 1080, Tags(9, 9, 16, "limited"), ("bt2020", "limited", "left"), 0),
        ("nv12", 480, Tags(1, 1, 1, "full", "center"), ("bt709", "full", "center"), 0),
        ("gray", 480, Tags(), ("bt709", "full", "left"), 1),
        ("bgr24", 480, Tags(), ("bt709", "limited", "left"), 0),
    ],
)
def test_colours_are_what_the_stream_says_or_a_stated_assumption(
    format: str, height: int, tags: Tags, said: tuple[str, str, str], assumed: int
) -> None:
    colour, notes = resolve_colour(StreamInfo(64, height, FORMATS[format], tags=tags))
    assert (colour.matrix, colour.range, colour.siting) == said
    assert len(notes) == assumed
    told, silent = resolve_colour(
        StreamInfo(64, height, FORMATS[format], tags=tags), matrix="fcc", range="full", siting="topleft"
    )
    assert silent == []
    if FORMATS[format].kind == "yuv":
        assert (told.matrix, told.range, told.siting) == ("fcc", "full", "topleft")


def test_a_matrix_that_cannot_be_undone_is_refused_unless_overridden() -> None:
    info = StreamInfo(64, 64, FORMATS["yuv420p"], tags=Tags(matrix=14, range="limited", siting="left"))
    with pytest.raises(ImageError, match=r"code point 14 of H\.273"):
        resolve_colour(info)
    assert resolve_colour(info, matrix="bt2020")[0].matrix == "bt2020"


@pytest.mark.parametrize(
    ("missing", "source", "remedy"),
    [
        ("av", "clip.mp4", "pip install 'echoir[video]'"),
        ("gi", "videotestsrc ! video/x-raw", "pip install 'echoir[gstreamer]'"),
    ],
)
def test_a_library_that_is_missing_is_named_with_its_remedy(
    missing: str, source: str, remedy: str, identity: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    result = echoir("stream", source, "null", "-m", identity.model_path)
    assert result.code == 6
    assert remedy in result.err
    assert len(result.err.splitlines()) == 1
