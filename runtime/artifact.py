"""The artifact: a model file and the manifest beside it, ``name.onnx`` (or ``.engine``) and ``name.json``.

This module alone writes and reads manifests.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from echoir.runtime.errors import ArtifactError
from echoir.runtime.external import has_external_data
from echoir.runtime.files import atomic_write, sha256_file
from echoir.runtime.manifest import SUFFIXES, Manifest, Model


@dataclass(frozen=True)
class Artifact:
    """A model file that is the one its manifest describes."""

    manifest: Manifest
    model_path: Path

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Artifact:
        """Open an artifact and check that the model is the file that was written.

        Args:
            path: the model file, its ``.json``, or a folder that holds exactly one artifact (with
                one ``.onnx`` among them, that one), or that of one tile.

        Raises:
            ArtifactError: something is missing, renamed, truncated, swapped, edited or unreadable.
        """
        path = Path(path)
        try:
            return cls(*_open(_only_model(path) if path.is_dir() else path))
        except (OSError, UnicodeDecodeError) as error:
            raise ArtifactError("artifact", f"{path}, unreadable ({error})", "a readable artifact") from error


def open_tiles(folder: Path) -> list[Artifact]:
    """Artifacts of one network that differ in their tile, each in a folder of its own; none where there are none.

    Raises:
        ArtifactError: one of them is broken, or of another network, precision or format.
    """
    found = [Artifact.open(one) for one in _tile_folders(folder)]
    for one in found[1:]:
        for name in ("checkpoint", "precision.name", "network", "input", "output", "model.backend"):
            ours, theirs = (_field(artifact.manifest, name) for artifact in (found[0], one))
            if ours != theirs:
                raise ArtifactError(name, theirs, ours, f"{folder} holds artifacts that do not belong together")
    return found


def write_artifact(manifest: Manifest, model_path: str | os.PathLike[str]) -> Artifact:
    """Write the manifest beside a model file, after filling in the file's name, size and hash.

    Args:
        manifest: all else; ``onnx_sha256`` is filled in too when the model is the ONNX itself.
        model_path: a finished ``.onnx`` or ``.engine``.

    Raises:
        ArtifactError: a field of the manifest is wrong, or the model is not there.
        ImageError: the manifest cannot be written.
    """
    model_path = Path(model_path)
    if not model_path.is_file():
        raise ArtifactError("model.file", f"no file at {model_path}", "a finished model")
    _refuse_external(model_path)
    sha256 = sha256_file(model_path)
    model = replace(manifest.model, file=model_path.name, sha256=sha256, bytes=model_path.stat().st_size)
    manifest = replace(manifest, model=model)
    if model.backend == "onnxruntime":
        manifest = replace(manifest, onnx_sha256=sha256)
    text = manifest.to_json()
    with atomic_write(model_path.with_suffix(".json")) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Artifact(Manifest.from_json(text), model_path)


def _open(path: Path) -> tuple[Manifest, Path]:
    """Manifest and model, given either file."""
    if not path.is_file():
        raise ArtifactError("artifact", f"no file at {path}", "a model file, its .json, or their folder")
    if path.suffix != ".json" and path.suffix not in SUFFIXES:
        raise ArtifactError(
            "artifact", path.name, f"a file ending in {', '.join(SUFFIXES)} or .json", "is this a model?"
        )
    manifest_path = path.with_suffix(".json")
    if not manifest_path.is_file():
        hint = f"the manifest belongs beside {path.name}; copy both files together, and do not rename one alone"
        raise ArtifactError("manifest", f"no file at {manifest_path}", "the manifest of this model", hint)
    manifest = Manifest.from_json(manifest_path.read_text(encoding="utf-8"))
    model_path = manifest_path.with_name(manifest.model.file)
    _check_model(manifest.model, model_path if path == manifest_path else path)
    return manifest, model_path


def _only_model(folder: Path) -> Path:
    """The model of the one artifact in a folder; an ONNX file goes before engines."""
    models = sorted(p for p in folder.iterdir() if p.suffix in SUFFIXES and p.with_suffix(".json").is_file())
    for suffix in SUFFIXES:
        found = [p for p in models if p.suffix == suffix]
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(p.name for p in found)
            raise ArtifactError(
                "artifact", f"{len(found)} artifacts in {folder} ({names})", "one", "name the one you mean"
            )
    tiles = _tile_folders(folder)
    if len(tiles) == 1:  # several sizes of picture were asked for, and one tile fits them
        return _only_model(tiles[0])
    if tiles:
        hint = f"name one of them, such as {tiles[0]}"
        raise ArtifactError("artifact", f"{len(tiles)} artifacts of different tiles in {folder}", "one", hint)
    raise ArtifactError("artifact", f"no artifact in {folder}", "a model file with its .json beside it")


def _tile_folders(folder: Path) -> list[Path]:
    """``256x256`` and the like in a folder that is no artifact itself."""
    try:
        inside = sorted(folder.iterdir()) if folder.is_dir() else []
    except OSError:  # opening it as an artifact will say so
        return []
    if any(path.suffix in SUFFIXES for path in inside):
        return []
    return [path for path in inside if path.is_dir() and re.fullmatch(r"[0-9]+x[0-9]+", path.name)]


def _field(manifest: Manifest, name: str) -> object:
    value: object = manifest
    for part in name.split("."):
        value = getattr(value, part)
    return value


def _check_model(model: Model, path: Path) -> None:
    """Refuse a model file whose name, size or hash is not the manifest's."""
    if path.name != model.file:
        raise ArtifactError(
            "model.file", path.name, model.file, "the model was renamed, or another manifest took its place"
        )
    if not path.is_file():
        raise ArtifactError("model.file", f"no file at {path}", model.file, "copy the model beside its manifest")
    if (size := path.stat().st_size) != model.bytes:
        cause = "truncated: copy it again" if size < model.bytes else "replaced or edited: export the artifact again"
        raise ArtifactError("model.bytes", size, model.bytes, f"{path.name} was {cause}")
    if (sha256 := sha256_file(path)) != model.sha256:
        hint = f"{path.name} was edited, damaged or swapped: copy it again, or export it again"
        raise ArtifactError("model.sha256", sha256, model.sha256, hint)
    _refuse_external(path)


def _refuse_external(path: Path) -> None:
    """An ONNX file's hash says nothing of weights in other files."""
    if path.suffix == ".onnx" and has_external_data(path):
        hint = "save the model in one file: onnx.save(onnx.load(path), path)"
        raise ArtifactError("model.file", f"{path.name} with weights in other files", "all of the model in it", hint)
