"""EchoUpsample's plugin, in the form that a version of TensorRT takes."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def register(trt: Any, capability: str, embedded: bool) -> None:
    """Register the plugin with TensorRT, for engines of one compute capability.

    Args:
        trt: the library.
        capability: such as ``"8.7"``.
        embedded: as a kernel that lies in the engine (10.9 and later); else as a class, which an engine needs
            beside it.

    Raises:
        ImportError, EchoIRError: it cannot be made here.
    """
    if embedded:
        import_module("echoir.export.echo.plugin").aim(capability)
    else:
        code = import_module("echoir.export.echo.plugin_code").for_class(capability)
        import_module("echoir.runtime.cuda.plugin_class").register(trt, code)
