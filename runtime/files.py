"""Files and folders that appear whole or not at all, and hashes of files."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import secrets
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from echoir.runtime.errors import ImageError


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write a file so that it appears whole or not at all.

    The body writes to the yielded path, which lies beside the target and has its suffix. When the
    body ends, the bytes are forced to the disk and renamed over the target; when it raises, the
    target is untouched and nothing is left behind. What a killed process left in the folder goes too::

        with atomic_write("model.json") as temporary:
            temporary.write_text(text)

    Args:
        path: the target; its folder must exist. A link is followed.

    Raises:
        ImageError: the target cannot be written (full disk, missing or read-only folder, a folder
            or a device in its place); the message names it and the cause.
    """
    shown, target = Path(path), Path(os.path.realpath(path))
    if os.path.exists(target) and not os.path.isfile(target):  # unlike Path's, these never raise
        raise ImageError(f"cannot write {shown}: it is {'a folder' if os.path.isdir(target) else 'not a regular file'}")
    temporary = target.with_name(f".echoir-{secrets.token_hex(6)}{target.suffix}")
    held = -1
    try:
        with suppress(FileNotFoundError):
            os.lstat(target)  # a name that is too long is known before any work
        _clear(target.parent)
        # Created here, and exclusively, so that the mode follows the umask and no name is taken over. Its lock is held
        # to the end, and says to others that someone is still at work on it.
        held = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        _lock(held)
        yield temporary
        _sync(temporary)
        os.replace(temporary, target)
        _sync(target.parent)
    except OSError as error:
        raise ImageError(f"cannot write {shown}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if held >= 0:
            os.close(held)


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A temporary folder beside ``folder`` that takes its name when the body ends, and goes when it raises.

    What killed processes left of such folders goes too.

    Raises:
        ImageError: the folder cannot be written, or the disk is full.
    """
    with _beside(folder.absolute(), folder) as stage:
        yield stage
        _replace(stage, folder.absolute())


@contextmanager
def staged_into(folder: Path) -> Iterator[Path]:
    """A temporary folder in ``folder``, made if need be, whose files move there when the body ends, over any of those
    names; it goes when the body raises. A ``.json``, which names other files, moves last.

    Raises:
        ImageError: the folder cannot be written, or the disk is full.
    """
    with _beside(folder.absolute() / "new", folder) as stage:
        yield stage
        for path in sorted(stage.iterdir(), key=lambda path: (path.suffix == ".json", path.name)):
            os.replace(path, folder / path.name)


@contextmanager
def _beside(target: Path, named: Path) -> Iterator[Path]:
    """A temporary folder beside ``target`` for as long as the body takes; ``named`` is what messages name."""
    held = -1
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _clearing:
            _clear_stages(target)
            stage = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
            held = os.open(stage, os.O_RDONLY)  # its lock says to others that someone is still at work in there
            _lock(held)
    except OSError as error:
        raise ImageError(f"cannot write {named}: {error.strerror or error}") from error
    try:
        stage.chmod(0o777 & ~_umask())  # mkdtemp makes it private
        yield stage
    except OSError as error:
        raise ImageError(f"cannot write {named}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        os.close(held)


def _clear_stages(target: Path) -> None:
    """Remove the temporary folders of that name which killed processes left: nobody holds them."""
    name = re.compile(re.escape(f".{target.name}.") + "[a-z0-9_]{8}")
    with os.scandir(target.parent) as entries:
        left = [target.parent / entry.name for entry in entries if name.fullmatch(entry.name)]
    for path in left:
        with suppress(OSError):  # another's, or no folder
            held = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if _lock(held):
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(held)


def set_aside(stage: Path, folder: Path) -> Path:
    """Rename a finished folder whose gate failed, in place of an earlier such one."""
    kept = folder.with_name(folder.name + ".failed")
    _replace(stage, kept)
    return kept


def _replace(stage: Path, folder: Path) -> None:
    """Rename ``stage`` to ``folder``; what was there goes only once the new one is in place."""
    if not folder.exists():
        stage.rename(folder)
        return
    # Not the name of a stage: killed between the two, this is all that there is of the old one.
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.old-", dir=folder.parent) as leaving:
        old = folder.rename(Path(leaving) / folder.name)
        try:
            stage.rename(folder)
        except OSError:
            old.rename(folder)
            raise


def sha256_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes as 64 lowercase hex digits; any size, in constant memory."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def replace_bytes(path: Path, start: int, end: int, data: bytes) -> None:
    """Put ``data`` in place of the bytes from ``start`` to ``end`` - 1 of a file.

    What follows moves within the file, from its far end on, so that no second file is made.
    """
    shift = len(data) - (end - start)
    block = max(1 << 20, abs(shift))
    with open(path, "r+b") as file:
        size = file.seek(0, 2)
        starts = range(end, size, block)
        for place in reversed(starts) if shift > 0 else starts if shift < 0 else ():
            file.seek(place)
            moved = file.read(block)
            file.seek(place + shift)
            file.write(moved)
        file.seek(start)
        file.write(data)
        file.truncate(size + shift)


_LEFT = re.compile(r"\.echoir-[0-9a-f]{12}(\.[^.]*)?")
_cleared: set[Path] = set()
_clearing = threading.Lock()


def _clear(folder: Path) -> None:
    """Remove the temporary files that nobody holds, once a process and folder."""
    with _clearing:  # another thread's new file has no lock for a moment
        if folder in _cleared:
            return
        _cleared.add(folder)
        with os.scandir(folder) as entries:
            left = [folder / entry.name for entry in entries if _LEFT.fullmatch(entry.name)]
        _remove(left)


def _remove(left: list[Path]) -> None:
    for path in left:
        with suppress(OSError):  # another's, or gone
            held = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
            try:
                if _lock(held):
                    path.unlink()
            finally:
                os.close(held)


def _lock(descriptor: int) -> bool:
    """Whether the lock could be had; some network file systems have none."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)  # there is no way to read it without setting it
    os.umask(mask)
    return mask
