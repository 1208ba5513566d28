"""Where, when, with what and on what something was measured. A figure without it cannot be repeated."""

from __future__ import annotations

import hashlib
import platform
import shlex
import sys
from collections.abc import Iterable
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from echoir import __version__
from echoir.runtime.contract import Described, Session
from echoir.runtime.files import sha256_file
from echoir.runtime.machine import UNKNOWN, describe_machine
from echoir.runtime.output import displayable


def provenance(session: Session) -> dict[str, Any]:
    """Of a measurement that ends now.

    ``session`` is what it says of itself: versions, provider, GPU, driver. ``command`` is the process's own.
    """
    machine = {name: value for name, value in asdict(describe_machine()).items() if value != UNKNOWN}
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": displayable(shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])),
        "host": displayable(platform.node()),
        "machine": machine,
        "session": session.facts() if isinstance(session, Described) else {},
        "versions": {"echoir": __version__, "numpy": np.__version__},
    }


def fingerprint(hashes: Iterable[str]) -> str:
    """The SHA-256 of several, in any order."""
    return hashlib.sha256("\n".join(sorted(hashes)).encode()).hexdigest()


def picture_hash(*paths: Path | None) -> str:
    """The SHA-256 of a picture's file, or of the two of a pair."""
    hashes = [sha256_file(path) for path in paths if path is not None]
    return hashes[0] if len(hashes) == 1 else fingerprint(hashes)
