"""The process that builds one engine: ``python -m echoir.export.engine_worker REQUEST``.

REQUEST is the JSON of :func:`echoir.export.engine.build_engine`. What happened goes to the file
``answer`` as JSON: ``{"seconds": ..., "version": ..., ...}`` or ``{"error": message}``. Names of the
libraries' API used here exist in TensorRT 10.3 to 11.4 and in TensorRT-RTX 1.7.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

RTX = "tensorrt_rtx"


class RefusedError(Exception):
    """The build cannot be done; the message says why."""


def main(argument: str) -> int:
    request = json.loads(argument)
    try:
        answer = build(request)
    except RefusedError as error:
        answer = {"error": str(error)}
    Path(request["answer"]).write_text(json.dumps(answer))
    return 1 if "error" in answer else 0


def build(request: dict[str, Any]) -> dict[str, Any]:
    """Parse, build, write; the facts about it."""
    gpu: dict[str, str] = {}
    if request["module"] != RTX:
        gpu = _gpu(request["onnx"])
    try:
        trt = import_module(request["module"])
    except (ImportError, OSError) as error:
        raise RefusedError(f"{request['module']} is installed but does not load ({error})") from error
    start = time.perf_counter()
    logger = _logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(request["onnx"]):
        raise RefusedError("; ".join(_describe(parser.get_error(index)) for index in range(parser.num_errors)))
    config = builder.create_builder_config()
    capabilities = request["compute_capabilities"]
    if request["module"] == RTX:
        _aim(trt, config, capabilities)
    elif capabilities not in ([], [gpu["compute_capability"]]):
        raise RefusedError(
            f"TensorRT builds for the GPU it runs on, {gpu['name']} ({gpu['compute_capability']}), "
            f"not for {', '.join(capabilities)}"
        )
    _open_batch(builder, network, config, request["batches"])
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise RefusedError(logger.last_error or "the builder gave no reason")
    with open(request["engine"], "wb") as file:
        file.write(engine)
    return {
        "version": trt.__version__,
        "compute_capabilities": capabilities or [gpu["compute_capability"]],
        "seconds": time.perf_counter() - start,
        "gpu": gpu.get("name"),
        "driver": gpu.get("driver"),
    }


def _logger(trt: Any) -> Any:
    class Logger(trt.ILogger):
        """Everything from warnings up goes to standard error; the last error is remembered."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last_error = ""

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.last_error = message
            elif severity != trt.ILogger.Severity.WARNING:
                return
            # Each use of the EchoUpsample function repeats its nodes' names; the parser minds, nobody else.
            if "already exists" not in message:
                print(message, file=sys.stderr, flush=True)

    return Logger()


def _describe(error: Any) -> str:
    """A parser error in words: which node, of which operator, and why."""
    where = f"node {error.node_name()!r} ({error.node_operator()})" if error.node_name() else f"node {error.node()}"
    return f"{where}: {error.desc()}"


def _aim(trt: Any, config: Any, capabilities: list[str]) -> None:
    """Name the GPUs that TensorRT-RTX compiles for."""
    known = {
        f"{name[2:-1]}.{name[-1]}": value
        for name, value in trt.ComputeCapability.__members__.items()
        if name.startswith("SM")
    }
    unknown = [capability for capability in capabilities if capability not in known]
    if unknown:
        raise RefusedError(
            f"TensorRT-RTX {trt.__version__} has no compute capability {', '.join(unknown)}; "
            f"it has {', '.join(sorted(known, key=float))}"
        )
    config.num_compute_capabilities = len(capabilities)
    for index, capability in enumerate(capabilities):
        config.set_compute_capability(known[capability], index)


def _open_batch(builder: Any, network: Any, config: Any, batches: list[int]) -> None:
    """An optimization profile for inputs whose first axis is open."""
    profile = builder.create_optimization_profile()
    opened = False
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        batch, *rest = tuple(tensor.shape)
        if batch == -1:
            opened = True
            profile.set_shape(tensor.name, *((count, *rest) for count in batches))
    if opened:
        config.add_optimization_profile(profile)


def _gpu(onnx_path: str) -> dict[str, str]:
    """Name, compute capability and driver of the first GPU, from the driver itself."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
        device, count, major, minor, driver = (ctypes.c_int() for _ in range(5))
        name = ctypes.create_string_buffer(256)
        found = cuda.cuInit(0) == 0 and cuda.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
    except OSError:
        found = False
    if not found:
        raise RefusedError(
            "TensorRT needs an NVIDIA GPU with its driver, and there is none here. Run the same command on the "
            f"device, or build there from the ONNX: trtexec --onnx={Path(onnx_path).name} --stronglyTyped "
            f"--saveEngine={Path(onnx_path).stem}.engine"
        )
    cuda.cuDeviceGet(ctypes.byref(device), 0)
    cuda.cuDeviceGetName(name, len(name), device)
    cuda.cuDeviceComputeCapability(ctypes.byref(major), ctypes.byref(minor), device)
    cuda.cuDriverGetVersion(ctypes.byref(driver))
    return {
        "name": name.value.decode(),
        "compute_capability": f"{major.value}.{minor.value}",
        "driver": f"CUDA {driver.value // 1000}.{driver.value % 1000 // 10}",
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
