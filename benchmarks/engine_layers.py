"""The layers of an engine as TensorRT-RTX describes them in its log while it builds: no GPU needed."""

from __future__ import annotations


def engine_layers(model: bytes, capability: str) -> tuple[int, list[str]]:
    """How many layers the parser made of an ONNX file, and a line for each layer of the engine."""
    import tensorrt_rtx as trt

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[str] = []

        def log(self, severity: object, message: str) -> None:
            self.lines += message.splitlines() if ", LayerType: " in message else []

    logger = Logger()
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    if not trt.OnnxParser(network, logger).parse(model):
        raise SystemExit("the parser refused the graph")
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, "SM" + capability.replace(".", "")), 0)
    if builder.build_serialized_network(network, config) is None:
        raise SystemExit("the engine was not built")
    return network.num_layers, logger.lines
