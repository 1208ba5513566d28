"""Every TensorRT name that the engine worker uses exists in the oldest and the newest supported version.

NVIDIA's Python bindings are small packages of their own. Their native libraries are not needed to look
names up: stubs with the handful of symbols that the bindings import are compiled here.
"""

from __future__ import annotations

import ast
import inspect
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from echoir.export import engine_worker

VERSIONS = {"10.3.0": "tensorrt-cu12-bindings", "11.4.0.106": "tensorrt-cu13-bindings"}

# What the worker's variables are; its attributes are read off its source.
CLASSES = {
    "builder": "Builder",
    "config": "IBuilderConfig",
    "error": "ParserError",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "profile": "IOptimizationProfile",
    "tensor": "ITensor",
}
RTX_ONLY = {"IBuilderConfig.num_compute_capabilities", "IBuilderConfig.set_compute_capability", "ComputeCapability"}
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
LOOK_UP = """
import functools, json, sys
import tensorrt_bindings as trt
names = json.loads(sys.argv[1])
missing = []
for name in names:
    try:
        functools.reduce(getattr, name.split("."), trt)
    except AttributeError:
        missing.append(name)
print(json.dumps([trt.__version__, missing]))
"""


def names_used() -> set[str]:
    """Dotted names, below the module, that the worker's source mentions."""
    names = set()
    for node in ast.walk(ast.parse(inspect.getsource(engine_worker))):
        parts: list[str] = []
        at: ast.expr | ast.AST = node
        while isinstance(at, ast.Attribute):
            parts.insert(0, at.attr)
            at = at.value
        if not parts or not isinstance(at, ast.Name):
            continue
        if at.id == "trt" and not parts[0].startswith("__") and parts[-1] not in ("items", "__init__"):
            names.add(".".join(parts))
        elif at.id in CLASSES:
            names.add(f"{CLASSES[at.id]}.{parts[0]}")
    return {name for name in names if not any(name.startswith(only) for only in RTX_ONLY)}


@pytest.fixture(scope="module", params=VERSIONS)
def bindings(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, str]]:
    """A version, and the environment in which its bindings import."""
    version = request.param
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler for the stub libraries")
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"), "echoir", "tensorrt-bindings")
    package = VERSIONS[version]
    pattern = f"{package.replace('-', '_')}-{version}-cp3{sys.version_info.minor}-*.whl"
    if not list(cache.glob(pattern)):
        cache.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", cache, f"{package}=={version}"]
        if subprocess.run(command, capture_output=True, timeout=120).returncode:
            pytest.skip(f"{package} {version} cannot be downloaded: offline, or not made for this Python")
    folder = tmp_path_factory.mktemp("bindings")
    with zipfile.ZipFile(next(cache.glob(pattern))) as wheel:
        wheel.extractall(folder)
    source = folder / "stub.c"
    source.write_text("\n".join(f"void *{symbol}(void) {{ return 0; }}" for symbol in SYMBOLS))
    for library in ("nvinfer", "nvonnxparser", "nvinfer_plugin"):
        target = folder / f"lib{library}.so.{version.split('.')[0]}"
        subprocess.run([compiler, "-shared", "-fPIC", "-o", target, source], check=True)
    return version, {**os.environ, "LD_LIBRARY_PATH": str(folder), "PYTHONPATH": str(folder)}


@pytest.mark.tensorrt
def test_every_name_exists(bindings: tuple[str, dict[str, str]]) -> None:
    version, environment = bindings
    names = names_used()
    assert {"Builder.build_serialized_network", "NetworkDefinitionCreationFlag.STRONGLY_TYPED"} <= names
    command = [sys.executable, "-c", LOOK_UP, json.dumps(sorted(names))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [version, []]
