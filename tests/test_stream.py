"""The pipeline: order, deadlines and policies, counters, and what is left when something ends early."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from echoir.runtime.artifact import Artifact
from echoir.runtime.errors import ImageError, RejectedOutputError
from echoir.runtime.restorer import Restorer
from echoir.runtime.streams.images import Frame
from echoir.runtime.streams.pipeline import Latencies, Policy, Stream

Array = np.ndarray[Any, np.dtype[Any]]


def paced(count: int, interval: float) -> Iterator[int]:
    """Numbers at a camera's pace."""
    start = time.monotonic()
    for number in range(count):
        time.sleep(max(0.0, start + number * interval - time.monotonic()))
        yield number


def slow(seconds: float) -> Any:
    """A model that takes its time and marks what it restored by its negative."""

    def restore(number: int) -> int:
        time.sleep(seconds)
        return -number

    return restore


def take(stream: Stream[int], into: list[int]) -> None:
    """Frames into a list, which keeps them when the stream ends with an error."""
    for passage in stream:
        into.append(passage.item)


def test_without_a_deadline_every_frame_is_restored_in_order() -> None:
    stream = Stream(range(1, 200), slow(0))
    assert [passage.item for passage in stream] == [-n for n in range(1, 200)]
    counters = stream.counters.to_dict()
    assert counters["frames"] == counters["restored"] == 199
    assert counters["passed"] == counters["dropped"] == counters["late"] == 0


def test_the_source_is_never_more_than_the_queues_ahead() -> None:
    read = []

    def source() -> Iterator[int]:
        for number in range(1000):
            read.append(number)
            yield number

    stream = iter(Stream(source(), lambda n: n, depth=3))
    next(stream)
    time.sleep(0.05)
    assert len(read) <= 1 + 3 + 4 + 3  # taken, waiting, finished, and one in each thread's hands
    stream.close()


@pytest.mark.parametrize("policy", ["pass", "drop", "slow"])
def test_a_slow_model_keeps_the_latency_bounded_and_every_frame_accounted_for(policy: Policy) -> None:
    deadline, inference, interval, count = 0.03, 0.08, 0.01, 120
    stream = Stream(paced(count, interval), slow(inference), deadline=deadline, policy=policy)
    passages = list(stream)
    counters = stream.counters
    assert counters.frames == count == counters.restored + counters.passed + counters.dropped
    assert counters.out == len(passages)
    assert [p.index for p in passages] == sorted({p.index for p in passages}), "in order, none twice"
    assert counters.latency.percentile(99) <= deadline + inference + 0.05  # and what a busy machine adds
    assert counters.restored >= 5
    if policy == "pass":
        assert counters.passed > count / 2
        assert counters.dropped == 0
    else:
        assert counters.dropped > count / 2
        assert counters.passed == 0
    for passage in passages:
        assert passage.item == (-passage.index if passage.restored else passage.index)
    late = sum(passage.latency > deadline for passage in passages)
    assert counters.late == late > 0


def test_a_model_that_keeps_up_loses_nothing() -> None:
    stream = Stream(paced(60, 0.01), slow(0.001), deadline=0.5, policy="drop")
    assert len(list(stream)) == 60
    assert (stream.counters.dropped, stream.counters.late) == (0, 0)


def test_slow_restores_the_newest() -> None:
    """While the model is busy with frame 0, frames up to 9 come: 9 is next."""
    started, filled = threading.Event(), threading.Event()

    def source() -> Iterator[int]:
        yield 0
        started.wait(5)
        yield from range(1, 10)
        filled.set()

    def restore(number: int) -> int:
        started.set()
        filled.wait(5)
        return number

    stream = Stream(source(), restore, deadline=10, policy="slow")
    assert [passage.item for passage in stream] == [0, 9]
    assert stream.counters.dropped == 8


def test_a_full_queue_drops_its_oldest() -> None:
    begun, filled = threading.Event(), threading.Event()

    def source() -> Iterator[int]:
        yield 0
        begun.wait(5)
        yield from range(1, 10)
        filled.set()

    def restore(number: int) -> int:
        begun.set()
        filled.wait(5)
        return number

    dropped: list[int] = []
    stream = Stream(source(), restore, deadline=10, policy="pass", depth=3, discard=dropped.append)
    assert [passage.item for passage in stream] == [0, 7, 8, 9]
    assert dropped == [1, 2, 3, 4, 5, 6]


def test_what_the_source_raises_comes_after_the_frames_before_it() -> None:
    def source() -> Iterator[int]:
        yield from (1, 2, 3)
        raise ImageError("the camera is gone")

    out: list[int] = []
    with pytest.raises(ImageError, match="the camera is gone"):
        take(Stream(source(), slow(0.001)), out)
    assert out == [-1, -2, -3]


def test_what_the_model_raises_ends_the_stream_and_frees_a_waiting_source() -> None:
    def restore(number: int) -> int:
        if number == 2:
            raise ImageError("no")
        return number

    before = threading.active_count()
    out: list[int] = []
    with pytest.raises(ImageError, match="no"):
        take(Stream(iter(range(10_000)), restore), out)
    assert out == [0, 1]
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before


def test_refused_pixels_end_a_file_but_not_a_live_stream() -> None:
    def restore(number: int) -> int:
        if number % 2:
            raise RejectedOutputError("NaN")
        return -number

    with pytest.raises(RejectedOutputError):
        list(Stream(range(4), restore))
    stream = Stream(range(4), restore, deadline=10)
    assert [passage.item for passage in stream] == [0, 1, -2, 3]
    assert (stream.counters.rejected, stream.counters.passed, stream.counters.restored) == (2, 2, 2)


def test_stop_lets_out_what_is_in() -> None:
    """Also while the source is stuck: a stalled camera must not keep a recording from being finished."""
    stuck = threading.Event()

    def source() -> Iterator[int]:
        yield from (1, 2, 3)
        stuck.wait(10)

    stream = Stream(source(), slow(0.01))
    out = []
    for passage in stream:
        out.append(passage.item)
        if len(out) == 1:
            stream.stop()
    assert out[0] == -1
    assert len(out) == stream.counters.frames
    stuck.set()


def test_a_consumer_that_leaves_ends_the_threads() -> None:
    before = threading.active_count()
    for _ in Stream(iter(int, 1), slow(0)):
        break
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before


@given(st.lists(st.floats(1e-4, 1e3), min_size=1, max_size=300), st.sampled_from([1, 50, 90, 99, 100]))
def test_percentiles_are_those_of_the_times_within_a_percent(times: list[float], percent: float) -> None:
    latencies = Latencies()
    for seconds in times:
        latencies.add(seconds)
    exact = float(np.percentile(times, percent, method="inverted_cdf"))
    assert exact / 1.0101 <= latencies.percentile(percent) <= exact * 1.0101
    assert latencies.worst == max(times)


def test_images_come_back_with_their_times_and_data(gain: Artifact) -> None:
    images = [np.full((70, 90, 3), 10 * i, np.uint8) for i in range(12)]
    images[0][0, 0] = images[3][0, 0] = 9
    with Restorer.open(gain.model_path) as restorer:
        stream = restorer.stream(Frame(image, time=i / 30, data=f"frame {i}") for i, image in enumerate(images))
        for i, frame in enumerate(stream):
            assert (frame.index, frame.time, frame.data, frame.restored) == (i, i / 30, f"frame {i}", True)
            np.testing.assert_array_equal(frame.image, restorer(images[i]))
            assert frame.latency > 0
        assert i == 11
        assert stream.counters.restored == 12


def test_a_capture_may_fill_one_array_again_and_again(identity: Artifact, rng: np.random.Generator) -> None:
    images = rng.integers(0, 256, (9, 40, 50), np.uint8)

    def capture() -> Iterator[Array]:
        array = np.empty((40, 50), np.uint8)
        for image in images:
            array[:] = image
            yield array

    with Restorer.open(identity.model_path) as restorer:
        for frame, image in zip(restorer.stream(capture()), images, strict=True):
            np.testing.assert_array_equal(frame.image, image)


def test_images_use_few_buffers(identity: Artifact) -> None:
    with Restorer.open(identity.model_path) as restorer:
        seen = {frame.image.ctypes.data for frame in restorer.stream(np.zeros((100, 64, 64, 3), np.uint8), depth=2)}
    assert len(seen) <= 14  # what two queues and three threads hold


def test_frames_of_changing_size_are_each_restored(identity: Artifact) -> None:
    sizes = [(20, 30), (64, 64), (20, 30), (1, 1)]
    with Restorer.open(identity.model_path) as restorer:
        shapes = [frame.image.shape for frame in restorer.stream(np.ones((*size, 3), np.uint8) for size in sizes)]
    assert shapes == [(*size, 3) for size in sizes]


def test_a_deadline_must_be_positive(identity: Artifact) -> None:
    with Restorer.open(identity.model_path) as restorer, pytest.raises(ValueError, match="more than 0"):
        restorer.stream([], deadline=0)


def test_restoring_into_an_array_of_another_kind_is_refused(identity: Artifact) -> None:
    with Restorer.open(identity.model_path) as restorer:
        image = np.ones((5, 6, 3), np.uint8)
        out = np.zeros_like(image)
        assert restorer(image, out=out) is out
        np.testing.assert_array_equal(out, image)
        with pytest.raises(ImageError, match="out must be uint8"):
            restorer(image, out=np.zeros((5, 6, 3), np.float32))


def test_a_policy_that_there_is_not_is_refused() -> None:
    with pytest.raises(ValueError, match="a policy is one of pass, drop, slow, got 'bogus'"):
        Stream([], lambda item: item, deadline=1, policy="bogus")  # type: ignore[arg-type]
