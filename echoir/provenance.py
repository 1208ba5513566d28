"""Where a run comes from: the versions and commits of its code, and the pictures it was given."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import echoir
from echoir.data import Picture


def picture_list(pictures: Sequence[Picture]) -> dict[str, Any]:
    """How many pictures, and a SHA-256 of their paths and sizes in bytes, in order.

    Paths are taken below the folder that all share, so a list that moves as a whole keeps its hash.
    """
    files = [os.path.abspath(path) for picture in pictures for path in (picture.clean, picture.degraded) if path]
    root = os.path.commonpath([os.path.dirname(path) for path in files]) if files else ""
    digest = hashlib.sha256()
    for path in files:
        line = f"{os.path.relpath(path, root)}\0{os.path.getsize(path)}\n"
        digest.update(line.encode(errors="surrogateescape"))
    return {"count": len(pictures), "sha256": digest.hexdigest()}


def code() -> dict[str, str | None]:
    """Versions of Python, torch and echoir; git's commits of echoir and of the working folder, where there are any.

    A commit ends in ``-dirty`` where tracked files differ from it.
    """
    import torch

    return {
        "python": sys.version.split()[0],
        "torch": str(torch.__version__),
        "echoir": echoir.__version__,
        "echoir_commit": _commit(Path(__file__)),
        "working_folder_commit": _commit(Path.cwd()),
    }


def _commit(path: Path) -> str | None:
    """Of the repository that tracks a file or a folder; None if none does."""
    folder = path if path.is_dir() else path.parent
    try:
        if not path.is_dir() and not _git(folder, "ls-files", path.name):
            return None  # such as an installed package below somebody's repository
        return _git(folder, "describe", "--always", "--dirty", "--abbrev=40", "--exclude", "*") or None
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20, check=True
    )
    return done.stdout.strip()
