"""What the project uses of TensorRT exists, with these arguments, in every supported version; and the plugins run.

NVIDIA's Python bindings are small packages of their own. Their native libraries are not needed to look
names up: stubs with the handful of symbols that the bindings import are compiled here. ``pytest -s`` prints
how many names were checked. TensorRT-RTX, whose native library is at hand, is checked as it is.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SCRIPT = Path(__file__).with_name("tensorrt_contract.py")
ROOT = Path(__file__).parents[1]
VERSIONS = {
    "10.3.0": "tensorrt-cu12-bindings",
    "10.9.0.34": "tensorrt-cu12-bindings",
    "10.16.0.72": "tensorrt-cu12-bindings",
    "11.0.0.114": "tensorrt-cu13-bindings",
    "11.4.0.106": "tensorrt-cu13-bindings",
}
# The files that talk to TensorRT, and of which class their variables are (a leading "self." and "_" left out).
WORKER, SESSION, LANE, KERNELS, CLASS, EMBEDDED = (
    "export/engine_worker.py",
    "runtime/cuda/session.py",
    "runtime/cuda/lane.py",
    "runtime/cuda/kernel_cache.py",
    "runtime/cuda/plugin_class.py",
    "export/echo/plugin.py",
)
VARIABLES = {
    WORKER: {
        "builder": "Builder",
        "config": "IBuilderConfig",
        "error": "ParserError",
        "network": "INetworkDefinition",
        "parser": "OnnxParser",
        "tensor": "ITensor",
        "runtime": "Runtime",
        "loaded": "ICudaEngine",
        "loaded.create_engine_inspector": "EngineInspector",
        "flags": "NetworkDefinitionCreationFlag",
    },
    SESSION: {"engine": "ICudaEngine", "runtime": "Runtime"},
    LANE: {"engine": "ICudaEngine", "context": "IExecutionContext"},
    KERNELS: {"engine": "ICudaEngine", "config": "IRuntimeConfig", "cache": "IRuntimeCache"},
    CLASS: {"registry": "IPluginRegistry", "types": "PluginFieldType"},
    EMBEDDED: {"trtp": "plugin"},
}
# Below these versions the project does without, and says so where it does.
SINCE = {"NetworkDefinitionCreationFlag.PREFER_AOT_PYTHON_PLUGINS": (10, 9), "plugin": (10, 9)}
RTX_ONLY = ("IBuilderConfig.num_compute_capabilities", "IBuilderConfig.set_compute_capability", "ComputeCapability")
# Names that are the project's own on an object of another class, or are made by Python.
OURS = {"ICudaEngine": ("details", "tensorrt", "compute_capability"), "ILogger": ("last_error", "layers")}
STORAGES = ["HALF", "FLOAT", "BF16"]
SYMBOLS = [
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "getBuilderPluginRegistry",
    "initLibNvInferPlugins",
]


def used(file: str) -> dict[str, list[int]]:
    """Dotted names below the module that a file's source mentions -> numbers of arguments of its calls."""
    tree = ast.parse((ROOT / file).read_text())
    names: dict[str, list[int]] = {}
    for node in ast.walk(tree):
        call = node if isinstance(node, ast.Call) else None
        name, whole = _name(call.func if call else node, VARIABLES[file])
        if name:
            counts = names.setdefault(name, [])
            if call and whole and not any(isinstance(argument, ast.Starred) for argument in call.args):
                counts.append(len(call.args) + len(call.keywords))
    # A longer name covers a shorter one: "Logger.Severity.ERROR" and "Logger.Severity".
    return {name: sorted(set(counts)) for name, counts in names.items()}


def _name(node: ast.AST, variables: dict[str, str]) -> tuple[str, bool]:
    """The name that an expression stands for, and whether nothing follows it; empty where it is not TensorRT's."""
    parts: list[str] = []
    while isinstance(node, (ast.Attribute, ast.Call)):
        if isinstance(node, ast.Call):  # a method of what a call gives
            node = node.func
            continue
        parts.insert(0, node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return "", False
    parts = [part.lstrip("_") for part in ([] if node.id == "self" else [node.id])] + parts
    if len(parts) < 2:
        return "", False
    parts[0] = parts[0].lstrip("_")
    for length in (2, 1):
        kind = variables.get(".".join(parts[:length]))
        if kind is not None and len(parts) > length:
            attribute = parts[length]
            return ("" if attribute in OURS.get(kind, ()) else f"{kind}.{attribute}"), len(parts) == length + 1
    if parts[0] != "trt" or parts[1].startswith("__"):
        return "", False
    return ".".join(part for part in parts[1:] if part not in ("items", "__members__", "__init__", "name")), True


def wanted(
    version: tuple[int, ...], files: tuple[str, ...] = (WORKER, SESSION, LANE, CLASS, EMBEDDED)
) -> dict[str, list[int]]:
    """What must exist in a version of TensorRT."""
    names: dict[str, list[int]] = {}
    for file in files:
        for name, counts in used(file).items():
            if not name.startswith(RTX_ONLY):
                names[name] = sorted({*names.get(name, []), *counts})
    return {
        name: counts
        for name, counts in names.items()
        if all(version >= since for prefix, since in SINCE.items() if name.startswith(prefix))
    }


def short(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


class Bindings:
    """One version's bindings, in processes of their own."""

    def __init__(self, version: str, folder: Path) -> None:
        self.version = version
        self.environment = {**os.environ, "LD_LIBRARY_PATH": str(folder), "PYTHONPATH": str(folder)}

    def use_numpy_1(self) -> Bindings:
        """The same beside numpy 1, for which versions up to 10.9 were compiled."""
        if sys.version_info >= (3, 13):
            pytest.skip("numpy 1 was not made for this Python")
        folder = Path(self.environment["LD_LIBRARY_PATH"])
        other = folder / "numpy-1"
        with zipfile.ZipFile(download("numpy", "1.26.4")) as archive:
            archive.extractall(other)
        made = Bindings(self.version, folder)
        made.environment["PYTHONPATH"] = f"{folder}:{other}"
        return made

    def run(self, *arguments: Any) -> Any:
        what, *rest = arguments
        command = [sys.executable, str(SCRIPT), what, *(json.dumps(argument) for argument in rest)]
        version, answer = answered(command, self.environment)
        assert version == self.version
        return answer


def answered(command: list[str], environment: dict[str, str] | None = None) -> Any:
    """The last line that the script prints; libraries print before it."""
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def download(package: str, version: str) -> Path:
    """A wheel, fetched once; skips where it cannot be."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "echoir", "wheels")
    pattern = f"{package.replace('-', '_')}-{version}-cp3{sys.version_info.minor}-*.whl"
    if not list(cache.glob(pattern)):
        cache.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", cache, f"{package}=={version}"]
        if subprocess.run(command, capture_output=True, timeout=120).returncode:
            pytest.skip(f"{package} {version} cannot be downloaded: offline, or not made for this Python")
    return next(cache.glob(pattern))


@pytest.fixture(scope="module", params=VERSIONS)
def bindings(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bindings:
    version = request.param
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler for the stub libraries")
    archive = download(VERSIONS[version], version)
    folder = tmp_path_factory.mktemp("bindings")
    with zipfile.ZipFile(archive) as wheel:
        wheel.extractall(folder)
    source = folder / "stub.c"
    source.write_text("\n".join(f"void *{symbol}(void) {{ return 0; }}" for symbol in SYMBOLS))
    for library in ("nvinfer", "nvonnxparser", "nvinfer_plugin"):
        target = folder / f"lib{library}.so.{version.split('.')[0]}"
        subprocess.run([compiler, "-shared", "-fPIC", "-o", target, source], check=True)
    return Bindings(version, folder)


@pytest.mark.tensorrt
def test_every_name_exists_and_takes_these_arguments(bindings: Bindings) -> None:
    names = wanted(short(bindings.version))
    assert {"Builder.create_network", "IExecutionContext.execute_async_v3", "IPluginRegistry.get_creator"} <= set(names)
    wrong = bindings.run("look_up", names)
    calls = sum(bool(counts) for counts in names.values())
    print(f"\nTensorRT {bindings.version}: {len(names)} names, {calls} of them called, {len(wrong)} missing or unlike")
    assert not wrong


@pytest.mark.tensorrt
def test_a_name_that_is_gone_and_a_call_that_does_not_fit_are_found(bindings: Bindings) -> None:
    wrong = bindings.run("look_up", {"Builder.build_engine_with_love": [], "IExecutionContext.set_tensor_address": [3]})
    assert set(wrong) == {"Builder.build_engine_with_love", "IExecutionContext.set_tensor_address"}


@pytest.mark.tensorrt
def test_the_embedded_plugin_registers_and_says_how_it_is_launched(bindings: Bindings) -> None:
    if short(bindings.version) < (10, 9):
        pytest.skip("plugins with their kernel in the engine came with 10.9")
    for storage, got in zip(STORAGES, bindings.run("embedded", STORAGES), strict=True):
        assert got["types"] == [storage]
        assert got["shape"] == [1, 16, 60, 100]
        assert got["formats"] == [[kind, "LINEAR"] for kind in (storage, storage, "FLOAT", "FLOAT", storage)]
        sizes = {"grid_x": 2, "grid_y": 8, "grid_z": 1, "block_x": 128, "block_y": 1, "block_z": 1, "shared_mem": 64}
        assert got["launch"] == sizes
        assert got["scalars"] == [30, 50]
        assert got["kernel"] == ["kernel", ".version 8.0\n"]
        assert got["asked"] == [87, 16, 8]  # target, channels of down and of the guide


@pytest.mark.tensorrt
def test_the_plugin_class_registers_survives_serialization_and_launches(bindings: Bindings) -> None:
    if short(bindings.version) < (10, 10):
        bindings = bindings.use_numpy_1()
    for storage, got in zip(STORAGES, bindings.run("classed", STORAGES), strict=True):
        assert got["types"] == [storage]
        assert got["shape"] == [1, 16, 60, 100]
        assert got["supported"] == [True] * 5
        assert not got["refused"]
        assert (got["tactics"], got["workspace"], got["done"]) == ([], 0, 0)
        assert got["identity"] == ["EchoUpsample", "echoir", "1", 1]
        assert got["asked"] == [[1, 16, 30, 50], [1, 8, 60, 100], [storage, storage, "FLOAT"], 1, 0]
        loaded, launched = got["launched"]
        assert loaded == [".version 8.0\n", "kernel"]
        # stream, grid, block, shared memory; four inputs, h and w, the output
        assert launched == [77, [2, 8, 1], [128, 1, 1], 64, [1, 2, 3, 4, 30, 50, 5]]


@pytest.mark.tensorrt
def test_bindings_made_for_numpy_1_are_found_out(bindings: Bindings) -> None:
    """Up to 10.9 they read arrays of numpy 2 as their first number over and over."""
    assert bindings.run("reads_fields") is (short(bindings.version) >= (10, 10) or np.__version__ < "2")


@pytest.mark.tensorrt
def test_polygraphy_configures_the_builder_of_this_version(bindings: Bindings) -> None:
    if find_spec("polygraphy") is None:
        pytest.skip("needs Polygraphy (pip install '.[rtx]')")
    log = bindings.run("configured")
    for needed in ("clear_flag", "set_memory_pool_limit", "builder_optimization_level = 4", "set_timing_cache"):
        assert any(entry.startswith(needed) for entry in log), (needed, log)
    assert any(entry.startswith("hardware_compatibility_level") for entry in log)
    assert any(entry.startswith("progress_monitor") for entry in log)
    assert log.count("set_shape") == 1


@pytest.mark.tensorrt
@pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="needs pip install '.[rtx]'")
def test_tensorrt_rtx_has_every_name_of_worker_and_session() -> None:
    names = wanted((99,), (WORKER, SESSION, LANE, KERNELS)) | {name: [] for name in RTX_ONLY}
    names = {name: counts for name, counts in names.items() if not name.startswith(tuple(SINCE))}
    code = (
        "import runpy, sys, tensorrt_rtx; sys.modules['tensorrt_bindings'] = tensorrt_rtx; "
        f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    )
    version, wrong = answered([sys.executable, "-c", code, "look_up", json.dumps(names)])
    assert {"IRuntimeConfig.create_runtime_cache", "IRuntimeCache.deserialize"} <= set(names)
    print(f"\nTensorRT-RTX {version}: {len(names)} names, {len(wrong)} missing or unlike")
    assert not wrong
