"""What only a GPU can show: the session, its graphs and the compiled kernels on real CUDA; engines where TensorRT is.

Skipped without a CUDA device or PyCUDA. ``bash benchmarks/gpu.sh`` runs these with all else that waits for a GPU.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from echoir.export.echo.plugin_code import for_class
from echoir.export.engine import EngineOptions, EngineTarget, build_engine
from echoir.runtime.artifact import Artifact, write_artifact
from echoir.runtime.cuda.driver import BLOCK, Cuda, Memory, cuda, grid
from echoir.runtime.cuda.plugin_class import DriverKernel
from echoir.runtime.errors import BackendError
from echoir.runtime.manifest import Engine, Model
from echoir.runtime.restorer import Restorer
from echoir.runtime.tiling import reflect

pytestmark = pytest.mark.gpu
TARGETS: tuple[tuple[EngineTarget, str], ...] = (("tensorrt", "tensorrt"), ("tensorrt-rtx", "tensorrt_rtx"))


@pytest.fixture(scope="module")
def device() -> Iterator[Cuda]:
    try:
        yield cuda()
    except BackendError as error:
        pytest.skip(str(error))


def test_the_compiled_kernels_load_and_cut_a_tile(device: Cuda, rng: np.random.Generator) -> None:
    image = rng.integers(0, 256, (9, 20, 3), np.uint8)
    tile = np.empty((1, 3, 16, 32), np.float32)
    with device.current():
        memory, stream = Memory(device), device.stream()
        given, starts, made = memory.copy(image), memory.copy(np.int32([0])), memory.take(tile.nbytes)
        arguments = (given, 0, 3, 20, 9, 0, 9, starts, 0, 0, 20, made, 16, 32, 0, 0)
        device.kernels()["cut"].prepared_async_call(grid(32, 16), BLOCK, stream, *arguments)
        device.driver.memcpy_dtoh_async(tile, made, stream)
        stream.synchronize()
        memory.free()
    wanted = image[reflect(9, 16)][:, reflect(20, 32)].transpose(2, 0, 1) / np.float32(255)
    np.testing.assert_array_equal(tile[0], wanted)


@pytest.mark.skipif(find_spec("triton") is None, reason="needs pip install 'echoir[kernel]'")
@pytest.mark.parametrize(("storage", "tolerance"), [("HALF", 2e-3), ("FLOAT", 1e-5)])
def test_the_plugins_code_launched_by_the_driver_equals_the_reference(
    device: Cuda, rng: np.random.Generator, storage: str, tolerance: float
) -> None:
    torch = pytest.importorskip("torch")
    from types import SimpleNamespace

    from echoir.networks.upsampler import echo_upsample

    dtype = np.dtype(np.float16 if storage == "HALF" else np.float32)
    down, guide = (rng.standard_normal(shape).astype(dtype) for shape in ((2, 16, 30, 50), (2, 8, 60, 100)))
    kinds = (SimpleNamespace(name=storage), SimpleNamespace(name=storage), SimpleNamespace(name="FLOAT"))
    code = for_class(device.compute_capability)(down.shape, guide.shape, kinds, 1, 0)
    output = np.empty((2, 16, 60, 100), dtype)
    with device.current():
        memory, stream = Memory(device), device.stream()
        inputs = [memory.copy(value) for value in (down, guide, np.float32([0.8]), np.float32([2.0]))]
        made = memory.take(output.nbytes)
        arguments = (*map(ctypes.c_void_p, inputs), ctypes.c_int(30), ctypes.c_int(50), ctypes.c_void_p(made))
        kernel = DriverKernel(code.ptx, code.name)
        assert kernel.launch(stream.handle, code.grid(2, 30, 50), (code.threads, 1, 1), code.shared, arguments) == 0
        device.driver.memcpy_dtoh_async(output, made, stream)
        stream.synchronize()
        memory.free()
    wanted = echo_upsample(*(torch.from_numpy(value).double() for value in (down, guide)), 0.8, 2.0, 1, "sum")
    np.testing.assert_allclose(output.astype(np.float64), wanted.numpy(), rtol=tolerance, atol=tolerance)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The shipped denoiser in float32."""
    from echoir.export.pipeline import Request, export_artifact

    folder = tmp_path_factory.mktemp("gpu") / "denoise"
    return export_artifact(Request(precision="fp32", targets=("onnx",), limit=1, output=folder)).artifacts[0]


@pytest.mark.parametrize(("target", "module"), TARGETS)
@pytest.mark.parametrize("plugin", [True, False])
def test_an_engine_restores_what_onnx_runtime_restores(
    device: Cuda, source: Artifact, target: EngineTarget, module: str, plugin: bool, rng: np.random.Generator
) -> None:
    if find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    if plugin and target == "tensorrt-rtx":
        pytest.skip("TensorRT-RTX takes no plugins")
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
