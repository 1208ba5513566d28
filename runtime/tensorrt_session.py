"""Runs TensorRT and TensorRT-RTX engines, on PyCUDA.

A session holds one engine, one stream for inference and one piece of scratch memory, whatever the
number of threads; each call works in a :class:`Lane` of its own, taken from a pool, with its
execution context, buffers and streams. So threads do not mix images and do not multiply the
memory for activations, and once every thread has run, nothing is allocated any more.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from echoir.runtime.artifact import Artifact, Manifest, TensorSpec
from echoir.runtime.cuda import CaptureError, Cuda, Graph, Memory, cuda
from echoir.runtime.device_image import DeviceImage, ReadStrip, Strip
from echoir.runtime.errors import ArtifactError, BackendError, MissingExtraError
from echoir.runtime.sessions import check_tensor
from echoir.runtime.tiling import Axis

if TYPE_CHECKING:
    from typing_extensions import Self

Array = np.ndarray[Any, np.dtype[Any]]
MODULES = {"tensorrt": ("tensorrt", "tensorrt"), "tensorrt-rtx": ("tensorrt_rtx", "rtx")}  # import name, extra
SLOTS = 2  # batches under way at a time: one is computed while the other is filled or emptied


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
        self._idle: list[Lane] = []
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
            from echoir.runtime.plugin_class import register

            register(self._trt)
        self._logger = _logger(self._trt)
        self._runtime = self._trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(artifact.model_path.read_bytes())
        if self._engine is None:
            raise ArtifactError(
                "model", f"{artifact.model_path.name}, which does not load ({self._logger.last_error})", "an engine"
            )
        self.max_batch = _check_tensors(self.manifest, self._trt, self._engine)
        self._kernels = self._cuda.kernels()
        self._compute = self._cuda.stream()
        self._scratch_size = self._engine.device_memory_size_v2
        self._scratch = self._memory.take(self._scratch_size)

    def run(self, tiles: Array) -> Array:
        """Run tiles, the last batch filled up; two batches are under way at a time.

        Args:
            tiles: [N, ...] in the manifest's input layout and dtype, N >= 1.

        Returns:
            [N, ...] in the manifest's output layout and dtype.

        Raises:
            ValueError: tiles of another shape or type, or a closed session.
            BackendError: the run failed.
        """
        tile, source = self.manifest.tile, self.manifest.input
        needed = source.shape(len(tiles), tile.height, tile.width)
        if not len(tiles) or tiles.shape != needed or tiles.dtype != source.dtype:
            raise ValueError(f"tiles must be {source.dtype} {needed}, got {tiles.dtype} {tiles.shape}")
        output = np.empty(self.manifest.output.shape(len(tiles), tile.height, tile.width), self.manifest.output.dtype)
        with self._lane(min(len(tiles), self.max_batch)) as lane, self._cuda.current():
            lane.run(tiles, output)
        return output

    def strips(self, read: ReadStrip, down: Axis, across: Axis, batch: int) -> Generator[Strip, None, None]:
        """Restore an image on the device, strip by strip; see :meth:`Restorer.strips`.

        Args:
            read: gives the rows that a strip of tiles covers, [down.covered, W, 3] or [down.covered, W],
                by the strip's number, from 0 on in order.
            down, across: the tile grid.
            batch: tiles per run, where the engine leaves it open.

        Raises:
            ValueError: a closed session.
            BackendError: the run failed.
        """
        first = read(0)
        with self._lane(min(batch, self.max_batch)) as lane:
            with self._cuda.current():
                image = lane.image(self._kernels, down, across, first)
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
                for name in ("_kernels", "_compute", "_engine", "_runtime"):
                    self.__dict__.pop(name, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @contextmanager
    def _lane(self, batch: int) -> Iterator[Lane]:
        """A lane that no other call has, for batches of this size."""
        size = self.manifest.tile.batch or batch
        with self._lock:
            if self._closed.is_set():
                raise ValueError("the session is closed")
            self._busy += 1
            fitting = [lane for lane in self._idle if lane.batch == size]
            lane = fitting[-1] if fitting else None
            if lane is not None:
                self._idle.remove(lane)
        try:
            with self._guarded():
                if lane is None:
                    with self._lock, self._cuda.current():
                        new = Lane(self._cuda, self._trt, self._engine, self.manifest, self._compute, size)
                        new.prepare(self._scratch, self._scratch_size)
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


@dataclass(frozen=True)
class Layout:
    """Tiles of a batch, as tiles.cu takes them."""

    height: int
    width: int
    channels_last: int
    bytes: int  # 1 for uint8, 0 for float32


def _layout(spec: TensorSpec, manifest: Manifest) -> Layout:
    tile = manifest.tile
    return Layout(tile.height, tile.width, int(spec.layout == "NHWC"), int(spec.dtype == "uint8"))


class Slot:
    """Buffers of one batch: on the device, and pinned on the host for :meth:`Lane.run`."""

    def __init__(self, cuda: Cuda, memory: Memory, manifest: Manifest, batch: int) -> None:
        tile = manifest.tile
        self.staged, self.fetched = (
            cuda.pinned(spec.shape(batch, tile.height, tile.width), np.dtype(spec.dtype))
            for spec in (manifest.input, manifest.output)
        )
        self.given, self.made = memory.take(self.staged.nbytes), memory.take(self.fetched.nbytes)
        self.filled, self.written, self.read = cuda.event(), cuda.event(), cuda.event()
        self.graph: Graph | None = None


class Lane:
    """All that one call needs: an execution context, two slots, streams, and the image last restored.

    Args:
        cuda: the device; its context is current.
        trt: the library.
        engine: shared with other lanes, as is ``compute``, the stream for inference.
        manifest: of the engine.
        batch: tiles per run.
    """

    def __init__(self, cuda: Cuda, trt: Any, engine: Any, manifest: Manifest, compute: Any, batch: int) -> None:
        self.batch, self.compute = batch, compute
        self.given, self.made = _layout(manifest.input, manifest), _layout(manifest.output, manifest)
        self._cuda, self._manifest = cuda, manifest
        self._memory = Memory(cuda)
        self._image: DeviceImage | None = None
        self._count = 0
        self._slots: list[Slot] = []
        try:
            self._slots = [Slot(cuda, self._memory, manifest, batch) for _ in range(SLOTS)]
            self._upload, self._download = cuda.stream(), cuda.stream()
            self._context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
            if self._context is None:
                raise BackendError(f"{manifest.name}: no execution context (out of memory?)")
        except BaseException:
            self.free()
            raise

    def prepare(self, scratch: int, size: int) -> None:
        """Give the context its scratch memory, run once, and record a graph of each slot if that can be done."""
        try:
            self._context.set_device_memory(scratch, size)
            tile = self._manifest.tile
            shape = self._manifest.input.shape(self.batch, tile.height, tile.width)
            if not self._context.set_input_shape(self._manifest.input.name, shape):
                raise BackendError(f"{self._manifest.name} does not take batches of {self.batch}")
            for slot in self._slots:
                self._cuda.driver.memset_d8_async(slot.given, 0, slot.staged.nbytes, self.compute)
                self._enqueue(slot, self.compute)  # what is done on a first run cannot be recorded
                self.compute.synchronize()
                with suppress(CaptureError):  # in a stream of this lane's: another lane may be using the shared one
                    slot.graph = Graph(self._upload, partial(self._execute, slot, self._upload))
        except BaseException:
            self.free()
            raise

    @property
    def graphed(self) -> bool:
        """Whether a batch is started as one CUDA graph."""
        return all(slot.graph is not None for slot in self._slots)

    def next_slot(self) -> Slot:
        """The slots in turn."""
        self._count += 1
        return self._slots[self._count % SLOTS]

    def infer(self, slot: Slot) -> None:
        """Run the engine on a slot, in the stream for inference."""
        if slot.graph is not None:
            slot.graph.launch(self.compute)
        else:
            self._enqueue(slot, self.compute)
        slot.written.record(self.compute)

    def run(self, tiles: Array, output: Array) -> None:
        """Tiles from the host through the engine and back; the context is current."""
        pending: list[tuple[int, Slot]] = []
        try:
            for start in range(0, len(tiles), self.batch):
                if len(pending) == SLOTS:
                    self._collect(output, *pending.pop(0))
                slot = self.next_slot()
                self._start(slot, tiles[start : start + self.batch])
                pending.append((start, slot))
            while pending:
                self._collect(output, *pending.pop(0))
        except BaseException:
            for stream in (self._upload, self.compute, self._download):
                stream.synchronize()
            raise

    def image(self, kernels: dict[str, Any], down: Axis, across: Axis, rows: Array) -> DeviceImage:
        """Buffers for an image like this: those of the last, if they fit."""
        if self._image is None or not self._image.fits(down, across, rows):
            if self._image is not None:
                self._image.free()
                self._image = None
            self._image = DeviceImage(self._cuda, kernels, down, across, rows)
        return self._image

    def free(self) -> None:
        """Give everything back; the context is current."""
        for slot in self._slots:
            if slot.graph is not None:
                slot.graph.close()
        if self._image is not None:
            self._image.free()
        self._memory.free()
        self._slots, self._image, self._context = [], None, None
        self._upload = self._download = None

    def _start(self, slot: Slot, batch: Array) -> None:
        slot.staged[: len(batch)] = batch
        slot.staged[len(batch) :] = batch[-1]
        driver = self._cuda.driver
        driver.memcpy_htod_async(slot.given, slot.staged, self._upload)
        slot.filled.record(self._upload)
        self.compute.wait_for_event(slot.filled)
        self.infer(slot)
        self._download.wait_for_event(slot.written)
        driver.memcpy_dtoh_async(slot.fetched, slot.made, self._download)
        slot.read.record(self._download)

    def _collect(self, output: Array, start: int, slot: Slot) -> None:
        slot.read.synchronize()
        part = output[start : start + self.batch]
        part[:] = slot.fetched[: len(part)]

    def _enqueue(self, slot: Slot, stream: Any) -> None:
        if not self._execute(slot, stream):
            raise BackendError(f"{self._manifest.name}: the engine could not be started")

    def _execute(self, slot: Slot, stream: Any) -> bool:
        self._context.set_tensor_address(self._manifest.input.name, slot.given)
        self._context.set_tensor_address(self._manifest.output.name, slot.made)
        done: bool = self._context.execute_async_v3(stream.handle)
        return done


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
    tensors: dict[str, list[tuple[str, str, list[int]]]] = {"input": [], "output": []}
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        role = "input" if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT else "output"
        dtype = np.dtype(trt.nptype(engine.get_tensor_dtype(name))).name
        tensors[role].append((name, dtype, [max(size, 0) for size in engine.get_tensor_shape(name)]))
    for role, found in tensors.items():
        if len(found) != 1:
            raise ArtifactError(role, f"{len(found)} tensors", "one")
        check_tensor(role, getattr(manifest, role), manifest, *found[0])
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
