"""The process that builds one engine: ``python -m echoir.export.engine_worker REQUEST``.

REQUEST is the JSON of :func:`echoir.export.engine.build_engine`. What happened goes to the file
``answer`` as JSON: ``{"seconds": ..., "version": ..., ...}`` or ``{"error": message}``. Progress goes to
standard output in lines that begin with ``PROGRESS``. Names of the libraries' API used here exist in
TensorRT 10.3 to 11.4 and in TensorRT-RTX 1.7; ``tests/test_tensorrt_contract.py`` checks them.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

from echoir.runtime.errors import EchoIRError

RTX = "tensorrt_rtx"
PROGRESS = "\x1eprogress "
MIB = 1 << 20


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
    """Parse, build, write, read back; the facts about it."""
    rtx = request["module"] == RTX
    gpu = {} if rtx else _gpu(request["onnx"])
    try:
        trt = import_module(request["module"])
    except (ImportError, OSError) as error:
        raise RefusedError(f"{request['module']} is installed but does not load ({error})") from error
    if rtx:
        os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = "1"  # Polygraphy serves both; it asks once, when imported
    # Polygraphy speaks to people at a terminal; here the log is for an error's last words.
    os.environ.setdefault("POLYGRAPHY_AUTOINSTALL_DEPS", "0")
    try:
        from polygraphy.backend.trt import engine_bytes_from_network
        from polygraphy.exception import PolygraphyException
        from polygraphy.logger import G_LOGGER
    except ImportError as error:
        raise RefusedError(f"Polygraphy does not load ({error}); run: pip install polygraphy") from error

    G_LOGGER.module_severity = G_LOGGER.ERROR
    start = time.perf_counter()
    logger = _logger(trt)
    operators, source = _adapt(trt, request, gpu.get("compute_capability"))
    builder = trt.Builder(logger)
    network = builder.create_network(_network_flags(trt, operators))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(source):
        raise RefusedError("; ".join(_describe(parser.get_error(index)) for index in range(parser.num_errors)))
    if operators.startswith("plugin"):
        _check_plugins(trt, network, source)
    cache = None if rtx else timing_cache(request["module"], trt.__version__, gpu["name"])
    config = _configure(trt, builder, network, request, cache)
    capabilities = request["compute_capabilities"]
    if rtx:
        _aim(trt, config, capabilities)
    elif capabilities not in ([], [gpu["compute_capability"]]):
        raise RefusedError(
            f"TensorRT builds for the GPU it runs on, {gpu['name']} ({gpu['compute_capability']}), "
            f"not for {', '.join(capabilities)}"
        )
    try:
        engine = engine_bytes_from_network((builder, network), config, save_timing_cache=cache)
    except PolygraphyException as error:
        raise RefusedError(logger.last_error or "the builder gave no reason") from error
    with open(request["engine"], "wb") as file:
        file.write(engine)
    seconds = time.perf_counter() - start
    details = {"operators": operators, "options": request["options"]}
    details |= _read_back(trt, logger, engine, request)
    return {
        "version": trt.__version__,
        "compute_capabilities": capabilities or [gpu["compute_capability"]],
        "seconds": seconds,
        "gpu": gpu.get("name"),
        "driver": gpu.get("driver"),
        "details": details,
    }


def version_of(trt: Any) -> tuple[int, int]:
    """Major and minor version of the library."""
    major, minor = trt.__version__.split(".")[:2]
    return int(major), int(minor)


def timing_cache(module: str, version: str, gpu: str) -> str:
    """Where measured kernel times are kept: one file per library version and GPU, for which alone they hold."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "echoir", "timing")
    root.mkdir(parents=True, exist_ok=True)
    return str(root / re.sub(r"[^\w.-]+", "-", f"{module}-{version}-{gpu}.cache"))


def _adapt(trt: Any, request: dict[str, Any], capability: str | None) -> tuple[str, str]:
    """Choose plugins or functions for the network's own operators, and give the ONNX file that this parser takes so.

    Up to TensorRT 10.6 the parser takes a function in the file before a plugin, so the function is
    left out; from 10.7 it takes the registered plugin, from 10.15 if the node names the plugin's
    namespace, as ours do. Where no plugin is registered, the function is exchanged for the form that
    TensorRT's compiler makes the most of.

    Args:
        trt: the library.
        request: of the build.
        capability: of the GPU; None for TensorRT-RTX, which aborts when a plugin is registered.
    """
    import onnx

    from echoir.export.operators import operators_in

    options, model = request["options"], onnx.load(request["onnx"])
    used = operators_in(model)
    if not used:
        return "none", request["onnx"]
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    functions = [operator.compiled(kind, opset) for operator, kinds in used.items() for kind in kinds]
    if capability is None or options["plugin"] is False or options["version_compatible"]:
        return "function", _with_functions(request, model, functions)
    target = "8.0" if options["hardware_compatible"] else capability
    embedded = version_of(trt) >= (10, 9)
    try:
        for operator in used:
            operator.register(trt, target, embedded)
    except (ImportError, EchoIRError) as error:
        if options["plugin"]:
            raise RefusedError(f"the plugin cannot be made: {error}") from error
        reason = f"function, since the plugin cannot be made here ({error})"
        return reason, _with_functions(request, model, functions)
    if version_of(trt) >= (10, 7):
        return "plugin" if embedded else "plugin class", request["onnx"]
    return "plugin class", _with_functions(request, model, [])


def _with_functions(request: dict[str, Any], model: Any, functions: list[Any]) -> str:
    """A file of the model with other functions."""
    import onnx

    del model.functions[:]
    model.functions.extend(functions)
    path = str(Path(request["answer"]).with_name("adapted.onnx"))
    onnx.save(model, path)
    return path


def _network_flags(trt: Any, operators: str) -> int:
    flags = trt.NetworkDefinitionCreationFlag
    value = 1 << int(flags.STRONGLY_TYPED)
    if operators == "plugin":
        value |= 1 << int(flags.PREFER_AOT_PYTHON_PLUGINS)
    return value


def _check_plugins(trt: Any, network: Any, source: str) -> None:
    """Refuse a parser that was to use plugins and took functions after all."""
    import onnx

    from echoir.export.operators import operator_of

    model = onnx.load(source, load_external_data=False)
    wanted = sum(operator_of(node) is not None for node in model.graph.node)
    found = sum(network.get_layer(index).type == trt.LayerType.PLUGIN_V3 for index in range(network.num_layers))
    if found != wanted:
        raise RefusedError(
            f"TensorRT {trt.__version__} took {found} of {wanted} nodes as plugins; build with --no-plugin"
        )


def _configure(trt: Any, builder: Any, network: Any, request: dict[str, Any], cache: str | None) -> Any:
    from polygraphy.backend.trt import Profile, create_config

    options = request["options"]
    profile = Profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        batch, *rest = tuple(tensor.shape)
        if batch == -1:
            profile.add(tensor.name, *((count, *rest) for count in request["batches"]))
    limits = {trt.MemoryPoolType.WORKSPACE: options["workspace"] * MIB} if options["workspace"] else None
    return create_config(
        builder,
        network,
        profiles=[profile],
        tf32=False,  # on by default, and float32 would lose 13 of its 23 bits
        memory_pool_limits=limits,
        builder_optimization_level=options["optimization_level"],
        version_compatible=options["version_compatible"],
        hardware_compatibility_level=(
            trt.HardwareCompatibilityLevel.AMPERE_PLUS if options["hardware_compatible"] else None
        ),
        load_timing_cache=cache if cache and Path(cache).exists() else None,
        profiling_verbosity=trt.ProfilingVerbosity.DETAILED,  # else the types cannot be read back
        progress_monitor=_monitor(trt),
    )


def _read_back(trt: Any, logger: Any, engine: Any, request: dict[str, Any]) -> dict[str, Any]:
    """What the engine's layers really compute; refuses an engine whose layers fell back silently."""
    from echoir.export.layers import describe, expected_types, read_layers

    if request["module"] == RTX:  # its engines load on an RTX GPU alone, but its log has the same lines
        lines = logger.layers
    else:
        runtime = trt.Runtime(logger)
        loaded = runtime.deserialize_cuda_engine(engine)
        if loaded is None:
            raise RefusedError(logger.last_error or "the engine that was built does not load")
        lines = loaded.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.ONELINE).splitlines()
    layers = read_layers(lines)
    if not layers:
        return {"layers": "not reported by this version"}
    facts = describe(layers, expected_types(request["onnx"]))
    fallen = facts.pop("fallen_back")
    if fallen:
        raise RefusedError(
            f"{len(fallen)} layers do not run in the type that the graph gives them: {'; '.join(fallen[:5])}"
            + ("; ..." if len(fallen) > 5 else "")
        )
    return facts


def _logger(trt: Any) -> Any:
    class Logger(trt.ILogger):
        """Everything from warnings up goes to standard error; the last error and the layers are remembered."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last_error = ""
            self.layers: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity == trt.ILogger.Severity.VERBOSE:
                if ", LayerType: " in message:
                    self.layers += message.splitlines()
                return
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.last_error = message
            elif severity != trt.ILogger.Severity.WARNING:
                return
            # Each use of an ONNX function repeats its nodes' names; the parser minds, nobody else.
            if "already exists" not in message:
                print(message, file=sys.stderr, flush=True)

    return Logger()


def _monitor(trt: Any) -> Any:
    class Monitor(trt.IProgressMonitor):
        """Tells the parent process how much of the build is done, in whole percent."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.share, self.told = Share(), -1

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.share.start(phase_name, parent_phase, num_steps)

        def phase_finish(self, phase_name: str) -> None:
            self.share.finish(phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self.share.step(phase_name, step)
            percent = int(self.share.done * 100)
            if percent > self.told:
                self.told = percent
                print(f"{PROGRESS}{percent}", flush=True)
            return True

    return Monitor()


class Share:
    """The finished share of nested phases, each of a known number of steps."""

    def __init__(self) -> None:
        self._phases: dict[str, tuple[str | None, int, int]] = {}  # parent, steps, steps done

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        self._phases[phase] = (parent, max(steps, 1), 0)

    def step(self, phase: str, step: int) -> None:
        if phase in self._phases:
            parent, steps, _ = self._phases[phase]
            self._phases[phase] = (parent, steps, min(step + 1, steps))

    def finish(self, phase: str) -> None:
        self._phases.pop(phase, None)

    @property
    def done(self) -> float:
        """0 to 1, of the phases that have no parent; a phase's children are parts of its current step."""
        return max((self._of(name) for name, (parent, _, _) in self._phases.items() if parent is None), default=0.0)

    def _of(self, phase: str) -> float:
        _, steps, done = self._phases[phase]
        inner = max((self._of(name) for name, (parent, _, _) in self._phases.items() if parent == phase), default=0.0)
        return min(1.0, (done + inner) / steps)


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
