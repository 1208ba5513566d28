"""SIGINT and SIGTERM as a wish that a loop grants between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Wish:
    """``signal``: the number of the one that came, or 0."""

    signal: int = 0

    def grant(self, number: int) -> None:
        """End the process as the signal would have, now that nothing is lost.

        Raises:
            KeyboardInterrupt: for SIGINT.
            SystemExit: for any other, with the exit code that shells give it (143 for SIGTERM).
        """
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)


@contextmanager
def deferred() -> Iterator[Wish]:
    """Within, the first SIGINT or SIGTERM is only noted; the second ends the process at once.

    Outside the main thread nothing changes, since Python allows no handlers there.
    """
    wish = Wish()
    if threading.current_thread() is not threading.main_thread():
        yield wish
        return
    names = (signal.SIGINT, signal.SIGTERM)

    def note(number: int, frame: object) -> None:
        wish.signal = number
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    before = {name: signal.signal(name, note) for name in names}
    try:
        yield wish
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
