"""Jobs that overlap but for one part, which they do one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from threading import Condition
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from typing_extensions import Self

T = TypeVar("T")


class StoppedError(Exception):
    """The jobs were told to stop."""


class Turns:
    """Whose turn it is: the jobs' numbers from 0 up.

    Args:
        forgiven: what a job may raise without stopping the others.
    """

    def __init__(self, *forgiven: type[BaseException]) -> None:
        self.forgiven = forgiven
        self._changed = Condition()
        self._now = self._over = 0
        self.stopped = False

    def wait(self, number: int) -> None:
        """Until it is the turn of a job, or its turn is over.

        Raises:
            StoppedError: it never will be.
        """
        with self._changed:
            self._changed.wait_for(lambda: self.stopped or self._now >= number)
            if self.stopped:
                raise StoppedError

    def wait_for_those_before(self, number: int) -> None:
        """Until every job before one is over.

        Raises:
            StoppedError: they never will be.
        """
        with self._changed:
            self._changed.wait_for(lambda: self.stopped or self._over >= number)
            if self.stopped:
                raise StoppedError

    def leave(self, number: int) -> None:
        """A job is over, and those before it were."""
        with self._changed:
            self._over = number + 1
            self._changed.notify_all()

    def holds(self, number: int) -> bool:
        """Whether it is the turn of a job now."""
        return self._now == number

    def end(self) -> None:
        """Let the next one have its turn; called by the one whose turn it is."""
        with self._changed:
            self._now += 1
            self._changed.notify_all()

    def stop(self) -> None:
        """Nobody gets another turn; whoever has one stops soon."""
        with self._changed:
            self.stopped = True
            self._changed.notify_all()


class Turn:
    """One job's; a context manager around all of the job, which ends its turn whatever happens.

    What comes behind the turn is done by one job at a time too: two at work on their outputs could fill a disk that
    has room for one.

    Args:
        turns: shared by the jobs.
        number: of the job.
        alone: all of the job belongs to its turn.
        tell: how much of the part is done, and None when it is over; only called during the turn.
    """

    def __init__(self, turns: Turns, number: int, alone: bool, tell: Callable[[int | None], None]) -> None:
        self._turns, self._number, self._alone, self.tell = turns, number, alone, tell

    def take(self, parts: Iterator[T]) -> Iterator[T]:
        """Wait for the turn, and go through what is only done then; ends when the jobs before are over."""
        self._turns.wait(self._number)
        self.tell(0)
        for part in parts:
            if self._turns.stopped:
                raise StoppedError
            yield part
        if not self._alone:
            self._end()
        self._turns.wait_for_those_before(self._number)

    def __enter__(self) -> Self:
        if self._alone:
            self._turns.wait(self._number)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and not issubclass(kind, self._turns.forgiven):
            self._turns.stop()
            return
        with suppress(StoppedError):
            self._turns.wait(self._number)
            self._end()
            self._turns.wait_for_those_before(self._number)
            self._turns.leave(self._number)

    def _end(self) -> None:
        """Tell before the next one can."""
        if self._turns.holds(self._number):
            self.tell(None)
            self._turns.end()
