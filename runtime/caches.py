"""Files that can be made again and take long to make: below ``~/.cache/echoir``, each kind with a limit of its own."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path

from echoir.runtime.errors import ImageError
from echoir.runtime.files import atomic_write

_DIGEST = 32  # bytes of SHA-256 before the content


def cache_folder(kind: str) -> Path:
    """The folder of one kind of files; it need not be there."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "echoir", kind)


def recall(path: Path) -> bytes | None:
    """A file's content, or None where there is none or it is damaged; it counts as used now."""
    with suppress(OSError):
        with open(path, "rb") as file:
            digest, content = file.read(_DIGEST), file.read()
        os.utime(path)
        return content if hashlib.sha256(content).digest() == digest else None
    return None


def keep(path: Path, content: bytes, limit: int) -> bool:
    """Write a file, and remove those of its folder that were not used for the longest time, down to ``limit`` bytes.

    Returns:
        Whether it could be written: a read-only home only costs the time that the cache would have saved. A file
        above the limit is not.
    """
    if len(content) > limit:
        return False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            temporary.write_bytes(hashlib.sha256(content).digest() + content)
    except (OSError, ImageError):
        return False
    trim(path.parent, limit)
    return True


def trim(folder: Path, limit: int) -> None:
    """Remove what was not used for the longest time, down to ``limit`` bytes."""
    found = []
    with suppress(OSError):
        for path in folder.iterdir():
            with suppress(OSError):  # another process may have removed it
                state = path.lstat()
                if path.is_file():
                    found.append((state.st_mtime, state.st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= limit:
            break
        with suppress(OSError):
            path.unlink()
        total -= size
