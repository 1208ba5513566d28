"""How much of a network's change to a picture is applied."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np

from echoir.runtime.contract import Array
from echoir.runtime.descriptor import Descriptor
from echoir.runtime.errors import ArtifactError


def check_strength(strength: float, network: Descriptor) -> None:
    """Refuse a strength that is none, or that a network cannot have.

    Raises:
        ArtifactError: outside [0, 1]; or less than 1 where the output is no picture of the input's size and planes.
    """
    if not 0 <= strength <= 1:
        raise ArtifactError("strength", strength, "a number from 0 to 1")
    if strength == 1:
        return
    if network.scale != 1:
        hint = f"{network.name} enlarges {network.scale} times, so there is nothing to mix its output with"
        raise ArtifactError("strength", strength, "1", hint)
    if network.input != network.output:
        hint = f"{network.name} makes {network.output} of {network.input}, so there is nothing to mix its output with"
        raise ArtifactError("strength", strength, "1", hint)


class Mixture:
    """Input + strength * (restored - input), row by row: 0 gives the input to the bit, 1 what was restored.

    Args:
        read_rows: as of :meth:`echoir.runtime.restorer.Restorer.strips`; :meth:`read` takes its place.
        strength: from 0 to 1.
    """

    def __init__(self, read_rows: Callable[[int, int], Array], strength: float) -> None:
        self._read_rows, self._strength = read_rows, np.float32(strength)
        self._given: deque[tuple[int, Array]] = deque()  # first row, and rows; those that are not used up
        self._done = 0

    def read(self, y0: int, y1: int) -> Array:
        """The rows, which are remembered until they are mixed."""
        rows = self._read_rows(y0, y1)
        self._given.append((y0, rows))
        return rows

    def __call__(self, restored: Array) -> Array:
        """The next rows [n, W, ...] from top to bottom, of the input's type; integers are rounded."""
        mixed = np.empty_like(restored)
        for row in range(len(restored)):
            while self._done >= self._given[0][0] + len(self._given[0][1]):
                self._given.popleft()
            first, rows = self._given[0]
            given = rows[self._done - first].astype(np.float32)
            change = given + self._strength * (restored[row] - given)
            mixed[row] = change if mixed.dtype == np.float32 else np.rint(change)
            self._done += 1
        return mixed
