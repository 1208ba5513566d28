"""A pretended GPU: PyCUDA, the driver's graphs and TensorRT, as far as the runtime uses them.

THIS IS A FAKE. It shows that the runtime calls these libraries in a right order, not that they work. What it
does for real: memory is real memory; the kernels are runtime/cuda/tiles.cu, compiled by the C++ compiler; an
"engine" is an ONNX model run by ONNX Runtime. What goes into a stream waits there until somebody
synchronizes; then streams take turns at random, bound by their events alone. So work that relies on an order
that no event enforces gives a wrong image, sooner or later, and a copy from a buffer that was already
filled anew copies the new content. Every call checks that a context is current in its thread.
"""

from __future__ import annotations

import ctypes
import random
import subprocess
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from echoir.runtime.cuda import driver as cuda_module
from echoir.runtime.cuda.driver import KERNELS

CUDA = Path(__file__).resolve().parents[1] / "runtime" / "cuda"
SHIM = """
#include <cmath>
#include <utility>
#include <tuple>
#define __global__
#define __device__
struct dim3 { int x, y, z; };
static thread_local dim3 blockIdx, threadIdx, blockDim;
static void atomicOr(int *target, int bits) { *target |= bits; }
#include "tiles.cu"
template <class... A, size_t... I>
static void each(void (*kernel)(A...), const int *grid, const int *block, void **args, std::index_sequence<I...>) {
    blockDim = {block[0], block[1], block[2]};
    for (int i = 0; i < grid[0] * grid[1] * grid[2]; i++)
        for (int j = 0; j < block[0] * block[1] * block[2]; j++) {
            blockIdx = {i % grid[0], i / grid[0] % grid[1], i / grid[0] / grid[1]};
            threadIdx = {j % block[0], j / block[0] % block[1], j / block[0] / block[1]};
            kernel(*(A *)args[I]...);
        }
}
template <class... A> static void run(void (*kernel)(A...), const int *grid, const int *block, void **args) {
    each(kernel, grid, block, args, std::index_sequence_for<A...>());
}
#define RUN(name) extern "C" void run_##name(const int *g, const int *b, void **a) { run(name, g, b, a); }
RUN(cut) RUN(check) RUN(blend) RUN(finish)
"""


def compile_kernels(folder: Path, compiler: str) -> ctypes.CDLL:
    """The kernels of tiles.cu as functions of this process: ``run_NAME(grid, block, arguments)``."""
    source, library = folder / "shim.cpp", folder / "kernels.so"
    source.write_text(SHIM)
    flags = ["-O2", "-std=c++17", "-ffp-contract=off", "-shared", "-fPIC", "-Wno-unknown-pragmas", f"-I{CUDA}"]
    subprocess.run([compiler, *flags, "-o", library, source], check=True)
    return ctypes.CDLL(str(library))


@contextmanager
def installed(gpu: Gpu, tensorrt: ModuleType) -> Iterator[None]:
    """A pretended GPU and this TensorRT in the place of PyCUDA, TensorRT and the driver; nothing may be left on it."""
    package = ModuleType("pycuda")
    package.driver = driver(gpu)  # type: ignore[attr-defined]
    modules = {"pycuda": package, "pycuda.driver": package.driver, "tensorrt": tensorrt}
    cuda_module.cuda.cache_clear()
    with pytest.MonkeyPatch.context() as patched:  # patch.dict would forget what is imported inside
        for name, module in modules.items():
            patched.setitem(sys.modules, name, module)
        patched.setattr(cuda_module, "driver_library", lambda: Library(gpu))
        yield
    cuda_module.cuda.cache_clear()
    assert not gpu.allocations, "device memory is left"
    assert not gpu.calls["graphs"], "graphs are left"
    assert not gpu.current, "a context is left current"


class FakeError(Exception):
    """pycuda.driver.Error"""


class FakeMemoryError(FakeError):
    """pycuda.driver.MemoryError"""


class Gpu:
    """The device: streams with work, memory, contexts, and a count of every kind of call.

    Args:
        kernels: what :func:`compile_kernels` gave.
        seed: of the order in which streams take turns.
        fail: a call's name -> after how many calls it fails; with ``FakeMemoryError`` for memory.
        graphs: whether the driver can capture.
    """

    def __init__(
        self, kernels: ctypes.CDLL, *, seed: int = 0, fail: dict[str, int] | None = None, graphs: bool = True
    ) -> None:
        self.kernels, self.fail, self.graphs = kernels, fail or {}, graphs
        self.random = random.Random(seed)
        self.lock = threading.RLock()
        self.streams: list[Stream] = []
        self.allocations: dict[int, Any] = {}
        self.calls: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.graph_work: dict[int, list[Callable[[], None]]] = {}
        self.contexts = 0
        self._local = threading.local()

    def call(self, name: str) -> None:
        """Count a call, check its context, and fail if it is its turn."""
        with self.lock:
            self.calls[name] += 1
            if self.fail.get(name) == self.calls[name]:
                raise (FakeMemoryError if "alloc" in name else FakeError)(f"{name} was told to fail")
        if not self.current:
            raise FakeError(f"{name} without a current context")

    @property
    def current(self) -> int:
        """How many contexts this thread has pushed."""
        return getattr(self._local, "depth", 0)

    @current.setter
    def current(self, depth: int) -> None:
        self._local.depth = depth

    def until(self, done: Callable[[], bool]) -> None:
        """Let streams take turns until a condition holds."""
        with self.lock:
            while not done():
                ready = [stream for stream in self.streams if stream.work and stream.work[0][0]()]
                if not ready:
                    raise FakeError("the streams wait for each other")
                self.random.choice(ready).work.popleft()[1]()

    def drain(self) -> None:
        self.until(lambda: not any(stream.work for stream in self.streams))


class Stream:
    def __init__(self, gpu: Gpu, flags: int) -> None:
        gpu.call("Stream")
        assert flags == 1, "a stream that waits for the default stream"
        self.gpu, self.work = gpu, deque[tuple[Callable[[], bool], Callable[[], None]]]()
        self.capturing: list[Callable[[], None]] | None = None
        with gpu.lock:
            gpu.streams.append(self)
            self.handle = len(gpu.streams)

    def put(self, action: Callable[[], None], ready: Callable[[], bool] = lambda: True) -> None:
        with self.gpu.lock:
            if self.capturing is not None:
                self.capturing.append(action)
            else:
                self.work.append((ready, action))

    def wait_for_event(self, event: Event) -> None:
        self.gpu.call("wait_for_event")
        ticket = event.recorded
        self.put(lambda: None, lambda: event.reached >= ticket)

    def synchronize(self) -> None:
        self.gpu.call("synchronize")
        self.gpu.until(lambda: not self.work)


class Event:
    def __init__(self, gpu: Gpu, flags: int) -> None:
        gpu.call("Event")
        self.gpu, self.recorded, self.reached = gpu, 0, 0

    def record(self, stream: Stream) -> None:
        self.gpu.call("record")
        self.recorded += 1
        ticket = self.recorded

        def reach() -> None:
            self.reached = ticket

        stream.put(reach)

    def synchronize(self) -> None:
        self.gpu.call("synchronize")
        ticket = self.recorded
        self.gpu.until(lambda: self.reached >= ticket)


class Allocation:
    def __init__(self, gpu: Gpu, size: int) -> None:
        gpu.call("mem_alloc")
        self.gpu = gpu
        # Fresh memory holds anything.
        self.buffer = ctypes.create_string_buffer(b"\xa5" * size, size)
        self.address = ctypes.addressof(self.buffer)
        gpu.allocations[self.address] = self

    def __int__(self) -> int:
        return self.address

    def free(self) -> None:
        self.gpu.call("free")
        self.gpu.drain()  # as the driver does
        del self.gpu.allocations[self.address]


def driver(gpu: Gpu) -> ModuleType:
    """``pycuda.driver``"""
    module = ModuleType("pycuda.driver")

    class Function:
        def __init__(self, name: str) -> None:
            self.name = name

        def prepare(self, arguments: str) -> None:
            self.kinds = [{"P": ctypes.c_void_p, "i": ctypes.c_int}[kind] for kind in arguments]

        def prepared_async_call(self, grid: Any, block: Any, stream: Stream, *arguments: Any) -> None:
            gpu.call("launch")
            values = [kind(value) for kind, value in zip(self.kinds, arguments, strict=True)]
            pointers = (ctypes.c_void_p * len(values))(*[ctypes.addressof(value) for value in values])
            sizes = [(ctypes.c_int * 3)(*size) for size in (grid, block)]
            run = getattr(gpu.kernels, f"run_{self.name}")

            def work(values: Any = values) -> None:  # which the pointers point at: they live as long as this
                run(*sizes, pointers)

            stream.put(work)

    class Context:
        def push(self) -> None:
            gpu.current += 1

        @staticmethod
        def pop() -> None:
            assert gpu.current
            gpu.current -= 1

    class Device:
        def __init__(self, ordinal: int) -> None:
            if gpu.fail.get("Device"):
                raise FakeError("no device")

        def retain_primary_context(self) -> Context:
            gpu.contexts += 1
            return Context()

        def name(self) -> str:
            return "Fake GPU"

        def compute_capability(self) -> tuple[int, int]:
            return 8, 7

    def pagelocked_empty(shape: Any, dtype: Any) -> Any:
        gpu.call("pagelocked_empty")
        array = np.empty(shape, dtype)
        array.view(np.uint8).fill(0x5A)
        return array

    def module_from_buffer(ptx: bytes) -> Any:
        gpu.call("module_from_buffer")
        assert all(f".entry {name}(".encode() in ptx for name in KERNELS)
        return SimpleNamespace(get_function=Function)

    def memcpy_htod_async(target: int, source: Any, stream: Stream) -> None:
        gpu.call("memcpy_htod_async")
        assert source.flags.c_contiguous
        gpu.bytes["up"] += source.nbytes
        stream.put(lambda: ctypes.memmove(target, source.ctypes.data, source.nbytes) and None)

    def memcpy_dtoh_async(target: Any, source: int, stream: Stream) -> None:
        gpu.call("memcpy_dtoh_async")
        assert target.flags.c_contiguous
        gpu.bytes["down"] += target.nbytes
        stream.put(lambda: ctypes.memmove(target.ctypes.data, source, target.nbytes) and None)

    def memcpy_htod(target: int, source: Any) -> None:
        gpu.call("memcpy_htod")
        ctypes.memmove(target, source.ctypes.data, source.nbytes)

    def memset(width: int) -> Callable[[int, int, int, Stream], None]:
        def put(target: int, value: int, count: int, stream: Stream) -> None:
            gpu.call("memset")
            assert value == 0
            stream.put(lambda: ctypes.memset(target, 0, count * width) and None)

        return put

    for name, value in {
        "Error": FakeError,
        "MemoryError": FakeMemoryError,
        "init": lambda: None,
        "Device": Device,
        "Context": Context,
        "Stream": lambda flags: Stream(gpu, flags),
        "Event": lambda flags: Event(gpu, flags),
        "get_driver_version": lambda: 13010,
        "event_flags": SimpleNamespace(BLOCKING_SYNC=1, DISABLE_TIMING=2),
        "mem_alloc": lambda size: Allocation(gpu, size),
        "pagelocked_empty": pagelocked_empty,
        "module_from_buffer": module_from_buffer,
        "memcpy_htod": memcpy_htod,
        "memcpy_htod_async": memcpy_htod_async,
        "memcpy_dtoh_async": memcpy_dtoh_async,
        "memset_d8_async": memset(1),
        "memset_d32_async": memset(4),
    }.items():
        setattr(module, name, value)
    return module


class Library:
    """The functions of libcuda that PyCUDA does not offer: graphs. A graph's address stands for its work."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu

    def _stream(self, handle: ctypes.c_void_p) -> Stream:
        return self.gpu.streams[(handle.value or 0) - 1]

    def cuStreamBeginCapture_v2(self, handle: ctypes.c_void_p, mode: ctypes.c_int) -> int:  # noqa: N802
        self.gpu.call("begin_capture")
        if not self.gpu.graphs:
            return 900
        self._stream(handle).capturing = []
        return 0

    def cuStreamEndCapture(self, handle: ctypes.c_void_p, graph: Any) -> int:  # noqa: N802
        stream = self._stream(handle)
        work, stream.capturing = stream.capturing, None
        if work is None:
            return 901
        graph._obj.value = len(self.gpu.graph_work) + 1
        self.gpu.graph_work[graph._obj.value] = work
        return 0

    def cuGraphInstantiateWithFlags(self, executable: Any, graph: ctypes.c_void_p, flags: Any) -> int:  # noqa: N802
        self.gpu.calls["graphs"] += 1
        executable._obj.value = graph.value
        return 0

    def cuGraphDestroy(self, graph: ctypes.c_void_p) -> int:  # noqa: N802
        return 0

    def cuGraphLaunch(self, executable: ctypes.c_void_p, handle: ctypes.c_void_p) -> int:  # noqa: N802
        self.gpu.call("graph_launch")
        for action in self.gpu.graph_work[executable.value or 0]:
            self._stream(handle).put(action)
        return 0

    def cuGraphExecDestroy(self, executable: ctypes.c_void_p) -> int:  # noqa: N802
        self.gpu.calls["graphs"] -= 1
        return 0


def tensorrt(gpu: Gpu, version: str = "10.9.0") -> ModuleType:
    """``tensorrt``, whose engines are ONNX files."""
    import onnxruntime

    module = ModuleType("tensorrt")

    class ILogger:
        Severity = SimpleNamespace(ERROR=1, INTERNAL_ERROR=0, WARNING=2)

    class Engine:
        device_memory_size_v2 = 1000
        num_io_tensors = 2

        def __init__(self, data: bytes) -> None:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            self.session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
            self.tensors = {value.name: value for value in (*self.session.get_inputs(), *self.session.get_outputs())}

        def get_tensor_name(self, index: int) -> str:
            return list(self.tensors)[index]

        def get_tensor_mode(self, name: str) -> str:
            return "in" if name == self.session.get_inputs()[0].name else "out"

        def get_tensor_dtype(self, name: str) -> str:
            return self.tensors[name].type

        def get_tensor_shape(self, name: str) -> list[int]:
            return [size if isinstance(size, int) else -1 for size in self.tensors[name].shape]

        def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
            return [(count, *self.get_tensor_shape(name)[1:]) for count in (1, 1, 3)]

        def create_execution_context(self, making: Any) -> Any:
            gpu.call("create_execution_context")
            if isinstance(making, RuntimeConfig):
                assert making.strategy == "user managed"
                gpu.calls["compile"] += making.cache.use("kernels of " + str(list(self.tensors)))
            else:
                assert making == "user managed"
            return Execution(self)

        def create_runtime_config(self) -> Any:
            return RuntimeConfig()

    class RuntimeConfig:
        """TensorRT-RTX's."""

        def set_execution_context_allocation_strategy(self, strategy: str) -> None:
            self.strategy = strategy

        def create_runtime_cache(self) -> Any:
            return RuntimeCache()

        def set_runtime_cache(self, cache: Any) -> bool:
            self.cache = cache
            return True

    class RuntimeCache:
        """TensorRT-RTX's; it refuses what another version wrote."""

        def __init__(self) -> None:
            self.content = b""

        def use(self, kernels: str) -> int:
            """How many kernels had to be compiled."""
            missing = kernels.encode() not in self.content
            self.content += kernels.encode() * missing
            return int(missing)

        def serialize(self) -> Any:
            return memoryview(version.encode() + b"\n" + self.content)

        def deserialize(self, blob: bytes) -> bool:
            made, _, content = blob.partition(b"\n")
            if made != version.encode():
                return False
            self.content = content
            return True

    class Execution:
        def __init__(self, engine: Engine) -> None:
            self.engine, self.addresses = engine, dict[str, int]()
            self.scratch: tuple[int, int] | None = None

        def set_device_memory(self, address: int, size: int) -> None:
            self.scratch = (address, size)

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            self.shape = shape
            return True

        def set_tensor_address(self, name: str, address: int) -> bool:
            self.addresses[name] = address
            return True

        def execute_async_v3(self, handle: int) -> bool:
            gpu.call("execute_async_v3")
            given, made = (
                _view(self.addresses[value.name], (self.shape[0], *value.shape[1:]), value.type)
                for value in (self.engine.session.get_inputs()[0], self.engine.session.get_outputs()[0])
            )
            scratch, name = self.scratch, self.engine.session.get_inputs()[0].name
            assert scratch is not None

            def work() -> None:
                ctypes.memset(scratch[0], 0xFF, scratch[1])
                made[...] = self.engine.session.run(None, {name: given.copy()})[0]

            gpu.streams[handle - 1].put(work)
            return True

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self.logger = logger

        def deserialize_cuda_engine(self, data: bytes) -> Engine | None:
            if data[:4] == b"evil":
                self.logger.log(ILogger.Severity.ERROR, "magic tag does not match")
                return None
            return Engine(data)

    module.ILogger, module.Runtime, module.__version__ = ILogger, Runtime, version  # type: ignore[attr-defined]
    module.TensorIOMode = SimpleNamespace(INPUT="in", OUTPUT="out")  # type: ignore[attr-defined]
    module.ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user managed")  # type: ignore[attr-defined]
    module.nptype = _dtype  # type: ignore[attr-defined]
    return module


def _dtype(name: str) -> Any:
    return {"tensor(float)": np.float32, "tensor(uint8)": np.uint8}[name]


def _view(address: int, shape: tuple[int, ...], kind: str) -> Any:
    dtype = np.dtype(_dtype(kind))
    buffer = (ctypes.c_char * (int(np.prod(shape)) * dtype.itemsize)).from_address(address)
    return np.frombuffer(buffer, dtype).reshape(shape)
