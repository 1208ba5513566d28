"""In bfloat16 the picture and exponents keep float32, where rounding them would cost most."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from builders import make_manifest
from onnx import TensorProto, helper, numpy_helper

from echoir.runtime.artifact import Artifact, write_artifact
from echoir.runtime.bfloat16 import keeping_float32, kept
from echoir.runtime.sessions import open_session

openvino = pytest.importorskip("openvino", reason="pip install 'echoir[openvino]'")

Array = np.ndarray[Any, np.dtype[Any]]


@pytest.fixture(autouse=True)
def bfloat16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache, and a processor that has it."""
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("a processor without bfloat16")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def artifact(folder: Path, free: bool, *steps: tuple[str, float] | str) -> Artifact:
    """A model of those steps: ``("Conv", w)`` and ``("Mul", w)`` multiply by w, ``"MatMul"`` a value by
    itself, others are functions of one value."""
    nodes, weights, name, channels = [], [], "image", 3
    for index, step in enumerate(steps):
        kind, made, given = step if isinstance(step, str) else step[0], f"{index}", [name]
        if not isinstance(step, str):
            matrix = np.eye(3)[:, :channels, None, None] if channels == 3 else np.ones((3, 1, 1, 1))
            weight = step[1] * (matrix if kind == "Conv" else np.ones(()))
            weights.append(numpy_helper.from_array(weight.astype(np.float32), f"w{index}"))
            given.append(f"w{index}")
        given += [name] * (kind == "MatMul")
        mean = kind == "ReduceMean"
        channels = 1 if mean else 3 if kind == "Conv" else channels
        options: dict[str, Any] = {"axes": [1], "keepdims": 1} if mean else {}
        nodes.append(helper.make_node(kind, given, [made], name=f"{kind} {index}", **options))
        name = made
    nodes[-1].output[0] = "restored"
    sides: list[Any] = [1, 3, *(["rows", "columns"] if free else [16, 16])]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, sides) for name in ("image", "restored")]
    graph = helper.make_graph(nodes, "test", ends[:1], ends[1:], weights)
    path = folder / "test.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return write_artifact(make_manifest(tile=(16, 16), batch=1, most=256 if free else None), path)


@pytest.mark.parametrize("free", [False, True])
def test_the_picture_is_not_rounded(free: bool, tmp_path: Path, rng: np.random.Generator) -> None:
    """A half is taken off, which shows what was lost: up to 2e-3 of a pixel above a half."""
    chain = artifact(tmp_path, free, ("Conv", 16.0), ("Add", -8.0), "Relu", ("Conv", 1 / 16))
    picture = rng.uniform(0.5, 0.55, (1, 3, 16, 16)).astype(np.float32)
    with open_session(chain, threads=1, device="openvino-bf16") as session:
        error = np.abs(session.run(picture) - (picture - 0.5)).max()
    assert 0 < error < 3e-4  # in bfloat16, or it would be less


@pytest.mark.parametrize("free", [False, True])
def test_an_exponent_is_not_rounded(free: bool, tmp_path: Path, rng: np.random.Generator) -> None:
    """A mean of three keeps float32; rounded, it would be off by up to 1/512, and the exponential by 3 %."""
    steps = ("Conv", 1.0), "Relu", ("Conv", 1.0), "ReduceMean", ("Mul", 16.0), "Exp", ("Conv", 1.0)
    picture: Array = (rng.integers(0, 9, (1, 3, 16, 16)) / 8).astype(np.float32)  # the same in bfloat16
    with open_session(artifact(tmp_path, free, *steps), threads=1, device="openvino-bf16") as session:
        error = np.abs(session.run(picture) / np.exp(16 * picture.mean(1, keepdims=True)) - 1).max()
    assert 1e-4 < error < 8e-3


@pytest.mark.parametrize("free", [False, True])
def test_a_product_within_an_exponent_is_not_rounded(free: bool, tmp_path: Path, rng: np.random.Generator) -> None:
    """Sums of sixteen; rounded they would be off by up to 1/32, with a factor behind them, which OpenVINO moves."""
    steps = ("Conv", 1.0), "Relu", ("Conv", 1.0), "MatMul", ("Mul", -0.5), "Exp", ("Conv", 1.0)
    picture: Array = (rng.integers(4, 9, (1, 3, 16, 16)) / 8).astype(np.float32)  # the same in bfloat16
    with open_session(artifact(tmp_path, free, *steps), threads=1, device="openvino-bf16") as session:
        error = np.abs(session.run(picture) / np.exp(-0.5 * (picture @ picture)) - 1).max()
    assert 1e-4 < error < 8e-3


def test_what_keeps_float32_is_the_picture_as_far_as_the_first_product_and_exponents(tmp_path: Path) -> None:
    chain = artifact(tmp_path, False, ("Mul", 2.0), ("Conv", 1.0), "Relu", ("Conv", 1.0), ("Mul", 7.3), "Exp", "Relu")
    core = openvino.Core()
    model = core.read_model(chain.model_path)
    assert kept(model) == {"Mul 0", "Conv 1", "Mul 4", "Exp 5"}
    marked = keeping_float32(openvino, core, model, {"Exp 5"})
    with_mark = {
        op.get_friendly_name() for op in marked.get_ops() if "DisablePrecisionConversion_0" in op.get_rt_info()
    }
    assert with_mark == {"Exp 5"}
