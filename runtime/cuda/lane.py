"""What one call needs of the device: an execution context, buffers, streams."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from echoir.runtime.contract import Array
from echoir.runtime.cuda.driver import CaptureError, Cuda, Graph, Memory
from echoir.runtime.errors import BackendError
from echoir.runtime.manifest import Manifest, Role, TensorSpec

SLOTS = 2  # batches under way at a time: one is computed while the other is filled or emptied


@dataclass(frozen=True)
class Layout:
    """Tiles of a batch, as tiles.cu takes them."""

    height: int
    width: int
    planes: int
    channels_last: int
    bytes: int  # 1 for uint8, 0 for float32

    @classmethod
    def of(cls, manifest: Manifest, role: Role) -> Layout:
        """Of the input's or the output's tiles."""
        spec: TensorSpec = getattr(manifest, role)
        _, *sides = manifest.shape(role, 1)
        last = spec.layout == "NHWC"
        height, width = sides[:2] if last else sides[1:]
        return cls(height, width, spec.channels, int(last), int(spec.dtype == "uint8"))

    @property
    def fields(self) -> tuple[int, int, int, int, int]:
        """In the order of tiles.cu's arguments."""
        return self.height, self.width, self.planes, self.channels_last, self.bytes


class Slot:
    """Buffers of one batch: on the device, and pinned on the host for :meth:`Lane.run`."""

    def __init__(self, cuda: Cuda, memory: Memory, manifest: Manifest, batch: int) -> None:
        self.staged = cuda.pinned(manifest.shape("input", batch), np.dtype(manifest.input.dtype))
        self.fetched = cuda.pinned(manifest.shape("output", batch), np.dtype(manifest.output.dtype))
        self.given, self.made = memory.take(self.staged.nbytes), memory.take(self.fetched.nbytes)
        self.filled, self.written, self.read = cuda.event(), cuda.event(), cuda.event()
        self.graph: Graph | None = None


class Lane:
    """All that one call needs: an execution context, two slots, and streams.

    Args:
        cuda: the device; its context is current.
        engine: shared with other lanes, as is ``compute``, the stream for inference.
        making: what an execution context is made with: an allocation strategy, or TensorRT-RTX's runtime config.
        manifest: of the engine.
        batch: tiles per run.
    """

    def __init__(self, cuda: Cuda, engine: Any, making: Any, manifest: Manifest, compute: Any, batch: int) -> None:
        self.batch, self.compute = batch, compute
        self.given, self.made = Layout.of(manifest, "input"), Layout.of(manifest, "output")
        self._cuda, self._manifest = cuda, manifest
        self._memory = Memory(cuda)
        self._count = 0
        self._slots: list[Slot] = []
        try:
            self._slots = [Slot(cuda, self._memory, manifest, batch) for _ in range(SLOTS)]
            self._upload, self._download = cuda.stream(), cuda.stream()
            self._context = engine.create_execution_context(making)
            if self._context is None:
                raise BackendError(f"{manifest.name}: no execution context (out of memory?)")
        except BaseException:
            self.free()
            raise

    def prepare(self, scratch: int, size: int) -> None:
        """Give the context its scratch memory, run once, and record a graph of each slot if that can be done."""
        try:
            self._context.set_device_memory(scratch, size)
            shape = self._manifest.shape("input", self.batch)
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

    def free(self) -> None:
        """Give everything back; the context is current."""
        for slot in self._slots:
            if slot.graph is not None:
                slot.graph.close()
        self._memory.free()
        self._slots, self._context = [], None
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
