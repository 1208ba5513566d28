"""Folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from echoir.runtime.errors import ImageError


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A temporary folder beside ``folder`` that takes its name when the body ends, and goes when it raises.

    Raises:
        ImageError: the folder cannot be written, or the disk is full.
    """
    try:
        folder = folder.absolute()
        folder.parent.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise ImageError(f"cannot write {folder}: {error.strerror or error}") from error
    try:
        stage.chmod(0o777 & ~_umask())  # mkdtemp makes it private
        yield stage
        _replace(stage, folder)
    except OSError as error:
        raise ImageError(f"cannot write {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)


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
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as leaving:
        old = folder.rename(Path(leaving) / folder.name)
        try:
            stage.rename(folder)
        except OSError:
            old.rename(folder)
            raise


def _umask() -> int:
    mask = os.umask(0)  # there is no way to read it without setting it
    os.umask(mask)
    return mask
