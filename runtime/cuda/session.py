"""Runs TensorRT and TensorRT-RTX engines, on PyCUDA.

A session holds one engine, one stream for inference and one piece of scratch memory, whatever the
number of threads; each call works in a lane of its own (:mod:`echoir.runtime.cuda.lane`), taken from
a pool, with its execution context, buffers and streams. So threads do not mix images and do not multiply
the memory for activations, and once every thread has run, nothing is allocated any more.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from echoir.runtime.artifact import Artifact
from echoir.runtime.channels import Route
from echoir.runtime.contract import Array, ReadStrip, Strip, check_tensor, check_tiles
from echoir.runtime.cuda.driver import Cuda, Memory, cuda
from echoir.runtime.cuda.image import ImageLane
from echoir.runtime.cuda.kernel_cache import KernelCache
from echoir.runtime.errors import ArtifactError, BackendError, ClosedSessionError, MissingExtraError
from echoir.runtime.manifest import Manifest, Role
from echoir.runtime.tiling import Axis

if TYPE_CHECKING:
    from typing_extensions import Self

MODULES = {"tensorrt": ("tensorrt", "tensorrt"), "tensorrt-rtx": ("tensorrt_rtx", "rtx")}  # import name, extra


class TensorRTSession:
    """An engine on the first CUDA device, checked against its manifest.

    Args:
        artifact: with an engine; TensorRT's must have been built by this version of TensorRT for this
            GPU, unless its manifest says that it is version- or hardware-compatible.

    Raises:
        MissingExtraError: TensorRT, TensorRT-RTX or PyCUDA is not installed.
        BackendError: no driver, no device, or not enough memory.
        ArtifactError: the engine is for another GPU or version, does not load, or its tensors are not
            what the manifest says.
    """

    def __init__(self, artifact: Artifact) -> None:
        self.manifest = artifact.manifest
        self._trt = _library(self.manifest)
        self._cuda = cuda()
        _check_place(self.manifest, self._trt, self._cuda)
        self._lock = threading.Lock()
        self._idle: list[ImageLane] = []
        self._busy = 0
        self._closed = threading.Event()
        self._memory = Memory(self._cuda)
        try:
            with self._guarded(), self._cuda.current():
                self._open(artifact)
        except BaseException:
            self.close()
            raise

    def _open(self, artifact: Artifact) -> None:
        if self.manifest.engine is not None and self.manifest.engine.details.get("upsampler") == "plugin class":
            from echoir.runtime.cuda.plugin_class import register

            register(self._trt)
        self._logger = _logger(self._trt)
        self._runtime = self._trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(artifact.model_path.read_bytes())
        if self._engine is None:
            raise ArtifactError(
                "model", f"{artifact.model_path.name}, which does not load ({self._logger.last_error})", "an engine"
            )
        self.max_batch = _check_tensors(self.manifest, self._trt, self._engine)
        self._making: Any = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        self._compiled: KernelCache | None = None
        if self.manifest.model.backend == "tensorrt-rtx":
            self._compiled = KernelCache(self._trt, self._engine, self.manifest, self._cuda.name)
            self._making = self._compiled.config
        self._kernels = self._cuda.kernels()
        self._compute = self._cuda.stream()
        self._scratch_size = self._engine.device_memory_size_v2
        self._scratch = self._memory.take(self._scratch_size)

    def run(self, tiles: Array) -> Array:
        """As :class:`~echoir.runtime.contract.Session` says; two batches are under way at a time."""
        check_tiles(tiles, self.manifest)
        output = np.empty(self.manifest.shape("output", len(tiles)), self.manifest.output.dtype)
        with self._lane(min(len(tiles), self.max_batch)) as lane, self._cuda.current():
            lane.run(tiles, output)
        return output

    def facts(self) -> dict[str, str]:
        """Versions and the GPU; see :class:`echoir.runtime.contract.Described`."""
        version = self._cuda.driver.get_driver_version()
        return {
            self.manifest.model.backend: self._trt.__version__,
            "gpu": f"{self._cuda.name}, compute capability {self._cuda.compute_capability}",
            "driver": f"CUDA {version // 1000}.{version % 1000 // 10}",
        }

    def strips(self, read: ReadStrip, down: Axis, across: Axis, way: Route, batch: int) -> Generator[Strip, None, None]:
        """Restore an image on the device, strip by strip; see :meth:`Restorer.strips`.

        Args:
            read: gives the rows that a strip of tiles covers, [rows, W, C] or [rows, W], packed into planes, by the
                strip's number, from 0 on in order.
            down, across: the tile grid.
            way: how the image goes through the network.
            batch: tiles per run, where the engine leaves it open.

        Raises:
            ClosedSessionError: it was closed.
            BackendError: the run failed.
        """
        first = read(0)
        with self._lane(min(batch, self.max_batch)) as lane:
            with self._cuda.current():
                image = lane.image(self._kernels, down, across, way, first)
            yield from image.restore(lane, read, first)

    def close(self) -> None:
        """Release everything, as soon as no call is under way in another thread."""
        with self._lock:
            self._closed.set()
            idle, self._idle = self._idle, []
            last = self._busy == 0
        with self._cuda.current():
            for lane in idle:
                lane.free()
            if last:
                self._memory.free()
                # An engine outlives its contexts, a runtime its engines: in this order.
                for name in ("_kernels", "_compute", "_making", "_compiled", "_engine", "_runtime"):
                    self.__dict__.pop(name, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @contextmanager
    def _lane(self, batch: int) -> Iterator[ImageLane]:
        """A lane that no other call has, for batches of this size."""
        size = self.manifest.tile.batch or batch
        with self._lock:
            if self._closed.is_set():
                raise ClosedSessionError
            self._busy += 1
            fitting = [lane for lane in self._idle if lane.batch == size]
            lane = fitting[-1] if fitting else None
            if lane is not None:
                self._idle.remove(lane)
        try:
            with self._guarded():
                if lane is None:
                    with self._lock, self._cuda.current():
                        new = ImageLane(self._cuda, self._engine, self._making, self.manifest, self._compute, size)
                        new.prepare(self._scratch, self._scratch_size)
                        if self._compiled is not None:
                            self._compiled.save()
                    lane = new
                yield lane
        except BackendError:
            if lane is not None:  # what a failed call left behind is not used again
                with self._cuda.current():
                    lane.free()
                lane = None
            raise
        finally:
            with self._lock:
                self._busy -= 1
                if lane is not None:
                    self._idle.append(lane)
                ending = self._closed.is_set()
            if ending:
                self.close()

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """CUDA's errors as this project's."""
        try:
            yield
        except self._cuda.driver.Error as error:
            cause = "out of memory" if isinstance(error, self._cuda.driver.MemoryError) else "a failed call"
            raise BackendError(
                f"{self.manifest.model.backend} stopped on {self._cuda.name}: {cause} ({error})"
            ) from error


def _library(manifest: Manifest) -> Any:
    module, extra = MODULES[manifest.model.backend]
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise BackendError(f"{module} is installed but does not load ({error})") from error
        raise MissingExtraError(module, extra) from None
    except (ImportError, OSError) as error:
        raise BackendError(f"{module} is installed but does not load ({error})") from error


def _check_place(manifest: Manifest, trt: Any, device: Cuda) -> None:
    """Refuse an engine made for another version or another GPU."""
    engine = manifest.engine
    assert engine is not None  # a manifest without it is refused before
    options = engine.details.get("options", {})
    hint = "engines belong to the machine they were built on: build one here from the .onnx of the same export"
    if manifest.model.backend == "tensorrt":
        found, built = (tuple(version.split(".")) for version in (trt.__version__, engine.tensorrt))
        if options.get("version_compatible"):
            if found[0] != built[0] or int(found[1]) < int(built[1]):
                raise ArtifactError(
                    "engine.tensorrt", trt.__version__, f"{built[0]}.{built[1]} or a later {built[0]}.x", hint
                )
        elif found != built:
            raise ArtifactError("engine.tensorrt", trt.__version__, engine.tensorrt, hint)
    if options.get("hardware_compatible"):
        if float(device.compute_capability) < 8:
            raise ArtifactError("engine.compute_capability", device.compute_capability, "8.0 or later", hint)
    elif device.compute_capability not in engine.compute_capability:
        wanted = " or ".join(engine.compute_capability)
        raise ArtifactError("engine.compute_capability", f"{device.compute_capability} ({device.name})", wanted, hint)


def _check_tensors(manifest: Manifest, trt: Any, engine: Any) -> int:
    """Refuse an engine whose tensors are not the manifest's; gives the largest batch it takes."""
    tensors: dict[Role, list[tuple[str, str, list[int]]]] = {"input": [], "output": []}
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        role: Role = "input" if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT else "output"
        dtype = np.dtype(trt.nptype(engine.get_tensor_dtype(name))).name
        tensors[role].append((name, dtype, [max(size, 0) for size in engine.get_tensor_shape(name)]))
    for role, found in tensors.items():
        if len(found) != 1:
            raise ArtifactError(role, f"{len(found)} tensors", "one")
        check_tensor(role, manifest, *found[0])
    if manifest.tile.batch is not None:
        return manifest.tile.batch
    largest = engine.get_tensor_profile_shape(manifest.input.name, 0)[2]
    return int(largest[0])


def _logger(trt: Any) -> Any:
    class Logger(trt.ILogger):
        """Remembers the last error; it comes back in an exception."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last_error = "it gave no reason"

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.last_error = message

    return Logger()
