"""Engines: real builds where TensorRT-RTX is installed, and every way a build can fail."""

from __future__ import annotations

import ctypes
from importlib.util import find_spec
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from echoir.export import engine
from echoir.export.engine import RTX_CAPABILITIES, build_engine
from echoir.export.onnx_export import export_onnx
from echoir.network import EchoIR
from echoir.runtime.errors import BackendError, MissingExtraError

needs_rtx = [
    pytest.mark.tensorrt,
    pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="needs pip install 'echoir[rtx]'"),
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


@rtx
@pytest.mark.parametrize(("precision", "io"), [("fp16", "uint8"), ("fp32", "float")])
def test_a_real_engine_of_the_tiny_network(precision: str, io: str, tmp_path: Path) -> None:
    source, target = tmp_path / "tiny.onnx", tmp_path / "tiny.engine"
    export_onnx(EchoIR.from_preset("tiny"), source, tile=(32, 32), precision=precision, io=io)  # type: ignore[arg-type]
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


def test_a_build_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    impostor(tmp_path, monkeypatch, "import time\ntime.sleep(60)\n")
    with pytest.raises(BackendError, match=r"did not finish one\.onnx within 0\.5 s"):
        build_engine(write(tmp_path / "one.onnx"), tmp_path / "e", target="tensorrt-rtx", timeout=0.5)


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
