"""The pipeline: frames in, frames out, in order, with a deadline or without.

Three threads: one reads the source, one restores, and the caller's own takes the frames. Between them lie
bounded queues. Without a deadline each waits for the next, and every frame is restored. With one, the
source is never kept waiting, and a policy says what becomes of frames that come too late; then a frame
leaves at most the deadline and one inference after it came, however slow the model is.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar, get_args

from echoir.runtime.errors import RejectedOutputError

Policy = Literal["pass", "drop", "slow"]
T = TypeVar("T")

GRACE = 1.0  # seconds that a source gets to end by itself
DEPTH = 4  # frames between two threads without a deadline
LIVE_DEPTH = 64  # ... and waiting for the model with one: two seconds of 30 frames


class Latencies:
    """Percentiles of any number of times in constant memory: a histogram with bins of one percent."""

    _LOW, _STEP, _BINS = 1e-5, 0.01, 2000  # 10 us to 4800 s

    def __init__(self) -> None:
        self._counts = [0] * self._BINS
        self.count, self.worst = 0, 0.0

    def add(self, seconds: float) -> None:
        """One more."""
        position = math.log(max(seconds, self._LOW) / self._LOW) / self._STEP
        self._counts[min(int(position), self._BINS - 1)] += 1
        self.count += 1
        self.worst = max(self.worst, seconds)

    def percentile(self, percent: float) -> float:
        """Seconds, within one percent and never too low by more; 0 when there are none."""
        needed, seen = self.count * percent / 100, 0
        for index, count in enumerate(self._counts):
            seen += count
            if count and seen >= needed:
                return min(self._LOW * math.exp((index + 1) * self._STEP), self.worst)
        return 0.0


@dataclass
class Counters:
    """What became of the frames: ``frames == restored + passed + dropped`` once the stream has ended.

    Args:
        frames: that came in.
        restored: that the model restored.
        passed: that went through unrestored.
        dropped: that went nowhere.
        late: of those that came out, later than the deadline after they came in.
        rejected: whose restored pixels were refused (NaN, constant); they are passed or dropped as well.
        latency: from coming in to going out.
    """

    frames: int = 0
    restored: int = 0
    passed: int = 0
    dropped: int = 0
    late: int = 0
    rejected: int = 0
    latency: Latencies = field(default_factory=Latencies)

    @property
    def out(self) -> int:
        """Frames that came out."""
        return self.restored + self.passed

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; latencies in milliseconds."""
        names = ("frames", "restored", "passed", "dropped", "late", "rejected")
        p50, p99 = (round(self.latency.percentile(percent) * 1e3, 2) for percent in (50, 99))
        return {name: getattr(self, name) for name in names} | {"p50_ms": p50, "p99_ms": p99}

    def __str__(self) -> str:
        values = self.to_dict()
        counts = ", ".join(f"{name} {values[name]}" for name in list(values)[:-2] if values[name] or name != "rejected")
        return f"{counts}; latency p50 {values['p50_ms']:.1f} ms, p99 {values['p99_ms']:.1f} ms"


@dataclass
class Passage(Generic[T]):
    """A frame on its way.

    Args:
        item: the frame.
        index: its place among the frames that came in, from 0.
        arrived: when it came in, by the stream's clock.
        restored: whether the model restored it.
        latency: seconds from coming in to going out.
    """

    item: T
    index: int
    arrived: float
    restored: bool = False
    latency: float = 0.0


class Stream(Generic[T]):
    """Frames through a function on a thread of its own, in order; iterate over it once.

    Args:
        frames: the source; read on another thread.
        restore: gives the frame that goes out; called on a third thread, one frame at a time.
        deadline: seconds from coming in to going out, or None: every frame is waited for and restored.
        policy: with a deadline, what becomes of a frame that has waited for longer when its turn comes:
            ``"pass"``: it goes out unrestored; ``"drop"``: it does not go out. ``"slow"``: whenever the model is
            free the newest frame is restored and those before it are dropped: a lower, steady rate.
        depth: frames that may wait for the model. With a deadline, the oldest is dropped when one more comes.
        discard: told of every frame that is dropped, on any thread.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        frames: Iterable[T],
        restore: Callable[[T], T],
        *,
        deadline: float | None = None,
        policy: Policy = "pass",
        depth: int | None = None,
        discard: Callable[[T], None] = lambda item: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if deadline is not None and deadline <= 0:
            raise ValueError(f"a deadline is more than 0 seconds, got {deadline}")
        if policy not in get_args(Policy):
            raise ValueError(f"a policy is one of {', '.join(get_args(Policy))}, got {policy!r}")
        self.counters = Counters()
        self._frames, self._restore = frames, restore
        self._deadline, self._policy, self._clock, self._discard = deadline, policy, clock, discard
        self._waiting: _Queue[Passage[T]] = _Queue(depth or (DEPTH if deadline is None else LIVE_DEPTH))
        self._finished: _Queue[Passage[T]] = _Queue(DEPTH if deadline is None else 1)
        self._lock = threading.Lock()
        self._reader = threading.Thread(target=self._read, daemon=True)

    def __iter__(self) -> Generator[Passage[T], None, None]:
        """The frames that go out, each with what became of it.

        Raises:
            Exception: what the source or ``restore`` raised, after the frames before it.
        """
        worker = threading.Thread(target=self._work, daemon=True)
        for thread in (self._reader, worker):
            thread.start()
        try:
            while (passage := self._finished.get()) is not None:
                passage.latency = self._clock() - passage.arrived
                with self._lock:
                    self.counters.latency.add(passage.latency)
                    if passage.restored:
                        self.counters.restored += 1
                    else:
                        self.counters.passed += 1
                    if self._deadline is not None and passage.latency > self._deadline:
                        self.counters.late += 1
                yield passage
        finally:
            for left in (*self._waiting.clear(), *self._finished.clear()):
                self._discard(left.item)
            worker.join()  # it ends with its frame, before the session that it uses is closed
            self._reader.join(GRACE)

    @property
    def reading(self) -> bool:
        """Whether the source is still being read; after the end, that it is stuck: then it must not be closed."""
        return self._reader.is_alive()

    def stop(self) -> None:
        """Read no further frame; those that are in come out. For signal handlers, and for any thread."""
        self._waiting.close()

    def _read(self) -> None:
        error: BaseException | None = None
        try:
            for index, item in enumerate(self._frames):
                passage = Passage(item, index, self._clock())
                if not self._waiting.put(passage, self._drop if self._deadline is not None else None):
                    self._discard(item)
                    break
                with self._lock:
                    self.counters.frames += 1
        except BaseException as caught:  # whatever it is, it belongs to who takes the frames
            error = caught
        self._waiting.close(error)

    def _drop(self, passage: Passage[T]) -> None:
        with self._lock:
            self.counters.dropped += 1
        self._discard(passage.item)

    def _work(self) -> None:
        error: BaseException | None = None
        try:
            while (passage := self._waiting.get()) is not None:
                if self._deadline is not None and self._policy == "slow":
                    while (newer := self._waiting.get(wait=False)) is not None:
                        self._drop(passage)
                        passage = newer
                elif self._deadline is not None and self._clock() - passage.arrived > self._deadline:
                    self._let_go(passage)
                    continue
                try:
                    passage.item = self._restore(passage.item)
                except RejectedOutputError:
                    if self._deadline is None:
                        raise
                    with self._lock:
                        self.counters.rejected += 1
                    self._let_go(passage)
                    continue
                passage.restored = True
                self._hand_over(passage)
        except BaseException as caught:
            error = caught
        self._waiting.close()
        self._finished.close(error)

    def _let_go(self, passage: Passage[T]) -> None:
        if self._policy == "pass":
            self._hand_over(passage)
        else:
            self._drop(passage)

    def _hand_over(self, passage: Passage[T]) -> None:
        if not self._finished.put(passage):  # nobody takes frames any more
            self._discard(passage.item)


class _Queue(Generic[T]):
    """A bounded queue between two threads that either side may close."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._items: deque[T] = deque()
        self._changed = threading.Condition()  # re-entrant: clear() closes
        self._closed = False
        self._error: BaseException | None = None

    def put(self, item: T, make_room: Callable[[T], None] | None = None) -> bool:
        """Wait for room, or make it by taking out the oldest; False: the queue is closed."""
        with self._changed:
            while len(self._items) >= self._size and not self._closed:
                if make_room is not None:
                    make_room(self._items.popleft())
                else:
                    self._changed.wait()
            if self._closed:
                return False
            self._items.append(item)
            self._changed.notify_all()
            return True

    def get(self, wait: bool = True) -> T | None:
        """The oldest; None at the end (or, without waiting, when there is none now); raises what it was closed with."""
        with self._changed:
            while wait and not self._items and not self._closed:
                self._changed.wait()
            if self._items:
                self._changed.notify_all()
                return self._items.popleft()
            if wait and self._error is not None:
                raise self._error
            return None

    def clear(self) -> list[T]:
        """Close it and take out all that is in."""
        with self._changed:
            self.close()
            left = list(self._items)
            self._items.clear()
            return left

    def close(self, error: BaseException | None = None) -> None:
        """Nothing more goes in; what is in comes out."""
        with self._changed:
            if not self._closed:
                self._closed, self._error = True, error
                self._changed.notify_all()
