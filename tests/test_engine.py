"""Engines: real builds where TensorRT-RTX is installed, and every way a build can fail."""

from __future__ import annotations

import ctypes
import signal
import subprocess
import sys
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from builders import make_source, small_network
from onnx import TensorProto, helper, numpy_helper

from echoir.export import build, engine, engine_worker, pipeline
from echoir.export.echo import registration
from echoir.export.echo.function import echo_function, node_attributes
from echoir.export.echo.taps import tap_function
from echoir.export.engine import RTX_CAPABILITIES, EngineOptions, build_engine
from echoir.export.engine_worker import RefusedError, Share
from echoir.export.layers import Layer, expected_types, fallen_back, precisions, read_layers
from echoir.export.typed import export_onnx
from echoir.networks.upsampler import Combine
from echoir.runtime.artifact import Artifact
from echoir.runtime.errors import ArtifactError, BackendError, MissingExtraError

needs_rtx = [
    pytest.mark.tensorrt,
    pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="needs pip install '.[rtx]'"),
]


def rtx(function):  # type: ignore[no-untyped-def]
    for mark in needs_rtx:
        function = mark(function)
    return function


def write(path: Path, operator: str = "Relu", batch: int | str = 1) -> Path:
    """A model of one node named ``suspect``."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, 3, 16, 16]) for name in "xy"]
    domain = "" if operator == "Relu" else "nowhere"
    node = helper.make_node(operator, ["x"], ["y"], name="suspect", domain=domain)
    opsets = [helper.make_opsetid("", 20), *([helper.make_opsetid(domain, 1)] if domain else [])]
    graph = helper.make_graph([node], "one", values[:1], values[1:])
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def impostor(folder: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    """Let a module of our own stand where tensorrt_rtx would."""
    (folder / "tensorrt_rtx.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.syspath_prepend(folder)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny network, exported once."""
    path = tmp_path_factory.mktemp("tiny") / "tiny.onnx"
    export_onnx(make_source(small_network()), path, tile=(32, 32), precision="fp16")
    return path


@rtx
@pytest.mark.parametrize(("precision", "io"), [("fp16", "uint8"), ("fp32", "float")])
def test_a_real_engine_of_the_tiny_network(precision: str, io: str, tmp_path: Path) -> None:
    source, target = tmp_path / "tiny.onnx", tmp_path / "tiny.engine"
    export_onnx(make_source(small_network()), source, tile=(32, 32), precision=precision, io=io)  # type: ignore[arg-type]
    info = build_engine(source, target, target="tensorrt-rtx")
    assert info.bytes == target.stat().st_size > source.stat().st_size / 2  # the weights are in it
    assert info.compute_capabilities == RTX_CAPABILITIES
    assert info.seconds > 0
    assert info.version.startswith("1.")


@rtx
def test_an_open_batch_gets_a_profile(tmp_path: Path) -> None:
    info = build_engine(
        write(tmp_path / "one.onnx", batch="n"), tmp_path / "e", target="tensorrt-rtx", compute_capabilities=["8.9"]
    )
    assert info.compute_capabilities == ("8.9",)
    assert info.bytes > 0


@rtx
def test_an_unknown_gpu_is_named_beside_the_known(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"no compute capability 8.7; it has .*8.6, 8.9"):
        build_engine(write(tmp_path / "one.onnx"), tmp_path / "e", target="tensorrt-rtx", compute_capabilities=["8.7"])
    assert not (tmp_path / "e").exists()


@rtx
def test_a_node_the_parser_refuses_is_named(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"node 'suspect' \(Teleport\)"):
        build_engine(write(tmp_path / "one.onnx", "Teleport"), tmp_path / "e", target="tensorrt-rtx")


def test_a_missing_library_gives_its_install_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "find_spec", lambda name: None)
    for target, extra in (("tensorrt-rtx", "rtx"), ("tensorrt", "tensorrt")):
        with pytest.raises(MissingExtraError, match=rf"pip install 'echoir\[{extra}\]'") as caught:
            build_engine(tmp_path / "one.onnx", tmp_path / "e", target=target)  # type: ignore[arg-type]
        assert caught.value.exit_code == 6


def test_an_abort_becomes_an_error_with_the_last_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    impostor(tmp_path, monkeypatch, "import os\nprint('assertion failed: nb > 0', flush=True)\nos.abort()\n")
    with pytest.raises(BackendError, match=r"(?s)ended by SIGABRT while building one.onnx.*assertion failed: nb > 0"):
        build_engine(write(tmp_path / "one.onnx"), tmp_path / "e", target="tensorrt-rtx")
    assert not (tmp_path / "e").exists()


def test_a_library_that_does_not_load_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    impostor(tmp_path, monkeypatch, "raise ImportError('libnvinfer.so.11: cannot open shared object file')\n")
    with pytest.raises(BackendError, match=r"installed but does not load .*libnvinfer"):
        build_engine(write(tmp_path / "one.onnx"), tmp_path / "e", target="tensorrt-rtx")


def test_tensorrt_without_a_gpu_says_where_to_run_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        pass
    else:
        pytest.skip("there is an NVIDIA driver here")
    monkeypatch.setitem(engine.MODULES, "tensorrt", ("json", "tensorrt"))  # any module that is installed
    with pytest.raises(BackendError, match=r"needs an NVIDIA GPU.*trtexec --onnx=one.onnx --stronglyTyped"):
        build_engine(write(tmp_path / "one.onnx"), tmp_path / "e", target="tensorrt")


@rtx
def test_the_engine_tells_its_layers_and_its_progress(tiny: Path, tmp_path: Path) -> None:
    told: list[int] = []
    info = build_engine(
        tiny,
        tmp_path / "e",
        target="tensorrt-rtx",
        compute_capabilities=["8.9"],
        options=EngineOptions(optimization_level=2, workspace=512),
        on_progress=told.append,
    )
    assert told == sorted(told)
    assert told[-1] > 50
    assert info.details["operators"] == "function"
    assert info.details["options"]["workspace"] == 512
    found = info.details["precisions"]["convolution"]
    assert found["float16"] > 10 * found["float32"]  # those of the channel attention, on one pixel
    assert sum(sum(counts.values()) for counts in info.details["precisions"].values()) == info.details["layers"]


@rtx
def test_every_typed_node_runs_in_its_type_and_a_wrong_type_would_be_found(tiny: Path) -> None:
    expected = expected_types(tiny)
    layers = [Layer("l", "correlation", (kind,), (node,)) for node, kind in expected.items()]
    assert not fallen_back(layers, expected)
    node = "up1/reduce/Conv"
    assert expected[node] == "float16"
    assert fallen_back([Layer("l", "gemm", ("float32",), ("other", node))], expected) == [
        f"{node} reads float32 instead of float16"
    ]


def test_a_quantized_node_is_expected_to_read_int8(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        helper.make_node("Conv", ["d", "w"], ["y"], name="quantized"),
        helper.make_node("Conv", ["x", "w"], ["z"], name="plain"),
    ]
    tensors = {
        "scale": np.float32(0.1),
        "zero": np.int8(0),
        "w": np.ones((1, 1, 1, 1), np.float32),
    }
    graph = helper.make_graph(
        nodes,
        "q",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 4, 4])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "yz"],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "q.onnx")
    assert expected_types(tmp_path / "q.onnx") == {"quantized": "int8", "plain": "float32"}


def test_layers_are_read_in_the_words_of_old_and_new_versions() -> None:
    lines = [
        "Name: a + b, LayerType: CaskConvolution, Inputs: [ { Name: t[0], Location: Device, Dimensions: [1,3,8,8], "
        "Format/Datatype: Row major linear FP16 }], Outputs: [ { Name: u, Format/Datatype: Row major linear FP32 }], "
        "TacticName: x, Metadata: [ONNX Layer: one]\x1f[ONNX Layer: two]",
        "Severity.VERBOSE Layers:",
        "Name: s, LayerType: signal, Inputs: [], Constants: [], Outputs: []",
        "Name: g, LayerType: gemm, Inputs: [ { Name: v, Datatype: Int8, Format: (Linear) Row }, { Name: w, "
        "Datatype: Half, Format: (Linear) Row }], Constants: [ { Name: c, Datatype: Float }], Outputs: [], Metadata: ",
        "Name: k, LayerType: kgen, Inputs: [], Constants: [], Outputs: [ { Name: o, Datatype: Int32 }]",
    ]
    layers = read_layers(lines)
    assert [layer.inputs for layer in layers] == [("float16",), ("int8", "float16"), ()]
    assert layers[0].nodes == ("one", "two")
    assert precisions(layers) == {
        "convolution": {"float16": 1},
        "matrix product": {"int8": 1},
        "other": {"none": 1},
    }


def test_an_engine_whose_layers_fell_back_is_refused(tiny: Path) -> None:
    """By a library that pretends to build, and reports a convolution in float32."""
    logger = SimpleNamespace(
        layers=["Name: x, LayerType: correlation, Inputs: [ { Datatype: Float }], [ONNX Layer: up1/reduce/Conv]"]
    )
    request = {"module": "tensorrt_rtx", "onnx": str(tiny)}
    with pytest.raises(RefusedError, match=r"1 layers .* up1/reduce/Conv reads float32 instead of float16"):
        engine_worker._read_back(None, logger, b"", request)


@pytest.mark.parametrize(
    ("events", "done"),
    [
        ([("start", "a", None, 4), ("step", "a", 0)], 0.25),
        ([("start", "a", None, 4), ("step", "a", 0), ("start", "b", "a", 2), ("step", "b", 0)], 0.375),
        ([("start", "a", None, 2), ("start", "b", "a", 1), ("start", "c", "b", 4), ("step", "c", 1)], 0.25),
        ([("start", "a", None, 2), ("start", "b", "a", 1), ("finish", "b"), ("step", "a", 0)], 0.5),
        ([("step", "unknown", 3)], 0.0),
    ],
)
def test_nested_phases_add_up(events: list[tuple[Any, ...]], done: float) -> None:
    share = Share()
    for name, *arguments in events:
        getattr(share, name)(*arguments)
    assert share.done == done


@pytest.mark.parametrize(
    ("version", "options", "chosen", "functions"),
    [
        ("10.3.0", {}, "plugin class", 0),
        ("10.7.0", {}, "plugin class", 1),
        ("10.9.0.34", {}, "plugin", 1),
        ("11.4.0.106", {}, "plugin", 1),
        ("11.4.0.106", {"plugin": False}, "function", 1),
        ("11.4.0.106", {"version_compatible": True}, "function", 1),
    ],
)
def test_each_parser_gets_the_file_it_takes_the_upsampler_from(
    version: str,
    options: dict[str, Any],
    chosen: str,
    functions: int,
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    aimed: list[str] = []
    modules = {
        "echoir.export.echo.plugin": SimpleNamespace(aim=aimed.append),
        "echoir.export.echo.plugin_code": SimpleNamespace(for_class=aimed.append),
        "echoir.runtime.cuda.plugin_class": SimpleNamespace(register=lambda trt, code: None),
    }
    monkeypatch.setattr(registration, "import_module", modules.__getitem__)
    asked = asdict(EngineOptions()) | options
    request = {"onnx": str(tiny), "answer": str(tmp_path / "answer.json"), "options": asked}
    trt = SimpleNamespace(__version__=version)
    upsampler, path = engine_worker._adapt(trt, request, "8.7")
    assert upsampler == chosen
    assert [function.doc_string.endswith("tap by tap") for function in onnx.load(path).functions] == (
        [chosen == "function"] * functions
    )
    assert len(onnx.load(path).functions) == functions
    assert aimed == ([] if chosen == "function" else ["8.7"])


def test_a_plugin_that_cannot_be_made_is_the_function_with_a_reason_or_a_refusal(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> Any:
        raise MissingExtraError("triton", "kernel")

    monkeypatch.setattr(registration, "import_module", missing)
    trt = SimpleNamespace(__version__="11.4.0.106")
    request = {
        "onnx": str(tiny),
        "answer": str(tmp_path / "answer.json"),
        "options": asdict(EngineOptions()),
    }
    assert engine_worker._adapt(trt, request, "8.7") == (
        "function, since the plugin cannot be made here (triton is not installed; run: pip install 'echoir[kernel]')",
        str(tmp_path / "adapted.onnx"),
    )
    request["options"] = asdict(EngineOptions(plugin=True))
    with pytest.raises(RefusedError, match="the plugin cannot be made: triton is not installed"):
        engine_worker._adapt(trt, request, "8.7")


def test_a_graph_without_operators_of_its_own_is_parsed_as_it_is(tmp_path: Path) -> None:
    request = {"onnx": str(write(tmp_path / "x.onnx")), "options": asdict(EngineOptions(plugin=True))}
    assert engine_worker._adapt(SimpleNamespace(__version__="11.4"), request, "8.7") == ("none", request["onnx"])


PLUGIN_IN_RTX = """
import sys
import tensorrt_rtx as trt

class Plugin(trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild, trt.IPluginV3OneRuntime):
    def __init__(self):
        for base in (trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild, trt.IPluginV3OneRuntime):
            base.__init__(self)
        self.plugin_name, self.plugin_namespace, self.plugin_version = "EchoUpsample", "echoir", "1"
        self.num_outputs = 1

    def get_capability_interface(self, type):
        return self

class Creator(trt.IPluginCreatorV3One):
    def __init__(self):
        trt.IPluginCreatorV3One.__init__(self)
        self.name, self.plugin_namespace, self.plugin_version = "EchoUpsample", "echoir", "1"
        self.field_names = trt.PluginFieldCollection([])

    def create_plugin(self, name, fields, phase):
        print("the plugin was asked for", flush=True)
        return Plugin()

creator = Creator()
print("registered", trt.get_plugin_registry().register_creator(creator, "echoir"), flush=True)
logger = trt.Logger(trt.Logger.ERROR)
builder = trt.Builder(logger)
network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
print("parsed", trt.OnnxParser(network, logger).parse_from_file(sys.argv[1]), flush=True)
"""


@rtx
def test_tensorrt_rtx_dies_of_a_registered_plugin_so_it_is_never_shown_one(tiny: Path, tmp_path: Path) -> None:
    died = subprocess.run([sys.executable, "-c", PLUGIN_IN_RTX, tiny], capture_output=True, text=True, check=False)
    assert "registered True" in died.stdout
    assert died.returncode == -signal.SIGABRT, died.stdout
    assert "parsed" not in died.stdout
    info = build_engine(tiny, tmp_path / "e", target="tensorrt-rtx", options=EngineOptions(plugin=True))
    assert info.details["operators"] == "function"


@pytest.mark.parametrize("combine", ["sum", "product"])
@pytest.mark.parametrize("radius", [0, 1, 2])
@pytest.mark.parametrize("batch", [1, 3])
def test_both_functions_are_the_same_operator(
    combine: Combine, radius: int, batch: int, rng: np.random.Generator
) -> None:
    height, width = 4 * max(radius, 1), 8 * max(radius, 1)
    inputs = {
        "down": rng.standard_normal((batch, 5, height, width), np.float32),
        "guide": rng.standard_normal((batch, 3, 2 * height, 2 * width), np.float32),
    }
    outputs = []
    for function in (echo_function(radius, combine, 20), tap_function(radius, combine, 20)):
        values = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", *value.shape[1:]])
            for name, value in inputs.items()
        ]
        node = helper.make_node(
            "EchoUpsample", ["down", "guide", "s", "r"], ["up"], domain="echoir", **node_attributes(radius, combine)
        )
        sigmas = [numpy_helper.from_array(np.float32([value]), name) for name, value in (("s", 0.8), ("r", 1.7))]
        graph = helper.make_graph(
            [node], "g", values, [helper.make_tensor_value_info("up", TensorProto.FLOAT, None)], sigmas
        )
        opsets = [helper.make_opsetid("", 20), helper.make_opsetid("echoir", 1)]
        model = helper.make_model(graph, functions=[function], opset_imports=opsets, ir_version=10)
        outputs.append(onnxruntime.InferenceSession(model.SerializeToString()).run(None, inputs)[0])
    np.testing.assert_allclose(*outputs, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("outcome", "measured"),
    [
        (BackendError("no GPU"), False),
        (ArtifactError("engine.compute_capability", "9.0", "8.7"), False),
        (None, True),
    ],
)
def test_an_engine_is_measured_where_it_runs(
    outcome: Exception | None, measured: bool, identity: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The session and the measurement are stood in for; both have tests of their own."""

    def open_session(artifact: Artifact) -> Any:
        if outcome is not None:
            raise outcome
        return SimpleNamespace(close=lambda: None)

    report = SimpleNamespace(failures=["too far"])
    monkeypatch.setattr(build, "open_session", open_session)
    monkeypatch.setattr(pipeline, "_prove", lambda request, checkpoint, artifact, *rest: (artifact, report))
    progress: Any = SimpleNamespace(total=5)
    samples: Any = [1, 2, 3]
    request: Any = None
    checkpoint: Any = None
    found = pipeline._prove_engine(request, checkpoint, identity, samples, None, progress)
    assert found == (identity, ("too far",) if measured else ())
    assert progress.total == (8 if measured else 5)


def test_an_engine_unlike_its_manifest_is_not_handed_over(identity: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    def open_session(artifact: Artifact) -> Any:
        raise ArtifactError("output.name", "a", "b")

    monkeypatch.setattr(build, "open_session", open_session)
    nothing: Any = None
    with pytest.raises(ArtifactError, match=r"output\.name"):
        pipeline._prove_engine(nothing, nothing, identity, nothing, None, nothing)
