"""echoir: train EchoIR, export it, restore images on the edge, and prove the engine is faithful.

Importing this package costs nothing: the network and torch load on first use.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from echoir.networks.echoir import EchoIR, EchoIRConfig
    from echoir.networks.upsampler import echo_upsample

__version__ = "0.1.0"
__all__ = ["EchoIR", "EchoIRConfig", "__version__", "echo_upsample"]

_HOMES = {
    "EchoIR": "echoir.networks.echoir",
    "EchoIRConfig": "echoir.networks.echoir",
    "echo_upsample": "echoir.networks.upsampler",
}

# In a clone the subpackages lie beside this folder; pyproject.toml maps them into it when they are installed.
if not os.path.isdir(os.path.join(__path__[0], "runtime")):
    __path__.append(os.path.dirname(__path__[0]))


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
