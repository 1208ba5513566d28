"""Progress of long work: a bar with an ETA on a terminal, plain or JSON lines elsewhere.

Everything goes to standard error, so that standard output keeps a command's result alone.
"""

from __future__ import annotations

import io
import json
import os
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from echoir.runtime.output import displayable

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

PLAIN_INTERVAL = 10.0  # seconds between plain lines: readable in a CI log
JSON_INTERVAL = 1.0  # seconds between JSON lines: another program reads them


class Progress:
    """Reports how far a piece of work is; a context manager.

    A bar when standard error is a terminal; otherwise at most one line per interval, and one at
    the end. JSON lines are objects with the keys ``event`` (``"start"``, ``"progress"``, ``"note"``,
    ``"end"`` or ``"aborted"``), ``task``, ``done``, ``total``, ``unit``, ``elapsed_s``, ``eta_s`` (null
    when unknown), ``message`` (null but for a note) and ``fields`` (what the command adds, such as a loss).

    Args:
        task: what is being done, e.g. ``"restore"``.
        total: units of work in all, or None when unknown.
        unit: the plural name of a unit, e.g. ``"tiles"``.
        done: units finished before this run; they do not count in the ETA.
        log_json: write JSON lines, terminal or not.
        quiet: write nothing but notes.
        stream: where to write; standard error by default.
        clock: seconds, monotonic; tests pass their own.
    """

    def __init__(
        self,
        task: str,
        total: int | None,
        unit: str = "steps",
        *,
        done: int = 0,
        log_json: bool = False,
        quiet: bool = False,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.task, self.total, self.unit, self.done = task, total, unit, done
        self.fields: dict[str, Any] = {}
        self._first = done
        # Standard error is None where a program has none.
        self._stream = stream or sys.stderr or io.StringIO()
        self._clock = clock
        self._log_json, self._quiet = log_json, quiet
        self._interval = JSON_INTERVAL if log_json else PLAIN_INTERVAL
        self._start = self._last = clock()
        self._bar: tuple[RichProgress, TaskID] | None = None

    def __enter__(self) -> Progress:
        self._start = self._last = self._clock()
        terminal = self._stream.isatty() and os.environ.get("TERM") != "dumb"
        if self._log_json:
            self._write_json("start")
        elif terminal and not self._quiet:
            self._bar = self._open_bar()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar[0].stop()
        elif self._log_json:
            self._write_json("end" if kind is None else "aborted")
        elif kind is None:
            self._write_plain()

    def advance(self, n: int = 1, **fields: Any) -> None:
        """``n`` more units are done; ``fields`` are shown beside them until replaced."""
        self.done += n
        self.fields.update(fields)
        if self._bar is not None:
            bar, task = self._bar
            bar.update(task, completed=self.done, details=self._details())
        elif (now := self._clock()) - self._last >= self._interval:
            self._last = now
            if self._log_json:
                self._write_json("progress")
            else:
                self._write_plain()

    def begin(self, message: str) -> None:
        """What the first part of the work is, where it takes a while to its first step; nothing when quiet."""
        if not self._quiet:
            self.note(message)

    def note(self, message: str, **fields: Any) -> None:
        """A line of its own, at once and even when quiet: a warning, or a failure that does not end the work.

        ``fields`` belong to this note alone and appear in JSON lines only.
        """
        if self._log_json:
            self._write_json("note", message, fields)
        elif self._bar is not None:
            self._bar[0].console.print(displayable(message), markup=False, highlight=False, soft_wrap=True)
        else:
            self._stream.write(displayable(message) + "\n")
            self._stream.flush()

    @property
    def elapsed(self) -> float:
        """Seconds since the work began."""
        return self._clock() - self._start

    @property
    def eta(self) -> float | None:
        """Seconds left at the mean rate so far, or None when there is none to tell from."""
        if self.total is None or self.done <= self._first:
            return None
        return self.elapsed / (self.done - self._first) * max(self.total - self.done, 0)

    def _open_bar(self) -> tuple[RichProgress, TaskID]:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(self.unit, markup=False),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[details]}", markup=False),
            console=Console(file=self._stream),
            # Standard output may be a pipe with the result in it: leave it alone.
            redirect_stdout=False,
            redirect_stderr=False,
        )
        task = bar.add_task(self.task, total=self.total, completed=self.done, details="")
        bar.start()
        return bar, task

    def _details(self) -> str:
        return displayable("  ".join(f"{name} {_short(value)}" for name, value in self.fields.items()))

    def _write_plain(self) -> None:
        if self._quiet or self.total == 0:
            return
        count = f"{self.done}" if self.total is None else f"{self.done}/{self.total}"
        parts = [f"{self.task}: {count} {self.unit}", f"{duration(self.elapsed)} elapsed"]
        if self.eta:
            parts.append(f"{duration(self.eta)} left")
        if self.fields:
            parts.append(self._details())
        self._stream.write(", ".join(parts) + "\n")
        self._stream.flush()

    def _write_json(self, event: str, message: str | None = None, fields: dict[str, Any] | None = None) -> None:
        if self._quiet and event != "note":
            return
        record = {
            "event": event,
            "task": self.task,
            "done": self.done,
            "total": self.total,
            "unit": self.unit,
            "elapsed_s": round(self.elapsed, 3),
            "eta_s": None if self.eta is None else round(self.eta, 3),
            "message": message if message is None else _encodable(message),
            "fields": {name: _encodable(value) for name, value in (self.fields if fields is None else fields).items()},
        }
        self._stream.write(json.dumps(record, default=str) + "\n")
        self._stream.flush()


def duration(seconds: float) -> str:
    """``4.2 s``, ``3:07`` or ``1:02:03``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _encodable(value: Any) -> Any:
    """A name that is no UTF-8 as others can read it: JSON may hold any character, but not half of one."""
    if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
        return displayable(value)
    return value
