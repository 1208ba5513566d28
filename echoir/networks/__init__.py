"""The networks, one file each, and a table of them by name; torch loads on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from echoir.networks.table import NAMES, make_network

__all__ = ["NAMES", "make_network"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from echoir.networks import table

        return getattr(table, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
