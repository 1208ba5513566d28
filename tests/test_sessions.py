"""Sessions run what their manifest says, or say what is wrong."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from builders import make_artifact, make_manifest, make_model

from echoir.runtime.artifact import Artifact, write_artifact
from echoir.runtime.errors import ArtifactError, BackendError, MissingExtraError
from echoir.runtime.manifest import FLOAT_NCHW, Engine, Model, TensorSpec
from echoir.runtime.sessions import open_session


@pytest.mark.parametrize("batch", [None, 1, 3])
@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_any_number_of_tiles_runs_whatever_the_models_batch(
    tmp_path: Path, rng: np.random.Generator, batch: int | None, count: int
) -> None:
    artifact = make_artifact(tmp_path, batch=batch, tile=(16, 24), gain=0.5, bias=0.25)
    tiles = rng.random((count, 3, 16, 24), np.float32)
    with open_session(artifact) as session:
        np.testing.assert_allclose(session.run(tiles), tiles * 0.5 + 0.25, rtol=0, atol=1e-7)


def test_8_bit_pixels_go_in_and_out(tmp_path: Path, rng: np.random.Generator) -> None:
    artifact = make_artifact(tmp_path, io="uint8", tile=(16, 24), bias=10 / 255)
    tiles = rng.integers(0, 256, (2, 16, 24, 3), np.uint8)
    with open_session(artifact, threads=1) as session:
        np.testing.assert_array_equal(session.run(tiles), np.minimum(tiles.astype(int) + 10, 255))


def test_non_contiguous_tiles_are_taken(identity: Artifact, rng: np.random.Generator) -> None:
    tiles = rng.random((1, 64, 64, 3), np.float32).transpose(0, 3, 1, 2)
    with open_session(identity) as session:
        np.testing.assert_array_equal(session.run(tiles), tiles)


@pytest.mark.parametrize(
    "tiles",
    [np.zeros((0, 3, 64, 64), np.float32), np.zeros((1, 3, 64, 63), np.float32), np.zeros((1, 3, 64, 64), np.float64)],
)
def test_tiles_of_another_shape_or_type_are_a_programming_error(
    identity: Artifact, tiles: np.ndarray[Any, Any]
) -> None:
    with open_session(identity) as session, pytest.raises(ValueError, match="tiles must be float32"):
        session.run(tiles)


def test_a_closed_session_does_not_run(identity: Artifact) -> None:
    session = open_session(identity)
    session.close()
    with pytest.raises(ValueError, match="closed"):
        session.run(np.zeros((1, 3, 64, 64), np.float32))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"tile": (64, 32)}, "input.shape"),
        ({"batch": 4}, "input.shape"),
        ({"io": "uint8"}, "input.dtype"),
        ({"input": TensorSpec("frame", **FLOAT_NCHW)}, "input.name"),
        ({"output": TensorSpec("frame", **FLOAT_NCHW)}, "output.name"),
        ({"input": TensorSpec("image", **(FLOAT_NCHW | {"layout": "NHWC"}))}, "input.shape"),
    ],
)
def test_a_model_unlike_its_manifest_is_refused(tmp_path: Path, changes: dict[str, Any], field: str) -> None:
    make_model(tmp_path / "x.onnx")
    artifact = write_artifact(make_manifest(**changes), tmp_path / "x.onnx")
    with pytest.raises(ArtifactError, match="does not belong to this model") as caught:
        open_session(artifact)
    assert caught.value.field == field


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_text("not a model")
    with pytest.raises(ArtifactError, match=r"x\.onnx, which does not load"):
        open_session(write_artifact(make_manifest(), tmp_path / "x.onnx"))


@pytest.mark.parametrize(("missing", "extra"), [("tensorrt_rtx", "rtx"), ("pycuda", "cuda")])
def test_an_engine_says_what_it_needs(
    missing: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.engine").write_bytes(b"engine")
    manifest = make_manifest(model=Model("tensorrt-rtx"), engine=Engine("1.7", ("8.9",), 1.0), onnx_sha256="0" * 64)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", ModuleType("tensorrt_rtx"))
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(MissingExtraError, match=rf"{missing} is not installed.*echoir\[{extra}\]") as caught:
        open_session(write_artifact(manifest, tmp_path / "x.engine"))
    assert caught.value.exit_code == 6


def test_a_missing_onnxruntime_gives_the_install_line(identity: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendError, match="pip install onnxruntime"):
        open_session(identity)


def test_a_missing_cuda_provider_gives_the_install_line(identity: Artifact) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    with pytest.raises(BackendError, match="pip install onnxruntime-gpu"):
        open_session(identity, device="cuda")
