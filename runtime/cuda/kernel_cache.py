"""TensorRT-RTX compiles an engine's kernels when the engine starts; here they are kept for the next start."""

from __future__ import annotations

import re
from typing import Any

from echoir.runtime.caches import cache_folder, keep, recall
from echoir.runtime.manifest import Manifest

LIMIT = 256 << 20  # bytes, of all engines together; those not used for the longest time go first


class KernelCache:
    """The kernels of one engine, and how its execution contexts are to be made so that they use them.

    TensorRT-RTX itself checks that what it is given was compiled by this version for this GPU, and compiles anew
    where it was not. The driver's context is current in every call.

    Args:
        trt: the library.
        engine: that was loaded.
        manifest: of the engine.
        gpu: its name: a machine with two kinds keeps the kernels of both.
    """

    def __init__(self, trt: Any, engine: Any, manifest: Manifest, gpu: str) -> None:
        words = f"{manifest.model.sha256[:32]}-{trt.__version__}-{gpu}"
        self._path = cache_folder("rtx") / (re.sub(r"[^\w.-]+", "-", words) + ".cache")
        self.config = engine.create_runtime_config()
        self.config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        self._cache = self.config.create_runtime_cache()
        kept = recall(self._path)
        self.loaded = kept is not None and bool(self._cache.deserialize(kept))
        self._kept = kept if self.loaded else None
        self.config.set_runtime_cache(self._cache)

    def save(self) -> None:
        """Keep what was compiled since; called after an execution context has run."""
        content = bytes(self._cache.serialize())
        if content != self._kept and keep(self._path, content, LIMIT):
            self._kept = content
