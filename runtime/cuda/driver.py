"""The little of CUDA that a session needs, on PyCUDA: a device, memory that is given back, kernels, graphs."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np

from echoir.runtime.errors import BackendError, needs_extra

Array = np.ndarray[Any, np.dtype[Any]]

NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: the stream does not wait for the default stream
THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: other threads may go on meanwhile
KERNELS = {  # of tiles.cu, with their arguments: P a pointer, i an int
    "cut": "PiiiiiiPiiiiPiiiii",
    "check": "PiiiiiPiiiiiP",
    "blend": "PiiiiiPiiiiPPPiiiii",
    "finish": "PiiiiiPii",
}
BLOCK = (32, 8, 1)


class Cuda:
    """A device and its primary context, which TensorRT shares.

    Whatever talks to the device does so inside :meth:`current`. The primary context is the process's
    own, so it is taken once (:func:`cuda`) and lasts as long as the process; what sessions hold in it
    does not.

    Args:
        ordinal: which device.

    Raises:
        MissingExtraError: PyCUDA is not installed.
        BackendError: no driver, or no device.
    """

    def __init__(self, ordinal: int = 0) -> None:
        with needs_extra("cuda"):
            try:
                import pycuda.driver as driver
            except ModuleNotFoundError:
                raise
            except ImportError as error:
                raise BackendError(f"PyCUDA does not load ({error}); is there an NVIDIA driver here?") from error
        self.driver = driver
        try:
            driver.init()
            device = driver.Device(ordinal)
            self._context = device.retain_primary_context()
        except driver.Error as error:
            raise BackendError(f"there is no CUDA device {ordinal} here ({error})") from error
        self.name: str = device.name()
        self.compute_capability = ".".join(str(part) for part in device.compute_capability())

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make the context current in this thread."""
        self._context.push()
        try:
            yield
        finally:
            self.driver.Context.pop()

    def stream(self) -> Any:
        """A stream that does not wait for the default stream."""
        return self.driver.Stream(NON_BLOCKING)

    def event(self) -> Any:
        """An event that lets the processor sleep while it waits, and measures no time."""
        flags = self.driver.event_flags
        return self.driver.Event(flags.BLOCKING_SYNC | flags.DISABLE_TIMING)

    def pinned(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Host memory that the device can copy from and to while the processor does something else."""
        array: Array = self.driver.pagelocked_empty(shape, dtype)
        return array

    def kernels(self) -> dict[str, Any]:
        """The kernels of tiles.cu; they last as long as one of them is held."""
        ptx = files("echoir.runtime.cuda").joinpath("tiles.ptx").read_bytes()
        module = self.driver.module_from_buffer(ptx)
        functions = {name: module.get_function(name) for name in KERNELS}
        for name, arguments in KERNELS.items():
            functions[name].prepare(arguments)
        return functions


@cache
def cuda(ordinal: int = 0) -> Cuda:
    """The process's one object for a device; raises as :class:`Cuda` does."""
    return Cuda(ordinal)


class Memory:
    """Device memory of one owner, given back all at once."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._held: list[Any] = []

    def take(self, size: int) -> int:
        """The address of ``size`` bytes, aligned for every purpose."""
        allocation = self._cuda.driver.mem_alloc(max(size, 1))
        self._held.append(allocation)
        return int(allocation)

    def copy(self, array: Array) -> int:
        """The address of a copy of ``array``."""
        address = self.take(array.nbytes)
        self._cuda.driver.memcpy_htod(address, np.ascontiguousarray(array))
        return address

    def free(self) -> None:
        """Give all of it back."""
        while self._held:
            self._held.pop().free()


class CaptureError(Exception):
    """A graph could not be captured; the work can still be done call by call."""


class Graph:
    """Work recorded once and started as one. PyCUDA has no graphs, so these are the driver's own functions.

    Args:
        stream: an idle stream to record in; what ``record`` puts there is not executed.
        record: puts work into the stream; False means it could not.

    Raises:
        CaptureError: the driver or the work does not allow it.
    """

    def __init__(self, stream: Any, record: Callable[[], bool]) -> None:
        self._library = driver_library()
        graph, self._executable = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuStreamBeginCapture_v2", ctypes.c_void_p(stream.handle), ctypes.c_int(THREAD_LOCAL))
        try:
            recorded = record()
        finally:  # a stream left in capture could never be used again
            ended = self._library.cuStreamEndCapture(ctypes.c_void_p(stream.handle), ctypes.byref(graph))
        if not recorded or ended:
            raise CaptureError(f"the work cannot be captured (CUDA error {ended})")
        try:
            self._call("cuGraphInstantiateWithFlags", ctypes.byref(self._executable), graph, ctypes.c_ulonglong(0))
        finally:
            self._library.cuGraphDestroy(graph)

    def launch(self, stream: Any) -> None:
        """Start the work in a stream."""
        self._call("cuGraphLaunch", self._executable, ctypes.c_void_p(stream.handle))

    def close(self) -> None:
        """Give the graph back."""
        if self._executable:
            self._library.cuGraphExecDestroy(self._executable)
            self._executable = ctypes.c_void_p()

    def _call(self, name: str, *arguments: Any) -> None:
        try:
            code = getattr(self._library, name)(*arguments)
        except AttributeError as error:
            raise CaptureError(f"this driver has no {name}") from error
        if code:
            raise CaptureError(f"{name} failed with CUDA error {code}")


def driver_library() -> Any:
    """The CUDA driver itself."""
    return ctypes.CDLL("libcuda.so.1")


def grid(width: int, height: int, depth: int = 1) -> tuple[int, int, int]:
    """How many blocks cover so many threads."""
    return -(-width // BLOCK[0]), -(-height // BLOCK[1]), depth
