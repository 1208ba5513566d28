"""What ships to the device: artifact, sessions, tiling, image I/O. Never imports torch.

Importing this package costs nothing: numpy and the rest load on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from echoir.runtime.artifact import Artifact
    from echoir.runtime.images import open_picture
    from echoir.runtime.restorer import Restorer
    from echoir.runtime.streams.images import Frame

__all__ = ["Artifact", "Frame", "Restorer", "open_picture"]

_HOMES = {
    "Artifact": "echoir.runtime.artifact",
    "Frame": "echoir.runtime.streams.images",
    "Restorer": "echoir.runtime.restorer",
    "open_picture": "echoir.runtime.images",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
