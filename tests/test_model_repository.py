"""Model repositories for Triton: what its own definition of the configuration makes of ours."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from builders import make_artifact, make_manifest
from google.protobuf import text_format
from running import echoir
from tritonclient.grpc import model_config_pb2

from echoir.runtime.artifact import Artifact, write_artifact
from echoir.runtime.files import sha256_file
from echoir.runtime.manifest import Engine, Manifest, Model


def parsed(folder: Path) -> Any:
    """The configuration as Triton's protobuf definition reads it; refuses what it does not know."""
    return text_format.Parse((folder / "config.pbtxt").read_text(encoding="utf-8"), model_config_pb2.ModelConfig())


def make_engine(
    folder: Path, backend: str = "tensorrt", upsampler: str = "plugin", batch: int | None = None
) -> Artifact:
    path = folder / "test.engine"
    path.write_bytes(b"an engine")
    engine = Engine("10.13.3.9", ("8.9",), 1.0, details={"upsampler": upsampler})
    manifest = make_manifest(batch=batch, model=Model(backend), engine=engine, onnx_sha256="0" * 64)  # type: ignore[arg-type]
    return write_artifact(manifest, path)


def test_an_open_batch_is_shared_by_clients_up_to_a_limit(tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path, "denoise")
    models = tmp_path / "models"
    result = echoir("triton", "-m", artifact.model_path, "-o", models, "--max-batch", 6, "--queue", 9, "--instances", 2)
    assert result.code == 0
    assert "batches of up to 6 tiles" in result.out
    config = parsed(models / "denoise")
    assert (config.name, config.backend, config.max_batch_size) == ("denoise", "onnxruntime", 6)
    assert config.dynamic_batching.default_queue_policy.max_queue_size == 9
    assert [(one.name, one.data_type, list(one.dims)) for one in (*config.input, *config.output)] == [
        ("image", model_config_pb2.TYPE_FP32, [3, 64, 64]),
        ("restored", model_config_pb2.TYPE_FP32, [3, 64, 64]),
    ]
    assert [(one.count, one.kind) for one in config.instance_group] == [
        (2, model_config_pb2.ModelInstanceGroup.KIND_AUTO)
    ]
    assert [one.batch_size for one in config.model_warmup] == [1, 6]
    assert list(config.model_warmup[0].inputs["image"].dims) == [3, 64, 64]
    assert Manifest.from_json(config.parameters["echoir_manifest"].string_value) == artifact.manifest
    assert sha256_file(models / "denoise" / "1" / config.default_model_filename) == artifact.manifest.model.sha256


def test_a_fixed_batch_belongs_to_the_tensors_and_is_said(tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path, "denoise", io="uint8", batch=2)
    result = echoir("triton", "-m", artifact.model_path, "-o", tmp_path / "models", "--name", "two")
    assert "fixed at 2" in result.out
    assert "--batch dynamic" in result.out
    config = parsed(tmp_path / "models" / "two")
    assert (config.name, config.max_batch_size) == ("two", 0)
    assert (config.input[0].data_type, list(config.input[0].dims)) == (model_config_pb2.TYPE_UINT8, [2, 64, 64, 3])
    assert [(one.batch_size, list(one.inputs["image"].dims)) for one in config.model_warmup] == [(0, [2, 64, 64, 3])]


@pytest.mark.parametrize("upsampler", ["plugin", "function: no Triton here"])
def test_an_engine_is_served_by_the_tensorrt_backend_on_a_gpu(upsampler: str, tmp_path: Path) -> None:
    artifact = make_engine(tmp_path, upsampler=upsampler)
    assert echoir("triton", "-m", artifact.model_path, "-o", tmp_path / "models").code == 0
    config = parsed(tmp_path / "models" / "test")
    assert (config.backend, config.default_model_filename) == ("tensorrt", "model.plan")
    assert config.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_GPU
    assert (tmp_path / "models" / "test" / "1" / "model.plan").read_bytes() == b"an engine"


@pytest.mark.parametrize(
    ("backend", "upsampler", "message"),
    [("tensorrt-rtx", "function", "Triton runs no TensorRT-RTX"), ("tensorrt", "plugin class", "a Python class")],
)
def test_an_engine_that_triton_cannot_run_is_refused(
    backend: str, upsampler: str, message: str, tmp_path: Path
) -> None:
    artifact = make_engine(tmp_path, backend, upsampler)
    result = echoir("triton", "-m", artifact.model_path, "-o", tmp_path / "models")
    assert result.code == 4
    assert message in result.err
    assert not (tmp_path / "models").exists()


def test_a_manifest_of_any_text_comes_back_as_it_was(tmp_path: Path) -> None:
    notes = {"quotes": "\"'\\", "lines": "a\nb\t\x7f", "rain": "é 雨 \N{CLOUD WITH RAIN}"}
    artifact = make_artifact(tmp_path, "denoise")
    artifact = write_artifact(replace(artifact.manifest, versions=notes), artifact.model_path)
    assert echoir("triton", "-m", artifact.model_path, "-o", tmp_path / "models").code == 0
    text = parsed(tmp_path / "models" / "denoise").parameters["echoir_manifest"].string_value
    assert json.loads(text)["versions"] == notes


def test_triton_s_definition_refuses_a_typo(tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path, "denoise")
    echoir("triton", "-m", artifact.model_path, "-o", tmp_path / "models")
    config = tmp_path / "models" / "denoise" / "config.pbtxt"
    config.write_text(config.read_text().replace("max_queue_size", "max_queue_sise"))
    with pytest.raises(text_format.ParseError, match="max_queue_sise"):
        parsed(config.parent)


def test_a_model_that_is_there_is_replaced_only_when_asked(tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path, "denoise")
    arguments = ("triton", "-m", artifact.model_path, "-o", tmp_path / "models")
    assert echoir(*arguments).code == 0
    refused = echoir(*arguments)
    assert refused.code == 2
    assert "--force" in refused.err
    assert echoir(*arguments, "--force", "--max-batch", 3).code == 0
    assert parsed(tmp_path / "models" / "denoise").max_batch_size == 3
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["denoise"]


@pytest.mark.parametrize("name", ["", "../up", ".hidden", "a b", "a/b"])
def test_a_name_that_cannot_be_a_model_s_is_refused(name: str, identity: Artifact, tmp_path: Path) -> None:
    result = echoir("triton", "-m", identity.model_path, "-o", tmp_path / "models", "--name", name, "--force")
    assert result.code == 2
    assert not (tmp_path / "models").exists()
    assert not (tmp_path / "up").exists()
