"""PyTorch in the place of TensorRT: an "engine" that runs a function of tensors where TensorRT would run one.

What the session does with the library (contexts, addresses, a stream, graphs) it does with this. On a GPU the
memory, the streams and the graphs are real, and the function is enqueued by PyTorch; on the pretended GPU of
fake_gpu.py the very same calls are made, and the function runs on the processor.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Protocol

import fake_gpu
import numpy as np
import torch
from builders import Io, make_manifest
from torch import Tensor

from echoir.runtime.artifact import Artifact, write_artifact
from echoir.runtime.cuda.driver import cuda
from echoir.runtime.manifest import Engine, Model

Function = Callable[[Tensor], Tensor]
VERSION = "10.9.0"


class Place(Protocol):
    """Where an engine's memory and streams are."""

    def tensor(self, address: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Tensor:
        """The memory at an address as a tensor."""

    def enqueue(self, stream: int, work: Callable[[], Any]) -> None:
        """Put work into the stream of this handle."""


class OnCuda:
    """The GPU, through PyTorch. Intermediate tensors live in a pool of this object's, so that graphs may keep them."""

    _kept: list[Any] = []  # noqa: RUF012 - a pool that is freed while another object captures ends the process

    def __init__(self) -> None:
        self._pool = torch.cuda.MemPool()
        self._kept.append(self._pool)
        self._lock = threading.Lock()

    def tensor(self, address: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Tensor:
        described = {"shape": shape, "typestr": dtype.str, "data": (address, False), "version": 3}
        return torch.as_tensor(SimpleNamespace(__cuda_array_interface__=described), device="cuda")

    def enqueue(self, stream: int, work: Callable[[], Any]) -> None:
        there = torch.cuda.stream(torch.cuda.ExternalStream(stream))
        with self._lock, there, torch.cuda.use_mem_pool(self._pool), torch.inference_mode():
            work()


class Pretended:
    """The pretended GPU: work waits in its stream until the GPU runs it."""

    def __init__(self, gpu: fake_gpu.Gpu) -> None:
        self._gpu = gpu

    def tensor(self, address: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Tensor:
        size = int(np.prod(shape)) * dtype.itemsize
        return torch.frombuffer((ctypes.c_char * size).from_address(address), dtype=_torch(dtype)).view(shape)

    def enqueue(self, stream: int, work: Callable[[], Any]) -> None:
        self._gpu.call("execute_async_v3")

        def run() -> None:
            with torch.inference_mode():
                work()

        self._gpu.streams[stream - 1].put(run)


def artifact(folder: Path, *, io: Io = "float", tile: tuple[int, int], overlap: int, batch: int | None) -> Artifact:
    """An engine's artifact for the device that is here; the file holds nothing."""
    here = cuda()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "torch.engine"
    path.write_bytes(b"PyTorch runs in its place")
    engine = Engine(VERSION, (here.compute_capability,), 0.0, here.name)
    record: dict[str, Any] = {"model": Model("tensorrt"), "engine": engine, "onnx_sha256": "0" * 64}
    return write_artifact(make_manifest(io=io, tile=tile, overlap=overlap, batch=batch, **record), path)


def library(place: Place, function: Function, engine: Artifact, largest: int = 4) -> ModuleType:
    """A module ``tensorrt`` whose every engine is ``function``, on tensors of the manifest's layout and type.

    Args:
        largest: batch, where the manifest leaves it open.
    """
    module = ModuleType("tensorrt")
    module.__spec__ = ModuleSpec("tensorrt", None)  # PyTorch looks for it while it compiles
    manifest = engine.manifest
    specs = {spec.name: spec for spec in (manifest.input, manifest.output)}

    def shape(name: str, count: int) -> tuple[int, ...]:
        return manifest.shape("input" if name == manifest.input.name else "output", count)

    class Context:
        def __init__(self) -> None:
            self._addresses: dict[str, int] = {}
            self._tensors: dict[tuple[str, int], Tensor] = {}
            self._count = 0

        def set_device_memory(self, address: int, size: int) -> None: ...

        def set_input_shape(self, name: str, given: tuple[int, ...]) -> bool:
            self._count = given[0]
            return tuple(given) == shape(name, given[0])

        def set_tensor_address(self, name: str, address: int) -> bool:
            self._addresses[name] = address
            if (name, address) not in self._tensors:
                spec = specs[name]
                self._tensors[name, address] = place.tensor(address, shape(name, self._count), np.dtype(spec.dtype))
            return True

        def execute_async_v3(self, stream: int) -> bool:
            given, made = (self._tensors[name, self._addresses[name]] for name in specs)
            try:
                place.enqueue(stream, lambda: made.copy_(function(given)))
            except RuntimeError as error:  # the session goes on without a graph; who looks for one finds why
                module.reason = str(error)  # type: ignore[attr-defined]
                return False
            return True

    class Loaded:
        device_memory_size_v2 = 1000
        num_io_tensors = 2

        def get_tensor_name(self, index: int) -> str:
            return list(specs)[index]

        def get_tensor_mode(self, name: str) -> str:
            return "in" if name == manifest.input.name else "out"

        def get_tensor_dtype(self, name: str) -> str:
            return specs[name].dtype

        def get_tensor_shape(self, name: str) -> list[int]:
            count, *rest = shape(name, manifest.tile.batch or 0)
            return [count or -1, *rest]

        def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
            return [shape(name, count) for count in (1, 1, largest)]

        def create_execution_context(self, making: str) -> Context:
            return Context()

    class Runtime:
        def __init__(self, logger: Any) -> None: ...

        def deserialize_cuda_engine(self, data: bytes) -> Loaded:
            return Loaded()

    class ILogger:
        Severity = SimpleNamespace(ERROR=1, INTERNAL_ERROR=0, WARNING=2)

    parts: dict[str, Any] = {
        "ILogger": ILogger,
        "Runtime": Runtime,
        "__version__": VERSION,
        "TensorIOMode": SimpleNamespace(INPUT="in", OUTPUT="out"),
        "ExecutionContextAllocationStrategy": SimpleNamespace(USER_MANAGED="user managed"),
        "nptype": np.dtype,
        "reason": None,
    }
    module.__dict__.update(parts)
    return module


def put(module: ModuleType) -> None:
    """Let the session find this library; tests undo it with ``monkeypatch``."""
    sys.modules["tensorrt"] = module


def as_engine(network: Function, io: Io) -> Function:
    """What an artifact of this ``io`` computes: 8-bit pixels are divided by 255 before, clipped and rounded after."""

    def run(batch: Tensor) -> Tensor:
        if io == "float":
            return network(batch)
        restored = network(batch.permute(0, 3, 1, 2).float() / 255)
        return restored.clamp(0, 1).mul(255).round().to(torch.uint8).permute(0, 2, 3, 1)

    return run


def _torch(dtype: np.dtype[Any]) -> torch.dtype:
    return {"float32": torch.float32, "uint8": torch.uint8}[dtype.name]
