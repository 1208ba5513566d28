"""A model repository for Triton Inference Server, whose own ONNX Runtime or TensorRT backend runs the artifact.

    models/NAME/config.pbtxt    what Triton is told, with the manifest among the parameters
    models/NAME/1/model.onnx    the model as it is, or model.plan

Source of the fields: model_config.proto in triton-inference-server/common.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from echoir.runtime.artifact import Artifact
from echoir.runtime.errors import ArtifactError
from echoir.runtime.files import atomic_write, staged
from echoir.runtime.manifest import Role, TensorSpec
from echoir.runtime.serving.session import MANIFEST

BACKENDS = {"onnxruntime": ("onnxruntime", "model.onnx"), "tensorrt": ("tensorrt", "model.plan")}
TYPES = {"float32": "TYPE_FP32", "uint8": "TYPE_UINT8"}
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")  # a folder, and a part of an address


def check_servable(artifact: Artifact) -> None:
    """Refuse what Triton's backends cannot run.

    Raises:
        ArtifactError: an engine for TensorRT-RTX, or one whose plugin is a Python class.
    """
    model, engine = artifact.manifest.model, artifact.manifest.engine
    if model.backend not in BACKENDS:
        hint = "Triton runs no TensorRT-RTX engines; serve the .onnx of the same export, or build for --target tensorrt"
        raise ArtifactError("model.backend", model.backend, " or ".join(BACKENDS), hint)
    upsampler = engine.details.get("upsampler") if engine is not None else None
    if upsampler == "plugin class":
        raise ArtifactError(
            "engine.details.upsampler",
            upsampler,
            "plugin (it carries its kernel) or function",
            "the plugin of this engine is a Python class that Triton does not have; export with --no-plugin",
        )


def write_repository(
    artifact: Artifact, folder: Path, *, name: str, max_batch: int = 8, queue: int = 64, instances: int = 1
) -> Path:
    """Write a model's part of a repository, whole or not at all; an earlier one of that name is replaced.

    Args:
        folder: the repository; made where it is missing.
        name: of the model, as clients ask for it.
        max_batch: tiles that run together, where the artifact leaves its batch open.
        queue: requests that may wait; those beyond are refused with 503.
        instances: copies of the model, each running a batch of its own.

    Returns:
        The model's folder.

    Raises:
        ArtifactError: Triton's backends cannot run it, or the name cannot be a model's.
        ImageError: the folder cannot be written.
    """
    check_servable(artifact)
    if not NAME.fullmatch(name):
        raise ArtifactError(
            "name", repr(name), "letters, digits, and any of _ . - after the first", "give one with --name"
        )
    config = configuration(artifact, name=name, max_batch=max_batch, queue=queue, instances=instances)
    target = folder / name
    with staged(target) as stage:
        (stage / "config.pbtxt").write_text(config, encoding="utf-8")
        (stage / "1").mkdir()
        with atomic_write(stage / "1" / BACKENDS[artifact.manifest.model.backend][1]) as temporary:
            shutil.copyfile(artifact.model_path, temporary)
    return target


def configuration(artifact: Artifact, *, name: str, max_batch: int, queue: int, instances: int) -> str:
    """The text of config.pbtxt; see :func:`write_repository`."""
    manifest = artifact.manifest
    backend, file = BACKENDS[manifest.model.backend]
    tile = manifest.tile
    # Triton counts an open batch apart. A fixed one belongs to the tensors, and requests run one by one.
    largest = 0 if tile.batch is not None else max_batch

    def dims(shape: tuple[int, ...]) -> str:
        return ", ".join(map(str, shape if tile.batch is not None else shape[1:]))

    def tensor(role: Role) -> str:
        spec: TensorSpec = getattr(manifest, role)
        shape = manifest.shape(role, tile.batch or 1)
        if tile.most is not None:  # tiles of one size share a batch; that they are no larger is the client's business
            shape = spec.shape(tile.batch or 1, -1, -1)
        described = f"name: {_quoted(spec.name)} data_type: {TYPES[spec.dtype]} dims: [ {dims(shape)} ]"
        return f"{role} [\n  {{ {described} }}\n]"

    def warmup(batch: int) -> str:
        shape = manifest.shape("input", tile.batch or 1)
        value = f"{{ data_type: {TYPES[manifest.input.dtype]} dims: [ {dims(shape)} ] random_data: true }}"
        return (
            f'  {{ name: "batch of {batch or tile.batch}" batch_size: {batch} '
            f"inputs {{ key: {_quoted(manifest.input.name)} value {value} }} }}"
        )

    kind = "KIND_GPU" if backend == "tensorrt" else "KIND_AUTO"
    batches: Sequence[int] = sorted({1, largest}) if largest else (0,)
    compact = json.dumps(json.loads(manifest.to_json()), ensure_ascii=False, separators=(",", ":"))
    return "\n".join(
        [
            f"# {manifest.name}, {manifest.precision.name}: made by echoir triton.",
            f"name: {_quoted(name)}",
            f'backend: "{backend}"',
            f'default_model_filename: "{file}"',
            f"max_batch_size: {largest}",
            tensor("input"),
            tensor("output"),
            f"instance_group [\n  {{ count: {instances} kind: {kind} }}\n]",
            "# Requests that wait run together, up to the largest batch; none waits for others to come.",
            f"dynamic_batching {{\n  default_queue_policy {{ max_queue_size: {queue} }}\n}}",
            "model_warmup [\n" + ",\n".join(map(warmup, batches)) + "\n]",
            f'parameters {{\n  key: "{MANIFEST}"\n  value {{ string_value: {_quoted(compact)} }}\n}}\n',
        ]
    )


def _quoted(text: str) -> str:
    """Text as protobuf's text format writes it; JSON's own escapes leave only two characters to care for."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
