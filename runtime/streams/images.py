"""Images through :meth:`echoir.runtime.restorer.Restorer.stream`: copied in, and out in buffers that are used again."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Protocol, TypeGuard

import numpy as np

from echoir.runtime.inputs import check_array
from echoir.runtime.streams.pipeline import Counters, Policy, Stream

Array = np.ndarray[Any, np.dtype[Any]]


class Restore(Protocol):
    """Restores an image, as :class:`~echoir.runtime.restorer.Restorer` does."""

    def __call__(self, image: Array, *, out: Array | None = None) -> Array:
        """The image restored, in ``out`` where that is given."""


@dataclass
class Frame:
    """An image on its way through :meth:`Restorer.stream`.

    Args:
        image: as :meth:`Restorer.__call__` takes.
        time: of the capture, in whatever unit the caller uses; carried along.
        data: anything; carried along.
        index: its place among the frames that came in, from 0.
        restored: whether ``image`` is the model's.
        latency: seconds from coming in to going out.
    """

    image: Array
    time: float | None = None
    data: Any = None
    index: int = 0
    restored: bool = False
    latency: float = 0.0


def _timed(given: object) -> TypeGuard[tuple[Array, float]]:
    """Whether it is an image and its time."""
    return isinstance(given, tuple) and len(given) == 2 and np.ndim(given[1]) == 0


class ImageStream:
    """What :meth:`Restorer.stream` gives: iterate over it once; ``counters`` say what became of the frames.

    Frames are copied on the way in, and go out in buffers that are used again: ``image`` is the caller's
    until the next frame is taken. Nothing of an image's size is allocated once the queues have filled.
    """

    def __init__(
        self,
        restorer: Restore,
        frames: Iterable[Array | tuple[Array, float] | Frame],
        deadline: float | None,
        policy: Policy,
        depth: int | None,
    ) -> None:
        self._restorer, self._frames = restorer, frames
        self._spare: deque[Array] = deque()
        self._sizes: tuple[tuple[int, ...], ...] = ()  # of the last image restored, and of what came out
        self._stream: Stream[Frame] = Stream(
            self._copied(), self._restored, deadline=deadline, policy=policy, depth=depth, discard=self._give_back
        )

    @property
    def counters(self) -> Counters:
        """So far."""
        return self._stream.counters

    def stop(self) -> None:
        """Take no further frame from the source; those that are in come out."""
        self._stream.stop()

    def __iter__(self) -> Iterator[Frame]:
        with closing(iter(self._stream)) as passages:
            for passage in passages:
                frame = passage.item
                frame.index, frame.restored, frame.latency = passage.index, passage.restored, passage.latency
                yield frame
                self._give_back(frame)

    def _copied(self) -> Iterator[Frame]:
        for given in self._frames:
            frame = given if isinstance(given, Frame) else Frame(*given) if _timed(given) else Frame(check_array(given))
            image = check_array(frame.image)
            image = self._buffer(image.shape, image.dtype)
            np.copyto(image, frame.image)
            yield Frame(image, frame.time, frame.data)

    def _restored(self, frame: Frame) -> Frame:
        shape, dtype = frame.image.shape, frame.image.dtype
        known = self._sizes and self._sizes[0] == shape
        image = self._restorer(frame.image, out=self._buffer(self._sizes[1], dtype) if known else None)
        self._sizes = shape, image.shape
        self._give_back(frame)
        frame.image = image
        return frame

    def _buffer(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        for _ in range(len(self._spare)):
            try:
                spare = self._spare.popleft()
            except IndexError:  # another thread took the last
                break
            if (spare.shape, spare.dtype) == (shape, dtype):
                return spare
            if spare.shape in self._sizes:  # what comes out may be of another size
                self._spare.append(spare)
        return np.empty(shape, dtype)

    def _give_back(self, frame: Frame) -> None:
        self._spare.append(frame.image)
