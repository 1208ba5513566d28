"""Optimized models in the cache: the same values, made once, and made again where they are damaged or unfit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from builders import make_manifest
from onnx import TensorProto, helper, numpy_helper

from echoir.runtime import onnx_session
from echoir.runtime.artifact import Artifact, write_artifact
from echoir.runtime.caches import keep
from echoir.runtime.errors import ArtifactError
from echoir.runtime.machine import processor_id
from echoir.runtime.manifest import FLOAT_NCHW, TensorSpec
from echoir.runtime.sessions import open_session

TILES = np.random.default_rng(0).random((2, 3, 64, 64), np.float32)


@pytest.fixture
def convolutions(tmp_path: Path) -> Artifact:
    """Convolutions and normalizations that ONNX Runtime merges and lays out anew, of more than a megabyte."""
    rng, nodes, weights, name, width = np.random.default_rng(1), [], [], "image", 3
    for i, grown in enumerate((192, 192, 3)):
        weights += [
            numpy_helper.from_array(rng.normal(0, 0.02, (grown, width, 3, 3)).astype(np.float32), f"w{i}"),
            *(numpy_helper.from_array(rng.random(grown, np.float32) + 0.5, f"{part}{i}") for part in "sbmv"),
        ]
        nodes.append(helper.make_node("Conv", [name, f"w{i}"], [f"c{i}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("BatchNormalization", [f"c{i}", *(f"{p}{i}" for p in "sbmv")], [f"n{i}"]))
        name, width = f"n{i}", grown
    nodes.append(helper.make_node("Identity", [name], ["restored"]))
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3, 64, 64]) for name in ("image", "restored")
    ]
    graph = helper.make_graph(nodes, "test", values[:1], values[1:], weights)
    path = tmp_path / "large.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    assert path.stat().st_size > onnx_session.WORTH_KEEPING
    tensors = {role: TensorSpec(name, **FLOAT_NCHW) for role, name in (("input", "image"), ("output", "restored"))}
    return write_artifact(make_manifest(**tensors), path)


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "echoir" / "onnxruntime"


def restored(artifact: Artifact) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    with open_session(artifact, threads=1) as session:
        return session.run(TILES)


def test_what_was_optimized_before_gives_the_very_values(convolutions: Artifact, kept: Path) -> None:
    options = onnx_session.session_options(1)
    plain = onnxruntime.InferenceSession(str(convolutions.model_path), options, providers=["CPUExecutionProvider"])
    expected = plain.run(None, {"image": TILES})[0]
    np.testing.assert_array_equal(restored(convolutions), expected)
    (file,) = kept.iterdir()
    assert file.name.endswith(f"{onnxruntime.__version__}-{processor_id()}.onnx")
    optimized = onnx.load_from_string(file.read_bytes()[32:])
    assert len(optimized.graph.node) < 7  # the normalizations are gone
    stamp = file.read_bytes()
    np.testing.assert_array_equal(restored(convolutions), expected)
    assert file.read_bytes() == stamp


@pytest.mark.parametrize("content", [b"cut short", None])
def test_what_cannot_be_used_is_made_again(convolutions: Artifact, kept: Path, content: bytes | None) -> None:
    expected = restored(convolutions)
    (file,) = kept.iterdir()
    whole = file.read_bytes()
    if content is None:  # undamaged, and no model
        keep(file, b"another thing", 1000)
    else:
        file.write_bytes(content)
    np.testing.assert_array_equal(restored(convolutions), expected)
    assert file.read_bytes() == whole


def test_a_cache_that_cannot_be_written_costs_time_alone(
    convolutions: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = restored(convolutions)
    (tmp_path / "file").write_text("")
    for name, place in (("XDG_CACHE_HOME", tmp_path / "file"), ("TMPDIR", tmp_path / "nowhere")):
        monkeypatch.setenv(name, str(place))
        monkeypatch.setattr("tempfile.tempdir", None)
        np.testing.assert_array_equal(restored(convolutions), expected)


def test_a_model_that_does_not_load_is_still_named(convolutions: Artifact) -> None:
    convolutions.model_path.write_bytes(b"x" * onnx_session.WORTH_KEEPING)
    with pytest.raises(ArtifactError, match=r"large\.onnx, which does not load"):
        open_session(write_artifact(convolutions.manifest, convolutions.model_path))


def test_processors_are_told_apart_by_their_instructions(tmp_path: Path) -> None:
    def identity(text: str) -> str:
        (tmp_path / "proc").mkdir(exist_ok=True)
        (tmp_path / "proc/cpuinfo").write_text(text)
        return processor_id(tmp_path)

    one = identity("model name\t: A\ncpu MHz\t: 1000\nflags\t: avx2\n" * 2)
    assert identity("model name\t: A\ncpu MHz\t: 2000\nflags\t: avx2\n") == one
    assert identity("model name\t: A\ncpu MHz\t: 1000\nflags\t: avx2 amx_tile\n") != one
