"""The one walk of folders: which files below a folder are pictures."""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from echoir.runtime.picture import READABLE

# Pictures that nothing here reads: worth a word, where a text file is not.
UNREAD = {
    ".jfif", ".jpe", ".jif", ".gif", ".heic", ".heif", ".avif", ".jxl", ".jp2", ".j2k", ".jpx", ".ppm",
    ".pgm", ".pbm", ".pnm", ".tga", ".psd", ".exr", ".hdr", ".svg", ".ico", ".dng", ".cr2", ".cr3", ".nef", ".arw",
    ".raf", ".orf", ".rw2",
}  # fmt: skip


@dataclass
class Found:
    """What a walk came upon.

    Attributes:
        pictures: by name within each folder, a folder's own before those of its subfolders.
        unread: pictures of types that are not read.
        unreadable: folders that could not be listed.
    """

    pictures: list[Path] = field(default_factory=list)
    unread: set[Path] = field(default_factory=set)
    unreadable: list[OSError] = field(default_factory=list)


def find_pictures(folder: Path, *, without: Path | None = None) -> Found:
    """All pictures below a folder, by their suffixes (:data:`echoir.runtime.picture.READABLE`).

    Hidden files and folders are left out (``._a.png`` is what macOS leaves beside ``a.png``). Links are followed;
    a folder that can be reached in several ways is walked once, at its own place if that is below ``folder``.

    Args:
        folder: where to begin; may itself be a link, or hidden.
        without: a folder that is not entered, however it is spelt or reached.
    """
    found = Found()
    seen = set() if without is None else {_identity(without)} - {None}
    folders: deque[Path] = deque([folder])
    links: deque[Path] = deque()
    listed: dict[Path, list[str]] = {}
    while folders or links:
        here = folders.popleft() if folders else links.popleft()
        if (identity := _identity(here)) in seen and here != folder:
            continue
        seen.add(identity)
        try:
            with os.scandir(here) as entries:
                visible = [entry for entry in entries if not entry.name.startswith(".")]
        except OSError as error:
            found.unreadable.append(error)
            continue
        listed[here] = []
        for entry in visible:
            if _is_folder(entry):
                (links if entry.is_symlink() else folders).append(here / entry.name)
            elif (suffix := Path(entry.name).suffix.lower()) in READABLE:
                listed[here].append(entry.name)
            elif suffix in UNREAD:
                found.unread.add(here / entry.name)
    for here in sorted(listed):
        found.pictures += [here / name for name in sorted(listed[here])]
    found.unreadable.sort(key=lambda error: str(error.filename))
    return found


def name_unread(unread: Iterable[Path]) -> str:
    """``3 .heic, 1 .gif``, the most frequent first."""
    counts = Counter(path.suffix.lower() for path in unread)
    return ", ".join(f"{count} {suffix}" for suffix, count in sorted(counts.items(), key=lambda item: (-item[1], item)))


def is_within(path: str | os.PathLike[str], folders: Iterable[str]) -> bool:
    """Whether a path lies in or below one of some real paths, however it is spelt."""
    real = os.path.realpath(path)
    return any(real == folder or real.startswith(os.path.join(folder, "")) for folder in folders)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: reading it as a file will tell
        return False


def _identity(folder: Path) -> tuple[int, int] | None:
    """What tells a folder from all others, whatever path leads to it; None if it is not there."""
    try:
        status = os.stat(folder)
    except OSError:
        return None
    return status.st_dev, status.st_ino
