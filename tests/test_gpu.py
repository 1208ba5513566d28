"""What only a GPU can show: the session, its graphs and the compiled kernels on real CUDA; engines where TensorRT is.

Marked gpu, and skipped without a CUDA device or PyCUDA. What can be pretended (tests/fake_gpu.py) runs on any machine
too, under the name ``pretended``: then it shows that the test works. TensorRT is not needed: PyTorch runs in its place
(tests/torch_engine.py). ``bash benchmarks/gpu.sh checks`` runs these with all else that waits for a GPU.

Lines of JSON that tests print are figures; see ``benchmarks/gpu.py``.
"""

from __future__ import annotations

import copy
import ctypes
import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import fake_gpu
import numpy as np
import pytest
from builders import Io, make_manifest

from echoir.export.echo.plugin_code import for_class
from echoir.export.engine import EngineOptions, EngineTarget, build_engine
from echoir.runtime.artifact import Artifact, write_artifact
from echoir.runtime.cuda.driver import BLOCK, Memory, cuda, grid
from echoir.runtime.cuda.plugin_class import DriverKernel
from echoir.runtime.errors import BackendError
from echoir.runtime.manifest import Engine, Model
from echoir.runtime.restorer import Restorer
from echoir.runtime.tiling import reflect

torch = pytest.importorskip("torch")

import torch_engine  # noqa: E402 - needs torch

from echoir.checkpoint import load_checkpoint  # noqa: E402
from echoir.export.reference import PyTorchSession  # noqa: E402
from echoir.networks.upsampler import echo_upsample  # noqa: E402

Array = np.ndarray[Any, np.dtype[Any]]
TARGETS: tuple[tuple[EngineTarget, str], ...] = (("tensorrt", "tensorrt"), ("tensorrt-rtx", "tensorrt_rtx"))


class Device:
    """Where a test runs: on the GPU, or on the pretended one.

    Attributes:
        real: whether it is a GPU.
        place: for engines.
    """

    def __init__(self, kernels: ctypes.CDLL | None) -> None:
        self.real = kernels is None
        self._gpu = None if kernels is None else fake_gpu.Gpu(kernels)
        self.place = torch_engine.OnCuda() if self._gpu is None else torch_engine.Pretended(self._gpu)

    def installed(self) -> Any:
        """The pretended driver, if it is one."""
        return nullcontext() if self._gpu is None else fake_gpu.installed(self._gpu, ModuleType("tensorrt"))

    @contextmanager
    def engine(self, function: torch_engine.Function, folder: Path, **options: Any) -> Iterator[Restorer]:
        """A restorer whose engine is this function; ``options`` go to :func:`torch_engine.artifact`."""
        engine = torch_engine.artifact(folder, **options)
        library = torch_engine.library(self.place, function, engine)
        with pytest.MonkeyPatch.context() as patched:
            # Not patch.dict, which forgets every module imported inside: Triton cannot be imported twice.
            patched.setitem(sys.modules, "tensorrt", library)
            with Restorer.open(engine.model_path) as restorer:
                yield restorer
                with restorer.session._lane(options["batch"] or restorer.batch) as lane:  # type: ignore[attr-defined]
                    assert lane.graphed, f"no CUDA graph of the engine's run: {library.reason}"


class Host:
    """The same function on the processor, as a session that leaves tiles to the host."""

    def __init__(self, function: torch_engine.Function) -> None:
        self._function = function

    def run(self, tiles: Array) -> Array:
        with torch.inference_mode():
            made: Array = self._function(torch.from_numpy(np.ascontiguousarray(tiles))).contiguous().numpy()
            return made

    def close(self) -> None: ...

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *exception: object) -> None: ...


@pytest.fixture(params=["pretended", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    if request.param == "cuda":
        need_cuda()
    made = Device(None if request.param == "cuda" else request.getfixturevalue("kernels"))
    with made.installed():
        yield made


def need_cuda() -> None:
    try:
        cuda()
    except BackendError as error:
        pytest.skip(str(error))


def picture(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> Array:
    if dtype == np.float32:
        return rng.random(shape, np.float32)
    return rng.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def test_the_compiled_kernels_load_and_cut_a_tile(device: Device, rng: np.random.Generator) -> None:
    image = rng.integers(0, 256, (9, 20, 3), np.uint8)
    tile = np.empty((1, 3, 16, 32), np.float32)
    here = cuda()
    with here.current():
        memory, stream = Memory(here), here.stream()
        given, starts, made = memory.copy(image), memory.copy(np.int32([0])), memory.take(tile.nbytes)
        arguments = (given, 0, 3, 20, 9, 0, 9, starts, 0, 0, 1, 20, made, 16, 32, 3, 0, 0)
        here.kernels()["cut"].prepared_async_call(grid(32, 16), BLOCK, stream, *arguments)
        here.driver.memcpy_dtoh_async(tile, made, stream)
        stream.synchronize()
        memory.free()
    wanted = image[reflect(9, 16)][:, reflect(20, 32)].transpose(2, 0, 1) / np.float32(255)
    np.testing.assert_array_equal(tile[0], wanted)


@pytest.mark.parametrize("batch", [None, 1, 3])
@pytest.mark.parametrize("io", ["float", "uint8"])
def test_images_are_those_of_the_host_to_the_bit(
    device: Device, io: Io, batch: int | None, tmp_path: Path, rng: np.random.Generator
) -> None:
    def function(x: torch.Tensor) -> torch.Tensor:  # exact, or rounded alike everywhere
        return 255 - x if io == "uint8" else x * 0.75 + 0.125

    sizes = [(1, 1), (9, 50), (70, 33), (16, 24), (241, 315)]
    shapes = [*sizes, *((*size, 3) for size in sizes)]
    with device.engine(function, tmp_path, io=io, tile=(16, 24), overlap=4, batch=batch) as restorer:
        host = Restorer(Host(function), restorer.manifest)
        for shape in shapes:
            for dtype in (np.uint8,) if io == "uint8" else (np.uint8, np.uint16, np.float32):
                image = picture(rng, shape, dtype)
                for _ in range(2):  # the second through the first one's buffers
                    np.testing.assert_array_equal(restorer(image), host(image), f"{shape} {dtype}")


@pytest.mark.parametrize("io", ["float", "uint8"])
def test_a_frame_through_the_network_is_the_hosts_within_a_code(
    device: Device, io: Io, tmp_path: Path, rng: np.random.Generator
) -> None:
    height, width, tile = (1080, 1920, 256) if device.real else (50, 90, 48)
    frame = rng.integers(0, 256, (height, width, 3), np.uint8)
    network = load_checkpoint("denoise").network
    host = Restorer(PyTorchSession(network, io=io), make_manifest(io=io, tile=(tile, tile), overlap=16, batch=2))
    wanted = host(frame)
    there = copy.deepcopy(network).to("cuda" if device.real else "cpu")
    options: dict[str, Any] = {"io": io, "tile": (tile, tile), "overlap": 16, "batch": 2}
    with without_tf32(), device.engine(torch_engine.as_engine(there, io), tmp_path, **options) as restorer:
        restored = [restorer(frame) for _ in range(3)]
        with ThreadPoolExecutor(2) as pool:
            restored += pool.map(restorer, [frame] * 4)
    difference = np.abs(restored[0].astype(int) - wanted)
    share = float((difference > 0).mean())
    figure("session", io=io, frame=[height, width], largest_code_error=int(difference.max()), pixels_off=share)
    assert difference.max() <= 1
    assert share < 0.01
    for again in restored[1:]:
        np.testing.assert_array_equal(again, restored[0])


@pytest.mark.gpu
@pytest.mark.skipif(find_spec("triton") is None, reason="needs pip install '.[kernel]'")
@pytest.mark.parametrize("plane", [(30, 50), (271, 477)])
@pytest.mark.parametrize(("storage", "tolerance"), [("HALF", 2e-3), ("FLOAT", 1e-5)])
def test_the_plugins_code_launched_by_the_driver_equals_the_reference(
    rng: np.random.Generator, storage: str, tolerance: float, plane: tuple[int, int]
) -> None:
    need_cuda()
    here, (height, width) = cuda(), plane
    dtype = np.dtype(np.float16 if storage == "HALF" else np.float32)
    shapes = (2, 16, height, width), (2, 8, 2 * height, 2 * width)
    down, guide = (rng.standard_normal(shape).astype(dtype) for shape in shapes)
    kinds = (SimpleNamespace(name=storage), SimpleNamespace(name=storage), SimpleNamespace(name="FLOAT"))
    code = for_class(here.compute_capability)(down.shape, guide.shape, kinds, 1, 0)
    output = np.full((2, 16, 2 * height, 2 * width), np.nan, dtype)
    with here.current():
        memory, stream = Memory(here), here.stream()
        inputs = [memory.copy(value) for value in (down, guide, np.float32([0.8]), np.float32([2.0]))]
        made = memory.copy(output)
        arguments = (*map(ctypes.c_void_p, inputs), ctypes.c_int(height), ctypes.c_int(width), ctypes.c_void_p(made))
        kernel = DriverKernel(code.ptx, code.name)
        blocks = code.grid(2, height, width)
        assert kernel.launch(stream.handle, blocks, (code.threads, 1, 1), code.shared, arguments) == 0
        here.driver.memcpy_dtoh_async(output, made, stream)
        stream.synchronize()
        memory.free()
    wanted = echo_upsample(*(torch.from_numpy(value).double() for value in (down, guide)), 0.8, 2.0, 1, "sum").numpy()
    figure("plugin", storage=storage, plane=plane, largest_error=float(np.abs(output - wanted).max()))
    np.testing.assert_allclose(output.astype(np.float64), wanted, rtol=tolerance, atol=tolerance)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The shipped denoiser in float32."""
    from echoir.export.pipeline import export_artifact
    from echoir.export.request import Request

    folder = tmp_path_factory.mktemp("gpu") / "denoise"
    return export_artifact(Request(precision="fp32", targets=("onnx",), limit=1, output=folder)).artifacts[0]


@pytest.mark.gpu
@pytest.mark.parametrize(("target", "module"), TARGETS)
@pytest.mark.parametrize("plugin", [True, False])
def test_an_engine_restores_what_onnx_runtime_restores(
    request: pytest.FixtureRequest, target: EngineTarget, module: str, plugin: bool, rng: np.random.Generator
) -> None:
    need_cuda()
    if find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    if plugin and target == "tensorrt-rtx":
        pytest.skip("TensorRT-RTX takes no plugins")
    source: Artifact = request.getfixturevalue("source")  # made only where something can be built from it
    path = source.model_path.with_name(f"{target}-{plugin}.engine")
    info = build_engine(source.model_path, path, target=target, options=EngineOptions(plugin=plugin))
    record = Engine(info.version, info.compute_capabilities, info.seconds, info.gpu, info.driver, info.details)
    manifest = replace(source.manifest, name=path.stem, model=Model(target), engine=record, parity=None)
    engine = write_artifact(replace(manifest, onnx_sha256=source.manifest.model.sha256), path)
    image: Any = rng.integers(0, 256, (600, 700, 3), np.uint8)
    with Restorer.open(source.model_path) as host, Restorer.open(engine.model_path) as restorer:
        wanted = host(image)
        for _ in range(3):
            restored = restorer(image)
            assert np.abs(restored.astype(int) - wanted).max() <= 1
        with restorer.session._lane(1) as lane:  # type: ignore[attr-defined]
            assert lane.graphed
    assert Path(path).stat().st_size == info.bytes


def figure(name: str, **values: Any) -> None:
    """Print a figure as a line of JSON."""
    print(json.dumps({"figure": name, **values}), flush=True)


@contextmanager
def without_tf32() -> Iterator[None]:
    """Convolutions in float32, which cuDNN may otherwise round to 10 bits of mantissa."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield
