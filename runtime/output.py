"""What reaches a terminal, a pipe or a report: names made displayable, and streams that may be closed, full or left."""

from __future__ import annotations

import codecs
import errno
import io
import os
import sys
import unicodedata
from contextlib import suppress
from typing import Any, TextIO

_JOINERS = "\u200c\u200d"  # some scripts and emoji need them, and they move nothing


def displayable(text: object) -> str:
    r"""A name or a message as text that is safe to show and to encode.

    File names are bytes: what is not UTF-8 in them is shown as ``\xe9``, and what would move the cursor, split a
    line or reorder it, as ``\n``, ``\x1b`` or ``\u202e``.
    """
    text = str(text)
    return text if text.isascii() and text.isprintable() else "".join(map(_shown, text))


def displayable_lines(text: str) -> str:
    """Text of several lines, each made displayable."""
    return "\n".join(displayable(line) for line in text.split("\n"))


def _shown(character: str) -> str:
    if character.isprintable() or character in _JOINERS or unicodedata.category(character) == "Zs":
        return character
    if "\udc80" <= character <= "\udcff":  # a byte that is no UTF-8, as Python's "surrogateescape" keeps it
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape", "backslashreplace").decode("ascii")


class Output:
    """A text stream that lets the work go on when nothing more can be written to it.

    Attributes:
        error: why, from then on; None while all is well.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.error: OSError | None = None

    def write(self, text: str) -> int:
        """Write, or do nothing once that has failed."""
        self._try("write", text)
        return len(text)

    def flush(self) -> None:
        """Likewise."""
        self._try("flush")

    @property
    def lost(self) -> str:
        """Why what was written did not arrive; empty if it did, or if the reader left early, as ``head`` does."""
        self.flush()
        if self.error is None or self.error.errno == errno.EPIPE:
            return ""
        return self.error.strerror or str(self.error)

    def _try(self, method: str, *arguments: str) -> None:
        if self.error is not None:
            return
        try:
            getattr(self._stream, method)(*arguments)
        except OSError as error:
            self.error = error
            # What is left in buffers would fail again when Python ends.
            with suppress(OSError, ValueError):
                nothing = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nothing, self._stream.fileno())
                os.close(nothing)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def guard_streams() -> None:
    """Make standard output and error of a process safe to write to, for the whole of its life.

    A stream that the process was started without (``2>&-``) is opened on nothing: the next file opened would have its
    number, and get the messages of every library. A text that the stream's encoding lacks is written with escapes.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free: this one
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None:
            stream = open(number, "w", closefd=False)  # noqa: SIM115 - open to the end
        if isinstance(stream, io.TextIOWrapper):
            # click would go round a stream that knows ASCII alone.
            ascii_only = codecs.lookup(stream.encoding).name == "ascii"
            stream.reconfigure(encoding="utf-8" if ascii_only else None, errors="backslashreplace")
        setattr(sys, name, Output(stream))
