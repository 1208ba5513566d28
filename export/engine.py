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
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from echoir.export.engine_worker import PROGRESS
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
class EngineOptions:
    """How an engine is built.

    Attributes:
        plugin: True: a network's own operators by their plugins, or no engine. False: by ONNX functions. None: by
            plugins where they can be made. TensorRT-RTX takes no plugins and ignores this.
        optimization_level: 0 to 5; None takes the builder's own, 3. Higher builds longer.
        workspace: memory that a layer may take at most, in MiB; None: all of the device's.
        version_compatible: the engine also loads in later versions of its major version (10.x, 11.x).
            It runs in TensorRT's lean runtime, grows by that runtime (tens of MB) and may be slower;
            operators are functions then.
        hardware_compatible: the engine also runs on later GPUs than this machine's, from compute
            capability 8.0 up. It may be slower, since it can use only what Ampere has.
    """

    plugin: bool | None = None
    optimization_level: int | None = None
    workspace: int | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False


@dataclass(frozen=True)
class EngineInfo:
    """What was built.

    Attributes:
        version: of the library.
        compute_capabilities: that the engine is for, e.g. ``("8.9",)``.
        seconds: parsing and building took.
        bytes: of the engine.
        gpu, driver: of the machine it was built on; None for TensorRT-RTX, which needs none.
        details: the options; ``upsampler`` (``"plugin"``, or ``"function"`` and why); ``layers``, how
            many run a kernel; ``precisions``, what types they read.
    """

    version: str
    compute_capabilities: tuple[str, ...]
    seconds: float
    bytes: int
    gpu: str | None = None
    driver: str | None = None
    details: dict[str, Any] = field(default_factory=dict)


def build_engine(
    onnx_path: str | Path,
    engine_path: str | Path,
    *,
    target: EngineTarget,
    compute_capabilities: Sequence[str] = (),
    batches: tuple[int, int, int] = (1, 1, 8),
    options: EngineOptions | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> EngineInfo:
    """Build a strongly typed engine from an ONNX file.

    Args:
        onnx_path: as :func:`echoir.export.typed.export_onnx` writes it.
        engine_path: appears whole or not at all.
        target: ``"tensorrt-rtx"`` or ``"tensorrt"``.
        compute_capabilities: GPUs the engine is for, e.g. ``["8.6", "8.9"]``. Empty: all of
            ``RTX_CAPABILITIES`` for TensorRT-RTX. TensorRT accepts that of this machine's GPU only.
        batches: smallest, usual and largest number of images per run, where the file leaves it open.
        options: how; None takes the defaults.
        on_progress: told how much is done, in percent.

    Raises:
        MissingExtraError: the library is not installed.
        BackendError: no GPU for TensorRT, a node the library refuses, a layer that runs in another
            type than the graph says, a build that fails or aborts; the message names
            the cause.
        ImageError: the engine cannot be written.
    """
    require_builder(target)
    module, _ = MODULES[target]
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
            "options": asdict(options or EngineOptions()),
        }
        result = _run(request, target, answer, Path(onnx_path), on_progress)
        return EngineInfo(
            version=result["version"],
            compute_capabilities=tuple(result["compute_capabilities"]),
            seconds=result["seconds"],
            bytes=engine.stat().st_size,
            gpu=result["gpu"],
            driver=result["driver"],
            details=result["details"],
        )


def require_builder(target: EngineTarget) -> None:
    """Find out that a library is missing before minutes of work.

    Raises:
        MissingExtraError: it is not installed.
    """
    for package, extra in (MODULES[target], ("onnx", "build"), ("polygraphy", "build")):
        if find_spec(package) is None:
            raise MissingExtraError(package, extra)


def _run(
    request: dict[str, Any],
    target: str,
    answer: Path,
    source: Path,
    on_progress: Callable[[int], None] | None,
) -> dict[str, Any]:
    command = [sys.executable, "-m", "echoir.export.engine_worker", json.dumps(request)]
    process = subprocess.Popen(
        command,
        cwd=answer.parent,  # "-m" looks into the working folder first, which may hold an "echoir" of its own
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    words: list[str] = []
    with process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if not line.startswith(PROGRESS):
                    words.append(line.rstrip())
                elif on_progress is not None:
                    on_progress(int(line.removeprefix(PROGRESS)))
        except BaseException:
            process.kill()
            raise
    result: dict[str, Any] = json.loads(answer.read_text()) if answer.exists() else {}
    if process.returncode == 0 and "seconds" in result:
        return result
    if "error" in result:
        raise BackendError(f"{target} could not build {source.name}: {result['error']}")
    tail = "\n".join(f"  {line}" for line in words[-LOG_LINES:])
    raise BackendError(f"{target} {_ending(process.returncode)} while building {source.name}; its last words:\n{tail}")


def _ending(code: int) -> str:
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
