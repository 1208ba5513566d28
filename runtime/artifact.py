"""The artifact: a model file and the manifest beside it, ``name.onnx`` (or ``.engine``) and ``name.json``.

This module alone writes and reads manifests. The dataclasses below are the format: their types are
checked on the way in and on the way out, and a file that does not match is refused by field name.
"""

from __future__ import annotations

import json
import math
import os
import re
import types
from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from echoir.runtime.errors import ArtifactError
from echoir.runtime.files import atomic_write, sha256_file

FORMAT = 1
SUFFIXES = {".onnx": ("onnxruntime",), ".engine": ("tensorrt", "tensorrt-rtx")}

T = TypeVar("T")


@dataclass(frozen=True)
class Must:
    """A condition on a value, in words for the message and as a test."""

    needed: str
    test: Callable[[Any], bool]


Text = Annotated[str, Must("some text", lambda value: bool(value))]
Sha256 = Annotated[str, Must("64 hex digits", lambda value: re.fullmatch("[0-9a-f]{64}", value) is not None)]
Positive = Annotated[int, Must("a whole number from 1 up", lambda value: value >= 1)]
Natural = Annotated[int, Must("a whole number from 0 up", lambda value: value >= 0)]
Seconds = Annotated[float, Must("seconds from 0 up", lambda value: value >= 0)]
FileName = Annotated[
    str, Must("a file name without folders", lambda value: value not in ("", ".", "..") and Path(value).name == value)
]


@dataclass(frozen=True)
class Network:
    """What was exported: preset name, number of parameters, and the whole configuration."""

    preset: Text
    parameters: Positive
    config: dict[str, Any]


@dataclass(frozen=True)
class CheckpointRecord:
    """The weights that went in."""

    name: Text
    sha256: Sha256


@dataclass(frozen=True)
class Model:
    """The model file; :func:`write_artifact` fills in all but the backend."""

    backend: Literal["onnxruntime", "tensorrt", "tensorrt-rtx"]
    file: FileName = ""
    sha256: Sha256 = ""
    bytes: Positive = 0


@dataclass(frozen=True)
class Precision:
    """The precision asked for, the nodes that keep a higher one, by type, and those that compute on INT8."""

    name: Literal["fp32", "fp16", "int8"]
    higher: dict[str, tuple[str, ...]] = field(default_factory=dict)
    int8: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tile:
    """The fixed input shape in pixels, the default overlap, and the batch (None: any)."""

    height: Positive
    width: Positive
    overlap: Natural
    alignment: Positive
    batch: Annotated[
        int | None, Must("a whole number from 1 up, or null", lambda value: value is None or value >= 1)
    ] = None


@dataclass(frozen=True)
class TensorSpec:
    """The model's one input or one output: three channels, full range (0 to 1, or 0 to 255)."""

    name: Text
    layout: Literal["NCHW", "NHWC"]
    dtype: Literal["float32", "uint8"]
    range: tuple[float, float]
    colour: Literal["RGB"] = "RGB"

    def shape(self, batch: int, height: int, width: int) -> tuple[int, int, int, int]:
        """The tensor's shape for these sizes."""
        return (batch, 3, height, width) if self.layout == "NCHW" else (batch, height, width, 3)


FLOAT_NCHW = {"layout": "NCHW", "dtype": "float32", "range": (0.0, 1.0)}
UINT8_NHWC = {"layout": "NHWC", "dtype": "uint8", "range": (0.0, 255.0)}


@dataclass(frozen=True)
class Engine:
    """How and for what an engine was built."""

    tensorrt: Text
    compute_capability: tuple[str, ...]
    build_seconds: Seconds
    gpu: str | None = None
    driver: str | None = None
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Calibration:
    """What an int8 model rests on: tiles that set its ranges, and others that its layers were chosen on.

    ``fingerprint`` is the SHA-256 of all those tiles; ``budget`` and ``drop`` (on the sensitivity
    tiles) are in dB; ``share`` is that of multiply-accumulates in INT8.
    """

    fingerprint: Text
    method: Text
    tiles: Positive
    sensitivity_tiles: Positive
    equalized: tuple[str, ...]
    budget: float
    drop: float
    share: Annotated[float, Must("a share from 0 to 1", lambda value: 0 <= value <= 1)]


@dataclass(frozen=True)
class Manifest:
    """Everything a device needs to know about a model file.

    ``onnx_sha256`` is that of the ONNX file an engine was built from, or of the model itself.
    ``parity`` holds the figures against PyTorch and the gate they passed; None before measurement.
    """

    name: Text
    task: Text
    network: Network
    checkpoint: CheckpointRecord
    model: Model
    precision: Precision
    tile: Tile
    input: TensorSpec
    output: TensorSpec
    versions: dict[str, str]
    onnx_sha256: Sha256 = ""
    engine: Engine | None = None
    calibration: Calibration | None = None
    parity: dict[str, Any] | None = None
    format: int = FORMAT

    def to_json(self) -> str:
        """The manifest as JSON text, checked like :meth:`from_json` checks it.

        Raises:
            ArtifactError: a field has the wrong type or value, named with what is needed.
        """
        values = asdict(self)
        _check_together(_parse(Manifest, values, ""))
        return json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Read and check a manifest.

        Raises:
            ArtifactError: not JSON, another format version, or a field that is missing, unknown,
                or of the wrong type or value.
        """
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ArtifactError("manifest", f"text that is not JSON ({error})", "a JSON object", _EDITED) from None
        if not isinstance(values, dict):
            raise ArtifactError("manifest", _kind(values), "a JSON object", _EDITED)
        version = values.get("format", "nothing")
        if type(version) is not int or version != FORMAT:
            newer = type(version) is int and version > FORMAT
            hint = (
                "it was written by a newer echoir: upgrade, or export again" if newer else "export the artifact again"
            )
            raise ArtifactError("format", version, FORMAT, hint)
        manifest = _parse(cls, values, "")
        _check_together(manifest)
        return manifest


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
                one ``.onnx`` among them, that one).

        Raises:
            ArtifactError: something is missing, renamed, truncated, swapped, edited or unreadable.
        """
        path = Path(path)
        try:
            return cls(*_open(_only_model(path) if path.is_dir() else path))
        except (OSError, UnicodeDecodeError) as error:
            raise ArtifactError("artifact", f"{path}, unreadable ({error})", "a readable artifact") from error


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
    sha256 = sha256_file(model_path)
    model = replace(manifest.model, file=model_path.name, sha256=sha256, bytes=model_path.stat().st_size)
    manifest = replace(manifest, model=model)
    if model.backend == "onnxruntime":
        manifest = replace(manifest, onnx_sha256=sha256)
    text = manifest.to_json()
    with atomic_write(model_path.with_suffix(".json")) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Artifact(Manifest.from_json(text), model_path)


_EDITED = "the file was edited or damaged; export the artifact again"


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
    raise ArtifactError("artifact", f"no artifact in {folder}", "a model file with its .json beside it")


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


def _check_together(manifest: Manifest) -> None:
    """Conditions that tie several fields together."""
    tile, model = manifest.tile, manifest.model
    for side in ("height", "width"):
        if (size := getattr(tile, side)) % tile.alignment:
            raise ArtifactError(f"tile.{side}", size, f"a multiple of tile.alignment, {tile.alignment}")
    if tile.overlap >= (limit := min(tile.height, tile.width)):
        raise ArtifactError("tile.overlap", tile.overlap, f"less than the tile's {limit} pixels")
    for role in ("input", "output"):
        spec: TensorSpec = getattr(manifest, role)
        full = UINT8_NHWC["range"] if spec.dtype == "uint8" else FLOAT_NCHW["range"]
        if spec.range != full:
            raise ArtifactError(f"{role}.range", list(spec.range), list(full), f"pixels are {spec.dtype}")
    if model.backend not in SUFFIXES.get(Path(model.file).suffix, ()):
        needed = next(suffix for suffix, backends in SUFFIXES.items() if model.backend in backends)
        raise ArtifactError("model.file", model.file, f"a name ending in {needed}", f"the backend is {model.backend}")
    if model.backend == "onnxruntime" and manifest.onnx_sha256 != model.sha256:
        raise ArtifactError("onnx_sha256", manifest.onnx_sha256, f"{model.sha256}, as model.sha256", _EDITED)
    if (model.backend == "onnxruntime") != (manifest.engine is None):
        found, needed = ("nothing", "an engine's record") if manifest.engine is None else ("a record", "null")
        raise ArtifactError("engine", found, needed, f"the backend is {model.backend}")


def _parse(kind: Any, value: Any, where: str) -> Any:
    """Turn JSON values into ``kind``, which is a dataclass or a type it uses; refuse what does not fit."""
    if kind is Any:
        _check_finite(value, where)
        return value
    if isinstance(kind, type) and is_dataclass(kind):
        return _parse_dataclass(kind, value, where)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        parsed = _parse(arguments[0], value, where)
        for must in arguments[1:]:
            if not must.test(parsed):
                raise ArtifactError(where, repr(parsed), must.needed, _EDITED)
        return parsed
    if origin in (Union, types.UnionType):  # only ever "X | None"
        inner = next(argument for argument in arguments if argument is not type(None))
        return None if value is None else _parse(inner, value, where)
    if origin is Literal:
        if not isinstance(value, str) or value not in arguments:
            raise ArtifactError(where, repr(value), f"one of {', '.join(arguments)}", _EDITED)
        return value
    if origin is tuple:
        return _parse_tuple(arguments, value, where)
    if origin is dict:
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            raise ArtifactError(where, _kind(value), "an object", _EDITED)
        return {key: _parse(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if kind is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    if type(value) is not kind:  # bool is not an int here
        raise ArtifactError(where, _kind(value), _NAMES[kind], _EDITED)
    return value


def _parse_dataclass(kind: type[T], value: Any, where: str) -> T:
    if not isinstance(value, dict):
        raise ArtifactError(where, _kind(value), "an object", _EDITED)
    prefix = f"{where}." if where else ""
    hints = get_type_hints(kind, include_extras=True)
    if unknown := sorted(set(value) - set(hints)):
        raise ArtifactError(prefix + unknown[0], "a field unknown to format 1", f"only {', '.join(hints)}", _EDITED)
    for entry in fields(kind):  # type: ignore[arg-type]
        # A file spells everything out; a default is for those who build a manifest in Python.
        if entry.name not in value:
            optional = entry.default is None or entry.default_factory is not MISSING
            raise ArtifactError(prefix + entry.name, "nothing", "null at least" if optional else "a value", _EDITED)
    return kind(**{name: _parse(hint, value[name], prefix + name) for name, hint in hints.items()})


def _parse_tuple(arguments: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise ArtifactError(where, _kind(value), "a list", _EDITED)
    if arguments[-1] is Ellipsis:
        arguments = (arguments[0],) * len(value)
    if len(value) != len(arguments):
        raise ArtifactError(where, f"{len(value)} values", f"{len(arguments)}", _EDITED)
    return tuple(
        _parse(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(zip(arguments, value, strict=True))
    )


def _check_finite(value: Any, where: str) -> None:
    """Free-form parts hold JSON's own types and finite numbers."""
    if isinstance(value, dict):
        for key, item in value.items():
            _check_finite(item, f"{where}.{key}")
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            _check_finite(item, f"{where}[{i}]")
    elif type(value) is float and not math.isfinite(value):
        raise ArtifactError(where, value, "a finite number, which JSON can hold")
    elif value is not None and type(value) not in (str, int, float, bool):
        raise ArtifactError(where, _kind(value), "a JSON value")


_NAMES = {str: "text", int: "a whole number", float: "a finite number", bool: "true or false"}


def _kind(value: Any) -> str:
    """A value as a message shows it."""
    if value is None:
        return "null"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, (list, tuple)):
        return "a list"
    return repr(value)
