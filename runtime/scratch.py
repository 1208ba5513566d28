"""Memory that is used again: a tile needs the arrays that the tile before it needed."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


class Scratch:
    """Arrays by name, for one piece of work at a time."""

    def __init__(self) -> None:
        self._held: dict[str, Array] = {}

    def take(self, name: str, shape: tuple[int, ...], dtype: Any) -> Array:
        """The array of that name, [N, ...], with whatever it holds; a new one where the one before does not do."""
        held = self._held.get(name)
        if held is None or held.dtype != dtype or held.shape[1:] != shape[1:] or len(held) < shape[0]:
            held = self._held[name] = np.empty(shape, dtype)
        return held[: shape[0]]


class Shelf:
    """Scratch that waits for the next piece of work; any number of threads may borrow at the same time."""

    def __init__(self) -> None:
        self._idle: deque[Scratch] = deque()

    @contextmanager
    def borrowed(self) -> Iterator[Scratch]:
        try:
            scratch = self._idle.pop()  # atomic
        except IndexError:
            scratch = Scratch()
        try:
            yield scratch
        finally:
            self._idle.append(scratch)
