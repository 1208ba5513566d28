"""ONNX to engine, by TensorRT or TensorRT-RTX, in a process of its own.

Both libraries can abort their process: a registered plugin that TensorRT-RTX dislikes, an internal
assertion, memory. The build therefore runs in ``python -m echoir.export.engine_worker``, and an
abort becomes an error with the last lines of its log. One code path serves both; the module's name
is all that differs. TensorRT-RTX compiles for GPUs that are not there; TensorRT builds on the GPU
that will run the engine.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from echoir.runtime.errors import BackendError, MissingExtraError
from echoir.runtime.files import atomic_write

EngineTarget = Literal["tensorrt", "tensorrt-rtx"]
MODULES: dict[EngineTarget, tuple[str, str]] = {  # import name, extra
    "tensorrt": ("tensorrt", "tensorrt"),
    "tensorrt-rtx": ("tensorrt_rtx", "rtx"),
}
# What TensorRT-RTX 1.7 can compile for. Turing, "7.5", has to be asked for: it knows no float32
# matrix product there, so the attention of this network does not compile.
RTX_CAPABILITIES = ("8.0", "8.6", "8.9", "12.0", "12.1")
LOG_LINES = 15


@dataclass(frozen=True)
class EngineInfo:
    """What was built.

    Attributes:
        version: of the library.
        compute_capabilities: that the engine is for, e.g. ``("8.9",)``.
        seconds: parsing and building took.
        bytes: of the engine.
        gpu, driver: of the machine it was built on; None for TensorRT-RTX, which needs none.
    """

    version: str
    compute_capabilities: tuple[str, ...]
    seconds: float
    bytes: int
    gpu: str | None = None
    driver: str | None = None


def build_engine(
    onnx_path: str | Path,
    engine_path: str | Path,
    *,
    target: EngineTarget,
    compute_capabilities: Sequence[str] = (),
    batches: tuple[int, int, int] = (1, 1, 8),
    timeout: float | None = None,
) -> EngineInfo:
    """Build a strongly typed engine from an ONNX file.

    Args:
        onnx_path: as :func:`echoir.export.onnx_export.export_onnx` writes it.
        engine_path: appears whole or not at all.
        target: ``"tensorrt-rtx"`` or ``"tensorrt"``.
        compute_capabilities: GPUs the engine is for, e.g. ``["8.6", "8.9"]``. Empty: all of
            ``RTX_CAPABILITIES`` for TensorRT-RTX. TensorRT accepts that of this machine's GPU only.
        batches: smallest, usual and largest number of images per run, where the file leaves it open.
        timeout: seconds after which the build is given up.

    Raises:
        MissingExtraError: the library is not installed.
        BackendError: no GPU for TensorRT, a node the library refuses, a build that fails, aborts or
            takes too long; the message names the cause.
        ImageError: the engine cannot be written.
    """
    module, extra = MODULES[target]
    if find_spec(module) is None:
        raise MissingExtraError(module, extra)
    wanted = list(compute_capabilities or (RTX_CAPABILITIES if target == "tensorrt-rtx" else ()))
    with atomic_write(engine_path) as engine, tempfile.TemporaryDirectory(prefix="echoir-engine-") as scratch:
        answer = Path(scratch) / "answer.json"
        request = {
            "module": module,
            "onnx": str(Path(onnx_path).absolute()),
            "engine": str(engine.absolute()),
            "answer": str(answer),
            "compute_capabilities": wanted,
            "batches": batches,
        }
        result = _run(request, target, answer, Path(onnx_path), timeout)
        return EngineInfo(
            version=result["version"],
            compute_capabilities=tuple(result["compute_capabilities"]),
            seconds=result["seconds"],
            bytes=engine.stat().st_size,
            gpu=result["gpu"],
            driver=result["driver"],
        )


def _run(request: dict[str, Any], target: str, answer: Path, source: Path, timeout: float | None) -> dict[str, Any]:
    command = [sys.executable, "-m", "echoir.export.engine_worker", json.dumps(request)]
    try:
        process = subprocess.run(
            command,
            cwd=answer.parent,  # "-m" looks into the working folder first, which may hold an "echoir" of its own
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=timeout,
        )
    except subprocess.TimeoutExpired as error:
        raise BackendError(f"{target} did not finish {source.name} within {timeout:g} s") from error
    result: dict[str, Any] = json.loads(answer.read_text()) if answer.exists() else {}
    if process.returncode == 0 and "seconds" in result:
        return result
    if "error" in result:
        raise BackendError(f"{target} could not build {source.name}: {result['error']}")
    tail = "\n".join(f"  {line}" for line in process.stdout.strip().splitlines()[-LOG_LINES:])
    raise BackendError(f"{target} {_ending(process.returncode)} while building {source.name}; its last words:\n{tail}")


def _ending(code: int) -> str:
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
